package registry

import (
	"context"
	"sync"
)

// ErrHandedOver is an ErrUnavailable that says that nothing has begun: to ask again, of the portd that is there then, is safe.
var ErrHandedOver = failed(ErrUnavailable, "another portd has taken over; ask again")

// A gate lets changes in, while it is open, and knows when none is under way. The zero gate is open.
type gate struct {
	mu     sync.Mutex
	in     int
	shut   chan struct{} // closed when it opens again, or for good; nil while it is open
	over   bool          // for good
	vacant chan struct{} // closed when the last one leaves; nil where nobody waits for that
}

// enter waits until changes may be made, and lasts until leave is called. Who is in may wait for others who are, and must not
// enter once more.
func (g *gate) enter(ctx context.Context) (leave func(), err error) {
	for {
		g.mu.Lock()
		switch {
		case g.over:
			g.mu.Unlock()
			return nil, ErrHandedOver
		case g.shut == nil:
			g.in++
			g.mu.Unlock()
			return g.leave, nil
		}
		shut := g.shut
		g.mu.Unlock()
		if err := wait(ctx, shut); err != nil {
			return nil, err
		}
	}
}

func (g *gate) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.in--; g.in == 0 && g.vacant != nil {
		close(g.vacant)
		g.vacant = nil
	}
}

// close shuts the gate and waits for those who are in.
func (g *gate) close(ctx context.Context) error {
	g.mu.Lock()
	if g.shut == nil {
		g.shut = make(chan struct{})
	}
	var vacant chan struct{}
	if g.in > 0 {
		if g.vacant == nil {
			g.vacant = make(chan struct{})
		}
		vacant = g.vacant
	}
	g.mu.Unlock()
	if vacant == nil {
		return nil
	}
	return wait(ctx, vacant)
}

// open lets those in who wait, or sends them away for good.
func (g *gate) open(over bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.over = g.over || over
	if g.shut != nil {
		close(g.shut)
		g.shut = nil
	}
}

// Freeze returns when no change is under way any more, and none begins until Thaw: the Store is not written to, the Binder has what
// the Store says, and all that was answered is done. Who wants to change something waits; to look goes on. Where ctx ends
// first nothing is frozen.
func (r *Registry) Freeze(ctx context.Context) error {
	err := r.gate.close(ctx)
	if err != nil {
		r.gate.open(false)
	}
	return err
}

// Thaw ends Freeze: who waits goes on.
func (r *Registry) Thaw() { r.gate.open(false) }

// Retire ends Freeze for good, for another process has the Store: who waits, and who comes, is told ErrHandedOver, having changed
// nothing. What a Registry does by itself it no longer does either.
func (r *Registry) Retire() { r.gate.open(true) }
