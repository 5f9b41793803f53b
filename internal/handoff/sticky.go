package handoff

import (
	"syscall"

	"github.com/portd/portd/internal/registry"
	"github.com/portd/portd/internal/wire"
)

// Where the client's address decides, the worker is known only once the connection has been accepted. So a few are accepted while any
// worker has room, and each waits in portd's hands for its own. They are bounded: when so many wait for workers without room, the others
// wait in the backlog again, behind them. A kill of portd loses those that wait here.

const (
	mostStaged = 64 // of a listener
	stagedOnce = 4 * perMessage
)

// assign hands over what it can of the connections of a listener whose clients have a worker each, a few messages at most. It says whether
// anything has happened: if not, the next room brings the listener back.
func (e *engine) assign(l *listener) (moved bool, out syscall.Errno) {
	moved, out = e.stage(l)
	for n := l.due.n; n > 0 && l.due.n > 0; n-- { // other engines may be at it
		to := l.due.pop()
		to.due = false
		if to.staged.n == 0 || !to.takes() {
			continue
		}
		moved = true
		err := e.handOver(l, to)
		l.expect(to)
		if err != 0 {
			return true, err
		}
	}
	return moved, out
}

// stage accepts connections, and gives each to its worker to be sent.
func (e *engine) stage(l *listener) (moved bool, out syscall.Errno) {
	for n := 0; n < stagedOnce && l.held.n > 0; n++ {
		to := l.target(&l.held.first().conn.Peer)
		if to == nil {
			return moved, 0
		}
		l.put(to, l.held.pop())
		moved = true
	}
	if l.held.n > 0 || l.ready.n == 0 || l.pick() == nil {
		return moved, 0
	}
	o := &e.out
	o.begin(e.pool.began)
	most := mostStaged
	if e.pool.ledger.scarce() {
		most = perMessage
	}
	for n := 0; n < stagedOnce && l.ready.n > 0 && l.staged < most && out == 0; n++ {
		s := l.ready.peek()
		hand := o.hands[:1]
		e.pool.ledger.reserve(hand)
		var c wire.Connection
		var fd int
		var dry bool
		if fd, dry, out = e.acceptOne(s, &c, hand[0]); fd < 0 {
			e.pool.ledger.unreserve(hand)
			if dry {
				e.pool.dry(s, s.edges)
			}
			continue
		}
		moved = true
		h := heldConn{fd, c, &s.endpoint, hand[0]}
		if to := l.target(&c.Peer); to != nil {
			l.put(to, h)
		} else {
			l.held.push(h)
		}
	}
	l.turn()
	return moved, out
}

// target is the worker that clients of an address have; nil where none is ready.
func (l *listener) target(a *wire.Addr) *serving {
	if a.Family != wire.FamilyIPv4 && a.Family != wire.FamilyIPv6 { // a client without an address may have any
		return l.pick()
	}
	for _, v := range l.levels {
		if v.slots == nil {
			v.slots = newSlots()
			for _, s := range l.workers {
				if s.level == v && s.ready() {
					v.slots.add(s)
				}
			}
		}
		if s := v.slots.of(a); s != nil {
			return s
		}
	}
	return nil
}

func (l *listener) put(to *serving, h heldConn) {
	to.staged.push(h)
	l.staged++
	l.expect(to)
}

// expect notes that s is to be sent something, if it is.
func (l *listener) expect(s *serving) {
	if s.staged.n > 0 && !s.due && s.takes() {
		s.due = true
		l.due.push(s)
	}
}

// unstage takes back what waits for s, who is not to have it: it was not sent yet, and is somebody else's.
func (p *Pool) unstage(s *serving) {
	if s.staged.n > 0 {
		s.listener.unstage(s)
		p.enqueue(s.listener)
		p.wakeUp()
	}
}

func (l *listener) unstage(s *serving) {
	for s.staged.n > 0 {
		l.held.push(s.staged.pop())
		l.staged--
	}
}

// sticky says whether a client's address decides who gets it.
func (l *listener) sticky() bool { return l.options.Strategy == registry.ClientAddress }
