package handoff

import (
	"sync/atomic"

	"github.com/portd/portd/internal/wire"
	"golang.org/x/sys/unix"
)

// Connections that portd has accepted and not sent are in its hands, each in a place of the ledger. Which message is in flight stands in the
// journal from before it is sent until its descriptors are closed, so that a successor can tell what became of each
// connection. Nothing here waits or makes a system call.

// A hand is a place for one connection.
type hand struct {
	owner    uint64 // incarnation and descriptor plus one; 0: the place is free. It is written last.
	listener uint32 // place of its listener plus one; 0: it has none
	flags    uint32
	accepted int64
	peer     [16]byte
	scope    uint32
	port     uint16
	family   wire.Family
	_        [1]byte
	doubt    doubt
}

// journal is the message in flight.
type journal struct {
	sequence uint64 // 0: none is. It is written last.
	// What is counted where it has been sent, as it was before.
	sent, servingSent, handedOver, redelivered uint64

	worker   uint64 // tenant of its place; 0 where it is not in the ledger
	at       uint32 // its place
	serves   uint32 // how many
	serving  uint32 // number
	listener uint32 // place of the listener plus one
	n        uint32
	hands    [perMessage]uint32
	_        uint32
}

// accepting notes that a connection is about to come into portd's hands; it is undone by hold, or by nil where none has come.
func (l *ledger) accepting(from *socket) {
	switch {
	case l == nil:
	case from == nil:
		atomic.StoreUint32(&l.head.accepting, 0)
	default:
		l.head.acceptingFrom = uint64(l.incarnation)<<32 | uint64(from.fd+1)
		atomic.StoreUint32(&l.head.accepting, from.of.place)
	}
}

// hold notes that fd is in portd's hands, and where; 0 where there is no room for that, or no ledger.
func (l *ledger) hold(fd int, of *listener, c *wire.Connection) (at uint32) {
	if l == nil {
		return 0
	}
	return l.note(fd, of.place, c, doubt{})
}

// note is hold by the place of a listener plus one.
func (l *ledger) note(fd int, of uint32, c *wire.Connection, d doubt) (at uint32) {
	if n := len(l.freeHands); n > 0 {
		at, l.freeHands = l.freeHands[n-1], l.freeHands[:n-1]
	} else if at = l.head.hands + 1; at < mostHands {
		l.head.hands++
	} else {
		return 0
	}
	h := &l.hands[at]
	h.listener, h.flags, h.accepted, h.doubt = of, c.Flags, c.Accepted, d
	h.peer, h.scope, h.port, h.family = c.Peer.IP, c.Peer.Scope, c.Peer.Port, c.Peer.Family
	atomic.StoreUint64(&h.owner, uint64(l.incarnation)<<32|uint64(fd+1))
	atomic.StoreUint32(&l.head.accepting, 0)
	return at
}

// let notes that the connection at a place is not in portd's hands any more.
func (l *ledger) let(at uint32) {
	if at != 0 {
		atomic.StoreUint64(&l.hands[at].owner, 0)
		l.freeHands = append(l.freeHands, at)
	}
}

// intend notes the message that is about to be sent: the first n of hands.
func (l *ledger) intend(of *listener, to *serving, n int, hands *[perMessage]uint32) {
	w := to.worker
	if l == nil {
		return
	}
	j := &l.head.journal
	j.sent, j.servingSent, j.handedOver, j.redelivered = w.sent, to.sent, of.handedOver, of.redelivered
	j.worker, j.at, j.serves, j.serving, j.listener = w.tenant, uint32(w.at), uint32(len(w.serves)), to.number, of.place
	j.n, j.hands = uint32(n), *hands
	atomic.StoreUint64(&j.sequence, w.sequence+1)
}

// regrip notes that a connection is in our hands now, as fd.
func (l *ledger) regrip(at uint32, fd int) {
	atomic.StoreUint64(&l.hands[at].owner, uint64(l.incarnation)<<32|uint64(fd+1))
}

// has says whether a connection is in our hands, as fd.
func (l *ledger) has(at uint32, fd int) bool {
	return l.hands[at].owner == uint64(l.incarnation)<<32|uint64(fd+1)
}

// settled notes that there is no message in flight any more. What was sent is not in portd's hands.
func (l *ledger) settled(sent int, hands *[perMessage]uint32) {
	if l == nil {
		return
	}
	for _, at := range hands[:sent] {
		l.let(at)
	}
	atomic.StoreUint64(&l.head.journal.sequence, 0)
}

// recount finds the places that are free.
func (l *ledger) recount() {
	l.freeHands = l.freeHands[:0]
	for at := l.head.hands; at > 0; at-- {
		if l.hands[at].owner == 0 {
			l.freeHands = append(l.freeHands, at)
		}
	}
}

// A grip is a connection that was in a portd's hands when it wrote that down last.
type grip struct {
	at          uint32 // its place
	incarnation uint32 // of that portd
	fd          int    // there
	inFlight    bool   // its message stands in the journal
	*hand
}

// inHand is what the ledger says was in hand. It changes nothing.
func (l *ledger) inHand() (all []grip) {
	flying := map[uint32]bool{}
	if j := &l.head.journal; j.sequence != 0 {
		for _, at := range j.hands[:min(j.n, perMessage)] {
			flying[at] = true
		}
	}
	for at := uint32(1); at <= min(l.head.hands, mostHands-1); at++ {
		h := &l.hands[at]
		if owner := h.owner; owner != 0 {
			all = append(all, grip{at, uint32(owner >> 32), int(uint32(owner)) - 1, flying[at], h})
		}
	}
	return all
}

// connection is what wire calls it. The local address is the listener's.
func (h *hand) connection() wire.Connection {
	return wire.Connection{
		Accepted: h.accepted, Flags: h.flags &^ counted, Peer: wire.Addr{Family: h.family, Port: h.port, Scope: h.scope, IP: h.peer},
	}
}

// drop closes a connection that is in portd's hands.
func (p *Pool) drop(h heldConn) {
	p.ledger.let(h.hand)
	closeRaw(h.fd)
}

// reset turns away a client that is in portd's hands.
func (p *Pool) reset(l *listener, h heldConn) {
	_ = unix.SetsockoptLinger(h.fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	p.drop(h)
	l.refused++
}
