package handoff

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/portd/portd/internal/registry"
	"github.com/portd/portd/internal/wire"
)

// Draining is giving a worker no more connections of a listener, while it finishes what it has. The worker says so itself, or somebody
// says it for it; then it is told, and ends as it sees fit.

// A Drain says which workers take no more connections of a reservation.
type Drain struct {
	Reservation string
	Endpoints   string        // of the reservation, for people
	Workers     []string      // only these; empty: all
	Generation  *string       // only of this generation
	Except      *string       // only of others than this one, the successors'
	Ready       int           // of the successors must be ready before
	Within      time.Duration // or else they are drained themselves; 0: a minute
	Wait        time.Duration // how long to wait until nothing lies in the queues of those drained
}

// Drained is what became of a Drain.
type Drained struct {
	Workers []Worker            // those drained, as they are now
	Without []registry.Endpoint // those of the reservation that listen and that no worker is ready for
}

const successorsTime = time.Minute

// Drain drains workers, and tells them. Where successors are to be ready first and are not in time it drains these, and the
// error is a *registry.UnsupportedError with the code NOT_READY; a worker that is not there is an ErrNotFound. An end of ctx changes nothing
// more.
func (p *Pool) Drain(ctx context.Context, d Drain) (out Drained, err error) {
	var chosen []*draining
	if d.Within <= 0 {
		d.Within = successorsTime
	}
	err = p.await(ctx, d.Within, func(last bool) (bool, error) {
		if d.Except != nil && d.Ready > 0 {
			if n := p.readyOf(d.Reservation, *d.Except); n < d.Ready {
				if !last {
					return false, nil
				}
				return false, p.rollBack(d, n)
			}
		}
		var err error
		chosen, err = p.choose(d)
		for _, c := range chosen {
			p.drain(c)
		}
		return err == nil, err
	})
	if err != nil {
		return Drained{}, err
	}
	err = p.await(ctx, d.Wait, func(last bool) (bool, error) {
		done := true
		out = Drained{Without: p.without(d.Reservation)}
		for _, c := range chosen {
			done = c.look(p) && done
			out.Workers = append(out.Workers, c.seen)
		}
		return done || last, nil
	})
	return out, err
}

// rollBack drains the successors, who came too late.
func (p *Pool) rollBack(d Drain, ready int) error {
	chosen, err := p.choose(Drain{Reservation: d.Reservation, Generation: d.Except})
	if err != nil {
		return err
	}
	for _, c := range chosen {
		p.drain(c)
	}
	why := fmt.Sprintf("%d of %d workers of generation %q were ready after %v; they are drained, and the others go on as before",
		ready, d.Ready, *d.Except, d.Within)
	if without := p.without(d.Reservation); len(without) > 0 {
		why += fmt.Sprintf(", but no worker is ready for %v", without[0])
	}
	return &registry.UnsupportedError{What: "drain the workers of " + d.Endpoints, Why: why, Code: "NOT_READY"}
}

// draining is a worker that is drained.
type draining struct {
	worker *worker
	of     []*serving // of the reservation
	seen   Worker     // when it was there last
}

// choose finds the workers that d means.
func (p *Pool) choose(d Drain) (chosen []*draining, err error) {
	missing := slices.Clone(d.Workers)
	for _, w := range p.workers {
		c := &draining{worker: w}
		for _, s := range w.serves {
			if !s.gone && !s.socket && s.listener.key.Reservation == d.Reservation {
				c.of = append(c.of, s)
			}
		}
		if len(c.of) == 0 {
			continue
		}
		missing = slices.DeleteFunc(missing, func(id string) bool { return id == w.id })
		switch {
		case len(d.Workers) > 0 && !slices.Contains(d.Workers, w.id):
		case d.Generation != nil && w.generation != *d.Generation:
		case d.Except != nil && w.generation == *d.Except:
		default:
			chosen = append(chosen, c)
		}
	}
	if len(missing) > 0 {
		return nil, fmt.Errorf("no worker of %s has the id %s: %w", d.Endpoints, strings.Join(missing, ", "), registry.ErrNotFound)
	}
	slices.SortFunc(chosen, func(a, b *draining) int { return a.worker.attached.Compare(b.worker.attached) })
	return chosen, nil
}

// drain gives a worker no more connections, and tells it.
func (p *Pool) drain(c *draining) {
	for _, s := range c.of {
		if s.state != Draining {
			p.tell(s.worker, wire.AppendDrain(nil, s.number))
			p.change(s, wire.TypeDrain)
		}
	}
	p.checkDrained(c.worker)
	c.seen = p.seen(c.worker)
	p.log.Info("worker is drained", "worker", c.worker.id, "pid", c.worker.caller.PID, "endpoint", c.of[0].endpoint)
}

// look brings c.seen up to date and says whether nothing lies in its queue any more: it has left, or is drained, or has said
// that it goes on.
func (c *draining) look(p *Pool) (done bool) {
	if c.worker.gone {
		for i := range c.seen.Listeners {
			c.seen.Listeners[i].Drained = true
		}
		return true
	}
	c.seen = p.seen(c.worker)
	return !slices.ContainsFunc(c.of, func(s *serving) bool { return s.owes })
}

// readyOf is how many workers of a generation get connections of a reservation.
func (p *Pool) readyOf(reservation, generation string) (n int) {
	for _, w := range p.workers {
		if w.generation == generation && slices.ContainsFunc(w.serves, func(s *serving) bool {
			return s.listener.key.Reservation == reservation && s.ready()
		}) {
			n++
		}
	}
	return n
}

// ready says whether s gets connections as soon as there is room.
func (s *serving) ready() bool { return s.state == Ready && !s.socket && !s.gone && !s.worker.stuck }

// without are the endpoints of a reservation that no worker is ready for.
func (p *Pool) without(reservation string) (out []registry.Endpoint) {
	for key, l := range p.listeners {
		if key.Reservation == reservation && l.listening && !slices.ContainsFunc(l.workers, (*serving).ready) {
			out = append(out, l.endpoint)
		}
	}
	slices.SortFunc(out, func(a, b registry.Endpoint) int { return strings.Compare(a.String(), b.String()) })
	return out
}

// await asks until it is answered with true or an error: once now, whenever workers change, and a last time when d has passed, unless ctx
// ends before. It asks with the lock.
func (p *Pool) await(ctx context.Context, d time.Duration, ask func(last bool) (bool, error)) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	for last := d <= 0; ; {
		done, news, err := p.askLocked(last, ask)
		if done || err != nil || last {
			return err
		}
		select {
		case <-news:
		case <-timer.C:
			last = true
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (p *Pool) askLocked(last bool, ask func(bool) (bool, error)) (done bool, news <-chan struct{}, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return false, nil, fmt.Errorf("portd is stopping: %w", registry.ErrUnavailable)
	}
	if done, err = ask(last); done || err != nil {
		return done, nil, err
	}
	if p.news == nil {
		p.news = make(chan struct{})
	}
	return false, p.news, nil
}

// changed tells who waits that a worker came, went, or is in another state.
func (p *Pool) changed() {
	if p.news != nil {
		close(p.news)
		p.news = nil
	}
}
