package handoff

import (
	"sync/atomic"

	"github.com/portd/portd/internal/wire"
	"golang.org/x/sys/unix"
)

// Connections that portd has accepted and not sent are in its hands, each in a place of the ledger. Which message is in flight stands in the
// journal of its engine from before it is sent until its descriptors are closed, so that a successor can tell what became of each
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
	// What is counted where it has been sent, as it was before. Of its listener's counts nobody knows that beforehand where several engines
	// add to them.
	sent, servingSent, handedOver, redelivered uint64

	worker   uint64 // tenant of its place; 0 where it is not in the ledger
	at       uint32 // its place
	serves   uint32 // how many
	serving  uint32 // number
	listener uint32 // place of the listener plus one
	n        uint32
	hands    [perMessage]uint32
	open     uint32 // 1: handedOver and redelivered are still to be known
}

// base says how much its listener had counted before the message, from then on until it is settled by the only one who adds to that.
func (j *journal) base(c *counts) {
	if j.open != 0 {
		j.handedOver, j.redelivered = c.handedOver, c.redelivered
		atomic.StoreUint32(&j.open, 0)
	}
}

// A seat is where an engine writes down what it is about to do.
type seat struct {
	*ledger
	accepting     *uint32 // place plus one of the listener that a connection is just being accepted from
	acceptingFrom *uint64 // incarnation, and descriptor plus one of the socket
	journal       *journal
	open          uint32 // 1: there are others
}

// seat is the engine's of that number, of so many; others have been, and will be, where there are fewer now.
func (l *ledger) seat(number, of int) seat {
	if l == nil {
		return seat{}
	}
	s := seat{ledger: l, accepting: &l.head.accepting, acceptingFrom: &l.head.acceptingFrom, journal: &l.head.journal}
	if number > 0 {
		o := &l.head.others[number-1]
		s.accepting, s.acceptingFrom, s.journal = &o.accepting, &o.acceptingFrom, &o.journal
	}
	if of > 1 {
		s.open = 1
	}
	return s
}

// seats are all that there may be.
func (l *ledger) seats() (all [MostAcceptors]seat) {
	for i := range all {
		all[i] = l.seat(i, 1)
	}
	return all
}

// accepts notes that a connection is about to come into portd's hands; it is undone by holds, or by nil where none has come.
func (s *seat) accepts(from *socket) {
	switch {
	case s.ledger == nil:
	case from == nil:
		atomic.StoreUint32(s.accepting, 0)
	default:
		*s.acceptingFrom = uint64(s.incarnation)<<32 | uint64(from.fd+1)
		atomic.StoreUint32(s.accepting, from.of.place)
	}
}

// holds notes that fd is in portd's hands, at a place that was reserved, unless that is 0.
func (s *seat) holds(at uint32, fd int, of *listener, c *wire.Connection) {
	if s.ledger == nil {
		return
	}
	if at != 0 {
		s.note(at, fd, of.place, c, doubt{})
	}
	atomic.StoreUint32(s.accepting, 0) // or one without a place would be looked for when it is a worker's
}

// hold notes that fd is in portd's hands, and where; 0 where there is no room for that, or no ledger.
func (l *ledger) hold(fd int, of *listener, c *wire.Connection) (at uint32) {
	if l == nil {
		return 0
	}
	if at = l.vacant(); at != 0 {
		l.note(at, fd, of.place, c, doubt{})
	}
	return at
}

// vacant is a place that is nobody's, or 0.
func (l *ledger) vacant() (at uint32) {
	if n := len(l.freeHands); n > 0 {
		at, l.freeHands = l.freeHands[n-1], l.freeHands[:n-1]
		return at
	}
	if at = l.head.hands + 1; at >= mostHands {
		return 0
	}
	l.head.hands++
	return at
}

// reserve fills places with those that are nobody's, or 0.
func (l *ledger) reserve(places []uint32) {
	for i := range places {
		if places[i] = 0; l != nil {
			places[i] = l.vacant()
		}
	}
}

// unreserve gives back what was not used.
func (l *ledger) unreserve(places []uint32) {
	for _, at := range places {
		if at != 0 {
			l.freeHands = append(l.freeHands, at)
		}
	}
}

// note notes that fd, of the listener whose place plus one it is, is in our hands.
func (l *ledger) note(at uint32, fd int, of uint32, c *wire.Connection, d doubt) {
	h := &l.hands[at]
	h.listener, h.flags, h.accepted, h.doubt = of, c.Flags, c.Accepted, d
	h.peer, h.scope, h.port, h.family = c.Peer.IP, c.Peer.Scope, c.Peer.Port, c.Peer.Family
	atomic.StoreUint64(&h.owner, uint64(l.incarnation)<<32|uint64(fd+1))
}

// keptPlaces of those for connections are left for what clients bring: nobody's clients wait because others' have no worker.
const keptPlaces = mostHands / 16

// scarce says whether no more than those are free.
func (l *ledger) scarce() bool {
	return l != nil && mostHands-1-int(l.head.hands)+len(l.freeHands) <= keptPlaces
}

// let notes that the connection at a place is not in portd's hands any more.
func (l *ledger) let(at uint32) {
	if at != 0 {
		atomic.StoreUint64(&l.hands[at].owner, 0)
		l.freeHands = append(l.freeHands, at)
	}
}

// intend notes the message that is about to be sent: the first n of hands.
func (s *seat) intend(of *listener, to *serving, n int, hands *[perMessage]uint32) {
	w := to.worker
	if s.ledger == nil {
		return
	}
	j := s.journal
	j.sent, j.servingSent, j.open = w.sent, to.sent, s.open
	if s.open == 0 {
		j.handedOver, j.redelivered = of.handedOver, of.redelivered
	}
	j.worker, j.at, j.serves, j.serving, j.listener = w.tenant, uint32(w.at), uint32(len(w.serves)), to.number, of.place
	j.n, j.hands = uint32(n), *hands
	atomic.StoreUint64(&j.sequence, w.sequence+1)
}

// landed notes that the message has been sent, and is about to be counted.
func (s *seat) landed(of *listener) {
	if s.ledger != nil {
		s.journal.base(of.counts)
	}
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
func (s *seat) settled(sent int, hands *[perMessage]uint32) {
	if s.ledger == nil {
		return
	}
	for _, at := range hands[:sent] {
		s.let(at)
	}
	atomic.StoreUint64(&s.journal.sequence, 0)
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
	for _, s := range l.seats() {
		if j := s.journal; j.sequence != 0 {
			for _, at := range j.hands[:min(j.n, perMessage)] {
				flying[at] = true
			}
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
