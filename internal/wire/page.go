package wire

import (
	"errors"
	"sync/atomic"
	"unsafe"
)

// PageSize is the size of the memory that portd shares with each worker.
const PageSize = 4096

const (
	pageMagic   = 0x64747270 // "prtd"
	pageVersion = 1

	pageConnectionsSent = 64
	pageMessagesSent    = 72
	pageTurn            = 128
	pageTaken           = 136
	pageReceived        = 144
	pageDone            = 192
)

// A Page is the memory that portd shares with one worker. Each number has one writer: portd or the worker, each on cache lines of
// its own. Neither believes the other: what is read is for choosing and showing only.
type Page struct{ mem *[PageSize]byte }

// NewPage is the page in mem, which must be mapped memory of PageSize bytes: it stays the caller's to unmap.
func NewPage(mem []byte) (Page, error) {
	if len(mem) < PageSize {
		return Page{}, errors.New("the shared page is too short")
	}
	return Page{(*[PageSize]byte)(mem)}, nil
}

// Init writes the page's head; portd does so before it shares it.
func (p Page) Init() {
	atomic.StoreUint32(p.u32(4), pageVersion)
	atomic.StoreUint32(p.u32(8), PageSize)
	atomic.StoreUint32(p.u32(0), pageMagic)
}

// Check says whether the head is one that this package knows.
func (p Page) Check() error {
	if atomic.LoadUint32(p.u32(0)) != pageMagic || atomic.LoadUint32(p.u32(4)) != pageVersion {
		return errors.New("the shared page is not one of this protocol's")
	}
	return nil
}

// Sent publishes what portd has sent: connections and messages, the latter being the last sequence number.
func (p Page) Sent(connections, messages uint64) {
	atomic.StoreUint64(p.u64(pageConnectionsSent), connections)
	atomic.StoreUint64(p.u64(pageMessagesSent), messages)
}

// LoadSent reads what Sent published.
func (p Page) LoadSent() (connections, messages uint64) {
	return atomic.LoadUint64(p.u64(pageConnectionsSent)), atomic.LoadUint64(p.u64(pageMessagesSent))
}

// BeginTake makes the turn odd: the worker is about to take a message, and a reader cannot tell whether it has it.
func (p Page) BeginTake() { atomic.AddUint64(p.u64(pageTurn), 1) }

// EndTake makes the turn even again. A message that was taken has its sequence and its number of connections; where none was,
// connections is 0.
func (p Page) EndTake(sequence uint64, connections int) {
	if connections > 0 {
		atomic.StoreUint64(p.u64(pageTaken), sequence)
		atomic.AddUint64(p.u64(pageReceived), uint64(connections))
	}
	atomic.AddUint64(p.u64(pageTurn), 1)
}

// Taken reads the worker's last sequence and how many connections it has received. ok is false while it is taking.
func (p Page) Taken() (sequence, received uint64, ok bool) {
	before := atomic.LoadUint64(p.u64(pageTurn))
	sequence, received = atomic.LoadUint64(p.u64(pageTaken)), atomic.LoadUint64(p.u64(pageReceived))
	return sequence, received, before%2 == 0 && atomic.LoadUint64(p.u64(pageTurn)) == before
}

// Turns says whether the worker has ever looked for a message. One that leaves its numbers at 0 never says so.
func (p Page) Turns() bool { return atomic.LoadUint64(p.u64(pageTurn)) != 0 }

// AddDone counts a connection that the worker is done with.
func (p Page) AddDone(n uint64) { atomic.AddUint64(p.u64(pageDone), n) }

// Done reads how many connections the worker says it is done with.
func (p Page) Done() uint64 { return atomic.LoadUint64(p.u64(pageDone)) }

// The offsets are multiples of their size and mapped memory begins at a page, so these are aligned.
func (p Page) u64(at int) *uint64 { return (*uint64)(unsafe.Pointer(&p.mem[at])) }
func (p Page) u32(at int) *uint32 { return (*uint32)(unsafe.Pointer(&p.mem[at])) }
