package handoff

import (
	"net"
	"time"

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

	queue, kept int // our end, and a duplicate of the worker's
	slot        int32
	mem         []byte
	page        wire.Page
	allowed     int  // messages that may wait
	room        bool // for one message at least
	sequence    uint64
	sent        uint64 // connections, less those that were taken back

	rate rate // of connections sent

	progress  progress
	stuck     bool // leaves what it was sent in its queue, where a probe lies now
	takenBack uint64
	fewer     int // connections in its next message, than otherwise: it had no descriptors for the last one

	serves   []*serving
	draining int // how many of serves still owe a DRAINED
	gone     bool
}

// A serving is a worker's standing at one listener.
type serving struct {
	worker   *worker
	listener *listener
	number   uint32
	endpoint registry.Endpoint
	socket   bool // it has the socket itself
	lent     []registry.Socket
	state    State
	sent     uint64
	drainSeq uint64 // once this message has been taken, nothing waits
	owes     bool   // a DRAINED
	gone     bool

	// Its place in the choice: see pick.go and sticky.go.
	weight   uint16
	priority uint8
	level    *level // nil where it is no choice
	at       int    // in the level's heap; -1: not there
	turn     uint64
	placed   bool           // in the level's slots
	seed     uint64         // there
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
	if !p.livesAgain(w) {
		return
	}
	w.room = true
	for _, s := range w.serves {
		if s.state == Ready {
			p.offer(s)
		}
	}
	p.checkDrained(w)
}

// sent counts a message that is on its way.
func (p *Pool) sent(l *listener, to *serving, conns []wire.Connection) {
	w, n := to.worker, uint64(len(conns))
	w.sequence++
	w.sent += n
	to.sent += n
	w.fewer = max(0, w.fewer-1)
	w.page.Sent(w.sent, w.sequence)
	w.room = w.allowed > 1 && writable(w.queue)
	l.charge(to, len(conns))
	l.handedOver += n
	l.rate.add(p.out.since, len(conns))
	w.rate.add(p.out.since, len(conns))
	for i := range conns {
		if conns[i].Flags&wire.Redelivered != 0 {
			l.redelivered++
		}
		p.record.add(p.out.at[i], l, w, &conns[i])
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
	w.gone = true
	delete(p.workers, w.id)
	p.unwatch(w.queue, w.slot)
	for _, s := range w.serves {
		p.leave(s)
	}
	back, whole := 0, true
	if takeBack {
		_, back, whole = p.takeBack(w)
	}
	closeRaw(w.queue)
	if whole {
		closeRaw(w.kept)
	} else {
		p.log.Error("out of descriptors while taking connections back from a dead worker; they wait", "worker", w.id)
		p.adoptOrphan(w)
	}
	_ = unix.Munmap(w.mem)
	w.page = wire.Page{}
	for _, s := range w.serves {
		p.forgetUnused(s.listener)
	}
	_ = w.conn.Close()
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
	if w.draining == 0 {
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
		_ = w.conn.Close()
	}
}
