package handoff

import (
	"context"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/portd/portd/internal/registry"
	"github.com/portd/portd/internal/wire"
)

const (
	// recordSize is how many connections are remembered whatever has become of them; a power of two. Each time that half of them are new
	// those that are still open are sorted out, before others take their places.
	recordSize = 1 << 15
	// maxKept is how many open ones before them are remembered.
	maxKept = 1 << 17
)

// record is a ring of what was handed over lately. Writing to it allocates nothing.
type record struct {
	ring  []handed // of recordSize, unless a test has less
	n     uint64   // the Seq of the newest
	swept uint64   // of the newest that was looked at: what was open of those up to it is in kept
	// kept are those that were open when they were last looked at, the newest first. It is replaced and never changed.
	kept  []entry
	sweep chan struct{} // tells the sweeper
	asked bool          // it has been told
}

func newRecord(size int) record {
	return record{ring: make([]handed, size), sweep: make(chan struct{}, 1)}
}

// A handed is one connection that was handed over.
type handed struct {
	endpoint    *registry.Endpoint // of its port alone; never changes
	listener    *listener
	worker      *worker
	accepted    int64
	peer        [16]byte // as wire.Addr has it
	scope       uint32
	port        uint16
	family      wire.Family
	redelivered bool
}

func (r *record) add(endpoint *registry.Endpoint, l *listener, w *worker, c *wire.Connection) {
	r.n++
	h := r.at(r.n)
	h.endpoint, h.listener, h.worker, h.accepted = endpoint, l, w, c.Accepted
	h.peer, h.scope, h.port, h.family = c.Peer.IP, c.Peer.Scope, c.Peer.Port, c.Peer.Family
	h.redelivered = c.Flags&wire.Redelivered != 0
}

func (r *record) at(seq uint64) *handed { return &r.ring[(seq-1)&uint64(len(r.ring)-1)] }

// due has the sweeper called where it is time for that. It is asked once per message.
func (r *record) due() {
	if r.n-r.swept >= uint64(len(r.ring)/2) && !r.asked {
		r.asked = true
		r.sweep <- struct{}{}
	}
}

func (h *handed) peerAddr() netip.AddrPort {
	return wire.Addr{Family: h.family, Port: h.port, IP: h.peer}.AddrPort()
}

// mapped is the peer's address, IPv4 within IPv6.
func (h *handed) mapped() [16]byte {
	if h.family != wire.FamilyIPv4 {
		return h.peer
	}
	ip := [16]byte{10: 0xff, 11: 0xff}
	copy(ip[12:], h.peer[:4])
	return ip
}

// atOnce is how many records are read while the engine waits for that: some microseconds.
const atOnce = 512

// remembered are the records that there are after one, the newest first, and the Seq of the newest. With after 0 those that are kept come
// behind the ring's.
func (p *Pool) remembered(after uint64) (all []entry, newest uint64) {
	p.mu.Lock()
	newest = p.record.n
	p.mu.Unlock()
	for seq := newest; seq > after; {
		p.mu.Lock()
		oldest := max(after, p.record.n-min(p.record.n, uint64(len(p.record.ring)))) + 1
		if all == nil {
			all = make([]entry, 0, newest+1-min(oldest, newest)+uint64(len(p.record.kept)))
		}
		for n := 0; n < atOnce && seq >= oldest; n++ {
			all = append(all, entry{handed: *p.record.at(seq), seq: seq})
			seq--
		}
		if seq < oldest {
			if after == 0 {
				at, _ := slices.BinarySearchFunc(p.record.kept, seq, func(e entry, seq uint64) int { return int(seq) - int(e.seq) })
				all = append(all, p.record.kept[at:]...)
			}
			seq = after
		}
		p.mu.Unlock()
	}
	return all, newest
}

// sweeper sorts out what is open, each time that the engine has handed over so many, until ctx ends.
func (p *Pool) sweeper(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-p.record.sweep:
			p.sweepRecord(ctx)
		}
	}
}

func (p *Pool) sweepRecord(ctx context.Context) {
	p.mu.Lock()
	swept, kept := p.record.swept, p.record.kept
	p.mu.Unlock()
	fresh, newest := p.remembered(swept)
	v, err := p.match(ctx, &survey{entries: append(fresh, kept...)}, newest, false)
	if err != nil {
		return
	}
	if v.blind != nil {
		p.log.Debug("some connections cannot be looked at; they are forgotten in their turn", "err", v.blind)
	}
	open := slices.DeleteFunc(v.entries, func(e entry) bool { return e.kernel < 0 })
	open = slices.Clone(open[:min(len(open), maxKept)])
	p.mu.Lock()
	defer p.mu.Unlock()
	p.record.swept, p.record.kept, p.record.asked = newest, open, false
}

// surveys is the last survey that somebody reads page by page.
type surveys struct {
	mu     sync.Mutex
	last   *survey
	forget *time.Timer
}
