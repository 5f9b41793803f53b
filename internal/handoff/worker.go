package handoff

import (
	"net"
	"time"

	"github.com/portd/portd/internal/fdbag"
	"github.com/portd/portd/internal/fdpass"
	"github.com/portd/portd/internal/registry"
	"github.com/portd/portd/internal/wire"
	"golang.org/x/sys/unix"
)

// A worker is one attachment.
type worker struct {
	id       string
	token    []byte
	caller   registry.Caller
	command  string
	attached time.Time
	conn     *net.UnixConn

	generation string // as the worker calls it

	*workerPlace     // what changes, in the ledger
	at           int // there; 0: in ordinary memory

	queue, kept int        // our end, and a duplicate of the worker's; -1 where that is in the bag only
	bag         *fdbag.Bag // nil where it has none
	name        string     // of the bag, to the keeper
	mine        uint64     // the tenant that it is, whoever has the place now
	loans       []loan     // what it was lent, where its session does not know
	slot        int32
	mem         []byte
	page        wire.Page
	allowed     int  // messages that may wait
	room        bool // for one message at least
	flying      bool // one of several engines hands something over to it
	heard       bool // of its queue, meanwhile

	rate rate // of connections sent

	progress progress

	serves   []*serving
	draining int // how many of serves still owe a DRAINED
	gone     bool
}

// A serving is a worker's standing at one listener.
type serving struct {
	*servingPlace
	worker   *worker
	listener *listener
	number   uint32
	endpoint registry.Endpoint
	socket   bool // it has the socket itself
	lent     []registry.Socket

	// Its place in the choice: see pick.go and sticky.go.
	weight   uint16
	priority uint8
	level    *level // nil where it is no choice
	at       int    // in the level's heap; -1: not there
	turn     uint64
	placed   bool           // in the level's slots
	flew     bool           // it was not there since its worker was in flight
	staged   fifo[heldConn] // wait for it
	due      bool           // is in the listener's due
}

// State says whether a worker takes connections.
type State uint8

const (
	Attached State = iota + 1 // not ready yet
	Ready
	Draining // takes no more
)

// hasRoom notes that w's queue takes a message.
func (p *Pool) hasRoom(w *worker) {
	if w.flying {
		w.heard = true
		return
	}
	if !p.livesAgain(w) {
		return
	}
	w.room = true
	p.offerAll(w)
	p.checkDrained(w)
}

// sent counts a message of n connections that is on its way.
func (e *engine) sent(l *listener, to *serving, n int) {
	p, o, w := e.pool, &e.out, to.worker
	w.sequence++
	w.sent += uint64(n)
	to.sent += uint64(n)
	w.fewer = max(0, w.fewer-1)
	w.page.Sent(w.sent, w.sequence)
	l.charge(to, n)
	l.handedOver += uint64(n)
	l.rate.add(o.since, n)
	w.rate.add(o.since, n)
	for i := range n {
		if o.conns[i].Flags&wire.Redelivered != 0 {
			l.redelivered++
		}
		p.record.add(o.at[i], l, w, &o.conns[i])
	}
	p.record.due()
	p.expect(w)
}

// What becomes of a queue whose worker is let go.
const (
	redeliver  = true  // to others
	leaveQueue = false // to the worker, which reads it to its end
)

// detach ends an attachment. The session that reads its connection does the rest: see session.
func (p *Pool) detach(w *worker, takeBack bool, why string) {
	if w.gone {
		return
	}
	w.gone, w.standing = true, released
	if takeBack {
		w.standing = leaving
	}
	if len(p.doubts) > 0 {
		p.decide(w)
	}
	delete(p.workers, w.id)
	p.unwatch(w.queue, w.slot)
	for _, s := range w.serves {
		p.leave(s)
	}
	back, whole := 0, true
	if takeBack {
		_, back, whole = p.takeBack(w)
	}
	// Others may have both; who reads what lies in the queue still comes to its end (unix(7), SOCK_SEQPACKET).
	_ = unix.Shutdown(w.queue, unix.SHUT_RDWR)
	closeRaw(w.queue)
	p.hangUp(w.conn)
	if whole {
		p.forget(w)
	} else {
		p.log.Error("cannot take all connections back from a worker that is gone; they wait", "worker", w.id, "err", p.missing())
		p.adoptOrphan(w)
	}
	_ = unix.Munmap(w.mem)
	w.page = wire.Page{}
	for _, s := range w.serves {
		p.forgetUnused(s.listener)
	}
	p.changed()
	p.log.Info("worker left", "worker", w.id, "pid", w.caller.PID, "why", why, "taken_back", back)
}

// leave takes s out of its listener's choice. What waited for it is anybody's.
func (p *Pool) leave(s *serving) {
	if s.socket && !s.gone {
		s.listener.borrowers--
	}
	p.unstage(s)
	s.listener.exit(s)
	p.attend(s.listener)
}

func (w *worker) serving(number uint32) *serving {
	if int(number) >= len(w.serves) {
		return nil
	}
	return w.serves[number]
}

// checkDrained sends the DRAINEDs that are due.
func (p *Pool) checkDrained(w *worker) {
	if w.draining == 0 || p.inDoubt(w) {
		return
	}
	empty := w.stuck || !waiting(w.queue)
	taken, _, known := w.page.Taken()
	for _, s := range w.serves {
		if s.owes && (empty || known && taken >= s.drainSeq) {
			s.owes = false
			w.draining--
			p.changed()
			p.tell(w, wire.AppendDrained(nil, wire.Drained{Listener: s.number, Sent: s.sent}))
		}
	}
}

// tell sends a message to the worker without ever waiting for it. One that does not read its few messages is let go: the
// session notices that its connection is closed.
func (p *Pool) tell(w *worker, message []byte, fds ...int) {
	raw, err := w.conn.SyscallConn()
	if err != nil {
		return
	}
	var out fdpass.Sender
	var sendErr error
	err = raw.Control(func(fd uintptr) { sendErr = out.Send(int(fd), message, fds) })
	if err != nil || sendErr != nil {
		p.hangUp(w.conn)
	}
}
