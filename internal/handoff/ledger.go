package handoff

import (
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/fdpass"
	"github.com/portd/portd/internal/registry"
)

// What portd knows of its workers from one message to the next lies in the ledger: a memory file that the keeper has too, so that the death
// of portd takes nothing of it. It is no copy; the engine's own variables are in there. What does not change, such as who a worker
// is, lies in the worker's bag (see bag.go). Only portd and its successors map it, so what it says is believed, but for its version.

// The ledger has 64 MiB, of which only what is used takes memory. In it: the head; places for listeners, by number; places for
// connections in portd's hands, by number, of which 0 is none; and units that workers take as many of as they need.
const (
	ledgerSize    = 64 << 20
	ledgerMagic   = 0x6c647270 // "prdl"
	ledgerVersion = 1
	// One that several engines write to, which a portd that knows of one only would misread.
	ledgerOfSeveral = 2

	mostListeners = 1 << 16
	mostHands     = 1 << 16
	unitSize      = 256

	listenersAt = 4096
	handsAt     = listenersAt + mostListeners*int(unsafe.Sizeof(listenerPlace{}))
	unitsAt     = handsAt + mostHands*int(unsafe.Sizeof(hand{}))
	units       = (ledgerSize - unitsAt) / unitSize
)

type ledgerHead struct {
	magic, version uint32
	size           uint64
	incarnation    uint32 // goes up with each portd that has it
	hands          uint32 // so many places for connections were ever used
	listeners      uint32 // likewise
	accepting      uint32 // of the first engine's seat, as journal and acceptingFrom
	journal        journal
	past           counts
	acceptingFrom  uint64
	holders        [8]holding // of the last incarnations, by their remainders
	retaking       uint64     // incarnation that is just taking a message back from a worker's queue; 0: none is
	retakingFrom   uint64     // tenant
	others         [MostAcceptors - 1]otherSeat
}

// otherSeat is what of the first engine's seat stands in the head.
type otherSeat struct {
	acceptingFrom uint64
	accepting     uint32
	_             uint32
	journal       journal
}

// counts are what Totals are made of.
type counts struct {
	handedOver, redelivered, takenBack, lost, refused uint64
}

func (c *counts) add(o *counts) {
	c.handedOver += o.handedOver
	c.redelivered += o.redelivered
	c.takenBack += o.takenBack
	c.lost += o.lost
	c.refused += o.refused
}

type listenerPlace struct {
	counts
	index       uint32
	length      uint8 // of reservation; 0: nobody's
	shared      bool  // see Pool.shared
	reservation [74]byte
}

func (l *listenerPlace) key() registry.SocketKey {
	return registry.SocketKey{Reservation: string(l.reservation[:min(int(l.length), len(l.reservation))]), Index: int(l.index)}
}

// workerPlace is what changes of a worker. Those of what it serves follow it.
type workerPlace struct {
	tenant    uint64 // tells whose it is from whose it was; 0: nobody's
	sequence  uint64 // of the last message sent to it
	sent      uint64 // connections, less those that were taken back
	takenBack uint64
	fewer     int // connections in its next message, than otherwise: it had no descriptors for the last one
	standing  standing
	stuck     bool // leaves what it was sent in its queue, where a probe lies now
	_         [6]byte
}

type servingPlace struct {
	sent     uint64
	drainSeq uint64 // once this message has been taken, nothing waits
	seed     uint64 // its place among those that serve clients by address; 0: it has none yet
	state    State
	owes     bool // a DRAINED
	gone     bool
	_        [5]byte
}

// A standing is how far a worker's attachment has come.
type standing uint8

const (
	joining  standing = iota // it has not been told that it is attached
	attached                 // it has
	leaving                  // it is gone, and what lies in its queue goes to others
	released                 // it is let go, and what lies in its queue is its own
)

// A ledger is one that is mapped. All of a nil one's places are in ordinary memory, and die with portd.
type ledger struct {
	fd            int
	mem           []byte
	head          *ledgerHead
	listeners     []listenerPlace
	hands         []hand
	incarnation   uint32 // ours
	freeListeners []uint32
	freeHands     []uint32
	taken         []uint64 // a bit for each unit
	full          int      // of taken: all before are ones
}

func newLedger() (*ledger, error) {
	fd, mem, err := fdpass.SealedPage(ledgerSize)
	if err != nil {
		return nil, fmt.Errorf("make the ledger: %w", err)
	}
	l := ledgerIn(fd, mem)
	l.head.magic, l.head.version, l.head.size = ledgerMagic, ledgerVersion, ledgerSize
	// Tenants are numbered by it: a worker of another ledger, whose bag is still there when portd dies, must not claim a place in this one.
	l.head.incarnation = rand.Uint32() >> 1
	return l, nil
}

// openLedger maps that of a portd before. fd is the ledger's from then on; where there is an error it stays the caller's.
func openLedger(fd int) (*ledger, error) {
	mem, err := fdpass.MapPage(fd, ledgerSize)
	if err != nil {
		return nil, fmt.Errorf("open the ledger: %w", err)
	}
	l := ledgerIn(fd, mem)
	if err := l.check(); err != nil {
		_ = unix.Munmap(mem)
		return nil, err
	}
	return l, nil
}

func (l *ledger) check() error {
	if l.head.magic != ledgerMagic || l.head.version < ledgerVersion || l.head.version > ledgerOfSeveral || l.head.size != ledgerSize {
		return fmt.Errorf("the ledger is of version %d, and this portd knows versions %d and %d", l.head.version, ledgerVersion, ledgerOfSeveral)
	}
	return nil
}

