package handoff

import (
	"time"

	"github.com/portd/portd/internal/registry"
	"github.com/portd/portd/internal/wire"
)

// A Worker is an attachment as others see it.
type Worker struct {
	ID        string
	Caller    registry.Caller
	Command   string // as /proc had it when it attached
	Listeners []WorkerListener
	Sent      uint64 // connections sent to it
	Done      uint64 // those of them that it says it is done with
	Attached  time.Time

	Generation string  // as it calls the release or start that it belongs to
	Received   uint64  // as it says
	TakenBack  uint64  // sent to it, and gone to others, since it did not take them; not in Sent
	Stuck      bool    // it gets none until it takes what lies in its queue
	PerSecond  float64 // sent, over the last ten or so
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
	Weight   int  // its share beside others of its priority
	Priority int  // 0 is the highest
}

// Totals are a listener's counts since portd started; where it was killed or upgraded its successor goes on with them.
type Totals struct {
	Workers     int // that take connections from it
	HandedOver  uint64
	Redelivered uint64
	TakenBack   uint64             // from workers that were stuck
	Lost        uint64             // accepted and not handed to anybody, also by a portd that was killed meanwhile
	Refused     uint64             // for want of a worker, as far as portd saw them: those that had waited for one
	Reception   registry.Reception // what becomes of clients that connect now
	Held        int                // accepted, and in portd's hands
	Waiting     int                // in the kernel's backlog at this moment; 0 for a unix socket
	PerSecond   float64            // handed over, over the last ten or so
	Waits       []WaitBucket       // from established to handed over, of a sample
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
		Generation: w.generation, TakenBack: w.takenBack, Stuck: w.stuck, PerSecond: w.rate.perSecond(time.Since(p.began)),
	}
	_, s.Received, _ = w.page.Taken()
	for _, v := range w.serves {
		if !v.gone {
			s.Listeners = append(s.Listeners, WorkerListener{
				v.listener.key, v.listener.owner, v.endpoint, v.state, v.socket, w.allowed, v.state == Draining && !v.owes,
				int(v.weight), int(v.priority),
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
	t.count(l.counts)
	t.Held, t.PerSecond, t.Waits = l.held.n+l.staged, l.rate.perSecond(time.Since(p.began)), l.sampler.waits.buckets()
	t.Waiting = p.backlog(l)
	t.Reception = l.shown
	for _, s := range l.workers {
		if !s.socket {
			t.Workers++
		}
	}
	return t
}

// Sum is what all listeners together count, those that are not there any more included; Workers, Waiting and Waits are left out.
func (p *Pool) Sum() Totals {
	p.mu.Lock()
	defer p.mu.Unlock()
	now, t := time.Since(p.began), Totals{}
	t.count(p.past)
	for _, l := range p.listeners {
		t.count(l.counts)
		t.Held += l.held.n + l.staged
		t.PerSecond += l.rate.perSecond(now)
	}
	return t
}

// count adds what was counted.
func (t *Totals) count(c *counts) {
	t.HandedOver += c.handedOver
	t.Redelivered += c.redelivered
	t.TakenBack += c.takenBack
	t.Lost += c.lost
	t.Refused += c.refused
}

// backlog is how many connections wait for somebody to accept them. The engine gets its turn between some of the sockets and the next,
// which are thousands where a range listens.
func (p *Pool) backlog(l *listener) (n int) {
	var info tcpInfo
	for i := 0; i < len(l.sockets); i++ {
		if i%64 == 63 {
			p.mu.Unlock()
			p.mu.Lock()
			if i >= len(l.sockets) {
				break
			}
		}
		n += int(info.backlog(l.sockets[i].fd))
	}
	return n
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
		w.setPatience()
		if left == 0 {
			p.detach(w, leaveQueue, "its reservation is gone: "+reason)
		}
	}
}
