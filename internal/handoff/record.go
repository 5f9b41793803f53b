package handoff

import (
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/portd/portd/internal/registry"
	"github.com/portd/portd/internal/wire"
)

// recordSize is how many connections are remembered.
const recordSize = 4096

// A Worker is an attachment as others see it.
type Worker struct {
	ID        string
	Caller    registry.Caller
	Command   string // as /proc had it when it attached
	Listeners []WorkerListener
	Sent      uint64 // connections sent to it
	Done      uint64 // those of them that it says it is done with
	Attached  time.Time

	Generation string // as it calls the release or start that it belongs to
	Received   uint64 // as it says
	TakenBack  uint64 // sent to it, and gone to others, since it did not take them; not in Sent
	Stuck      bool   // it gets none until it takes what lies in its queue
}

// A WorkerListener is what a worker has of one listener.
type WorkerListener struct {
	Key      registry.SocketKey
	Owner    registry.Principal // of the reservation
	Endpoint registry.Endpoint
	State    State
	Socket   bool // it has the socket itself
	Room     int  // messages that may wait in its queue
	Drained  bool // it is draining, and nothing that it was sent lies in its queue
}

// A Connection is one that was handed over.
type Connection struct {
	Seq         uint64 // counts them from 1 since portd started
	Key         registry.SocketKey
	Owner       registry.Principal // of the reservation
	Endpoint    registry.Endpoint  // one port, except for a redelivered one, where it may be the listener's range
	Worker      string
	PID         int32
	Peer        netip.AddrPort
	Accepted    time.Time
	Redelivered bool
}

// Totals are a listener's counts since portd started.
type Totals struct {
	Workers     int // that take connections from it
	HandedOver  uint64
	Redelivered uint64
	TakenBack   uint64 // from workers that were stuck
	Lost        uint64 // accepted and not handed to anybody
}

// record is a ring of what was handed over lately. Writing to it allocates nothing.
type record struct {
	ring [recordSize]handed
	n    uint64
}

type handed struct {
	endpoint    *registry.Endpoint
	listener    *listener
	worker      *worker
	peer        wire.Addr
	accepted    int64
	redelivered bool
}

func (r *record) add(endpoint *registry.Endpoint, l *listener, w *worker, c *wire.Connection) {
	h := &r.ring[r.n%recordSize]
	r.n++
	h.endpoint, h.listener, h.worker = endpoint, l, w
	h.peer, h.accepted, h.redelivered = c.Peer, c.Accepted, c.Flags&wire.Redelivered != 0
}

// Connections are the last ones that were handed over, the newest first.
func (p *Pool) Connections() []Connection {
	all, scopes := p.connections()
	for i, scope := range scopes {
		if scope != 0 { // names are looked up without the lock
			all[i].Peer = netip.AddrPortFrom(all[i].Peer.Addr().WithZone(zone(scope)), all[i].Peer.Port())
		}
	}
	return all
}

func (p *Pool) connections() (all []Connection, scopes []uint32) {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := min(p.record.n, recordSize)
	all, scopes = make([]Connection, n), make([]uint32, n)
	for i := range n {
		seq := p.record.n - i
		h := &p.record.ring[(seq-1)%recordSize]
		scopes[i] = h.peer.Scope
		all[i] = Connection{
			Seq: seq, Key: h.listener.key, Owner: h.listener.owner, Endpoint: *h.endpoint,
			Worker: h.worker.id, PID: h.worker.caller.PID,
			Peer: h.peer.AddrPort(), Accepted: time.Unix(0, h.accepted), Redelivered: h.redelivered,
		}
	}
	return all, scopes
}

// zone is the name of the interface that a scope id is the index of, or the index where it is gone.
func zone(scope uint32) string {
	if i, err := net.InterfaceByIndex(int(scope)); err == nil {
		return i.Name
	}
	return fmt.Sprint(scope)
}

// Workers are the attachments, in no particular order.
func (p *Pool) Workers() []Worker {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := make([]Worker, 0, len(p.workers))
	for _, w := range p.workers {
		all = append(all, p.seen(w))
	}
	return all
}

// seen is an attachment as others see it. It must not have ended.
func (p *Pool) seen(w *worker) Worker {
	s := Worker{
		ID: w.id, Caller: w.caller, Command: w.command, Attached: w.attached,
		Sent: w.sent, Done: min(w.page.Done(), w.sent),
		Generation: w.generation, TakenBack: w.takenBack, Stuck: w.stuck,
	}
	_, s.Received, _ = w.page.Taken()
	for _, v := range w.serves {
		if !v.gone {
			s.Listeners = append(s.Listeners, WorkerListener{
				v.listener.key, v.listener.owner, v.endpoint, v.state, v.socket, w.allowed, v.state == Draining && !v.owes,
			})
		}
	}
	return s
}

// Totals are the counts of a listener.
func (p *Pool) Totals(key registry.SocketKey) (t Totals) {
	p.mu.Lock()
	defer p.mu.Unlock()
	l := p.listeners[key]
	if l == nil {
		return t
	}
	t.HandedOver, t.Redelivered, t.TakenBack, t.Lost = l.handedOver, l.redelivered, l.takenBack, l.lost
	for _, s := range l.workers {
		if !s.socket {
			t.Workers++
		}
	}
	return t
}

// Released ends what workers have of a reservation, and tells them why: "released", "expired". An attachment with nothing
// left ends; what lies in its queue is still the worker's.
func (p *Pool) Released(reservation, reason string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.shared, reservation)
	for _, w := range p.workers {
		left := 0
		for _, s := range w.serves {
			if s.gone {
				continue
			}
			if s.listener.key.Reservation != reservation {
				left++
				continue
			}
			p.tell(w, wire.AppendListenerGone(nil, wire.ListenerGone{Listener: s.number, Reason: reason}))
			p.leave(s)
			s.gone = true
			if s.owes {
				s.owes = false
				w.draining--
			}
			p.forgetUnused(s.listener)
		}
		if left == 0 {
			p.detach(w, leaveQueue, "its reservation is gone: "+reason)
		}
	}
}