// writtenBy says how many engines are about to write to it. What others wrote has been settled.
func (l *ledger) writtenBy(engines int) {
	l.head.version = ledgerVersion
	if engines > 1 {
		l.head.version = ledgerOfSeveral
	}
}

func ledgerIn(fd int, mem []byte) *ledger {
	base := unsafe.Pointer(unsafe.SliceData(mem))
	return &ledger{
		fd: fd, mem: mem, head: (*ledgerHead)(base), taken: make([]uint64, units/64),
		listeners: unsafe.Slice((*listenerPlace)(unsafe.Add(base, listenersAt)), mostListeners),
		hands:     unsafe.Slice((*hand)(unsafe.Add(base, handsAt)), mostHands),
	}
}

// own makes the ledger this process's, whose holder is given: from now on it writes there. Places of workers are taken by claim before.
func (l *ledger) own(holder uint32) {
	l.begin(holder)
	for i := range l.head.listeners {
		if l.listeners[i].length == 0 {
			l.freeListeners = append(l.freeListeners, i)
		}
	}
	l.recount()
}

func (l *ledger) close() {
	_ = unix.Munmap(l.mem)
	_ = unix.Close(l.fd)
}

// unitsOf is how many units a worker takes that serves n listeners.
func unitsOf(n int) int {
	return (int(unsafe.Sizeof(workerPlace{})) + n*int(unsafe.Sizeof(servingPlace{})) + unitSize - 1) / unitSize
}

// worker makes a place for one that serves n listeners. at is 0 where it is in ordinary memory.
func (l *ledger) worker(n int) (at int, w *workerPlace, serves []servingPlace) {
	if l != nil {
		if at := l.find(unitsOf(n)); at >= 0 {
			l.mark(at, unitsOf(n), true)
			w, serves = l.place(at, n)
			*w = workerPlace{}
			clear(serves)
			return unitsAt + at*unitSize, w, serves
		}
	}
	return 0, &workerPlace{}, make([]servingPlace, n)
}

// claim is the place at an offset that a tenant has who serves n listeners; nil where it does not have it.
func (l *ledger) claim(at, n int, tenant uint64) (*workerPlace, []servingPlace) {
	from, size := (at-unitsAt)/unitSize, unitsOf(n)
	if at < unitsAt || (at-unitsAt)%unitSize != 0 || n < 0 || n > ledgerSize/int(unsafe.Sizeof(servingPlace{})) || from+size > units {
		return nil, nil
	}
	for i := from; i < from+size; i++ {
		if l.taken[i/64]&(1<<(i%64)) != 0 {
			return nil, nil
		}
	}
	w, serves := l.place(from, n)
	if w.tenant != tenant {
		return nil, nil
	}
	l.mark(from, size, true)
	return w, serves
}

// free gives back what worker or claim gave. The place is nobody's before it is somebody else's.
func (l *ledger) free(at, n int) {
	from := (at - unitsAt) / unitSize
	w, _ := l.place(from, n)
	atomic.StoreUint64(&w.tenant, 0)
	l.mark(from, unitsOf(n), false)
}

func (l *ledger) place(unit, n int) (*workerPlace, []servingPlace) {
	at := unsafe.Add(unsafe.Pointer(unsafe.SliceData(l.mem)), unitsAt+unit*unitSize)
	return (*workerPlace)(at), unsafe.Slice((*servingPlace)(unsafe.Add(at, unsafe.Sizeof(workerPlace{}))), n)
}

// find is the first of n free units in a row, or -1.
func (l *ledger) find(n int) int {
	for l.full < len(l.taken) && l.taken[l.full] == ^uint64(0) {
		l.full++
	}
	for i, run := l.full*64, 0; i < len(l.taken)*64; i++ {
		if l.taken[i/64]&(1<<(i%64)) != 0 {
			run = 0
		} else if run++; run == n {
			return i - n + 1
		}
	}
	return -1
}

func (l *ledger) mark(from, n int, taken bool) {
	for i := from; i < from+n; i++ {
		if taken {
			l.taken[i/64] |= 1 << (i % 64)
		} else {
			l.taken[i/64] &^= 1 << (i % 64)
			l.full = min(l.full, i/64)
		}
	}
}

// listener is the place of a key's counts, found or made; nil where there is no room.
func (l *ledger) listener(key registry.SocketKey, known map[registry.SocketKey]uint32) (*listenerPlace, uint32) {
	at, ok := known[key]
	if ok {
		return &l.listeners[at], at
	}
	if len(key.Reservation) == 0 || len(key.Reservation) > len(l.listeners[0].reservation) {
		return nil, 0
	}
	if n := len(l.freeListeners); n > 0 {
		at, l.freeListeners = l.freeListeners[n-1], l.freeListeners[:n-1]
	} else if at = l.head.listeners; at < mostListeners {
		l.head.listeners++
	} else {
		return nil, 0
	}
	p := &l.listeners[at]
	*p = listenerPlace{index: uint32(key.Index)}
	copy(p.reservation[:], key.Reservation)
	p.length = uint8(len(key.Reservation))
	return p, at
}

func (l *ledger) freeListener(at uint32) {
	l.listeners[at].length = 0
	l.freeListeners = append(l.freeListeners, at)
}
