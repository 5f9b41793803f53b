package handoff

import (
	"sync/atomic"

	"github.com/portd/portd/internal/wire"
)

// What the ledger says for the case that portd is killed and a holder has its descriptors: see rescue.go.

// holding is the process that shares the table of descriptors of an incarnation.
type holding struct{ incarnation, pid uint32 }

// begin counts another portd, whose holder is given, that writes to the ledger.
func (l *ledger) begin(holder uint32) {
	next := l.head.incarnation + 1
	l.head.holders[next%uint32(len(l.head.holders))] = holding{next, holder}
	atomic.StoreUint32(&l.head.incarnation, next)
	l.incarnation = next
}

// holderOf is the pid of an incarnation's holder; 0 where it had none, or it is not known any more.
func (l *ledger) holderOf(incarnation uint32) uint32 {
	if h := l.head.holders[incarnation%uint32(len(l.head.holders))]; h.incarnation == incarnation {
		return h.pid
	}
	return 0
}

// Holder says which process shares this one's table of descriptors from now on; 0: none.
func (p *Pool) Holder(pid int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.holder = uint32(pid)
	if l := p.ledger; l != nil && !p.suspended && l.incarnation == l.head.incarnation {
		l.head.holders[l.incarnation%uint32(len(l.head.holders))] = holding{l.incarnation, p.holder}
	}
}

// A doubt is whose a connection is that portd has a descriptor of: it is the worker's that is the tenant if that has been sent the message
// of this sequence, or has it, and portd's otherwise.
type doubt struct {
	tenant   uint64
	sequence uint64 // 0: there is no doubt. It is written last.
}

// doubts notes whose the connection at a place may be.
func (l *ledger) doubts(at uint32, tenant, sequence uint64) {
	if at == 0 || l == nil || sequence == 0 && l.hands[at].doubt.sequence == 0 {
		return
	}
	d := &l.hands[at].doubt
	atomic.StoreUint64(&d.sequence, 0)
	d.tenant = tenant
	atomic.StoreUint64(&d.sequence, sequence)
}

// reach is hold of what may be a worker's yet.
func (l *ledger) reach(fd int, of *listener, c *wire.Connection, d doubt) (at uint32) {
	again := *c
	again.Flags |= wire.Redelivered | counted
	if at = l.vacant(); at != 0 {
		l.note(at, fd, of.place, &again, d)
	}
	return at
}

// counted is, in a hand's flags, of a connection that is still counted as sent to the tenant of its doubt.
const counted = 1 << 31

// retaking notes that a message is about to be taken out of the queue of a worker, whose connections are all at hands, in doubt. Another one may
// come in its place, if the worker is faster; so until retaken a connection in this portd's table of which there are two descriptors, or
// that stands nowhere, is portd's.
func (l *ledger) retaking(tenant uint64, hands []uint32, n int) {
	if l == nil || len(hands) < n {
		return
	}
	for _, at := range hands {
		if at == 0 {
			return
		}
	}
	l.head.retakingFrom = tenant
	atomic.StoreUint64(&l.head.retaking, uint64(l.incarnation))
}

func (l *ledger) retaken() {
	if l != nil {
		atomic.StoreUint64(&l.head.retaking, 0)
	}
}

// certain notes that a connection is in portd's hands and nobody else's.
func (l *ledger) certain(at uint32) {
	if at != 0 && l != nil {
		l.doubts(at, l.hands[at].doubt.tenant, 0)
	}
}

// uncounted notes that nobody counts a connection as sent any more.
func (l *ledger) uncounted(at uint32) {
	if at != 0 && l != nil {
		l.hands[at].flags &^= counted
	}
}
