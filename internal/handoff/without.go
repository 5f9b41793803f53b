package handoff

import (
	"context"
	"slices"
	"time"

	"github.com/portd/portd/internal/registry"
	"golang.org/x/sys/unix"
)

// What becomes of clients while a listener has no worker. The engine never waits for the sockets that this takes: whoever has changed
// something calls, and a goroutine of its own goes to the door. A worker that attaches finds it open when it is told that it has: who is
// arriving counts already.

// A Doorkeeper lets clients of a key's sockets in or keeps them out, while to everybody else they go on listening. A key that does not
// listen is no error. *binder.Binder is one.
type Doorkeeper interface {
	Admit(key registry.SocketKey) error
	// Refuse resets who was connected and waited to be accepted, and says how many those were.
	Refuse(key registry.SocketKey) (reset int, err error)
	Park(key registry.SocketKey) error
}

// afterFailure is how long a door is left alone that could not be turned.
const afterFailure = time.Second

// hasWorker says whether somebody serves l's clients, or is about to.
func (l *listener) hasWorker() bool {
	return l.arriving+l.borrowers > 0 || slices.ContainsFunc(l.workers, func(s *serving) bool { return s.state == Ready && !s.gone })
}

// reception is what is to become of clients now.
func (l *listener) reception(now time.Time) registry.Reception {
	o := l.options
	switch {
	case l.hasWorker(), slices.ContainsFunc(l.sockets, func(s *socket) bool { return s.adopted }):
		return registry.Served
	case o.WithoutWorker == registry.Refuse, o.RefuseAfter > 0 && now.Sub(l.alone) >= o.RefuseAfter:
		return registry.Refusing
	case o.WithoutWorker == registry.Park:
		return registry.Parking
	}
	return registry.Waiting
}

// attend is called when l's workers or options are others than before.
func (p *Pool) attend(l *listener) {
	if !l.listening || p.closed {
		return
	}
	if p.cfg.Doors == nil {
		if l.shown = registry.Waiting; l.hasWorker() {
			l.shown = registry.Served
		}
		return
	}
	now := time.Now()
	if l.hasWorker() {
		l.alone = time.Time{}
	} else if l.alone.IsZero() {
		l.alone = now
	}
	l.wait()
	want := l.reception(now)
	if want == l.door || want <= registry.Waiting && l.door != 0 && l.door <= registry.Waiting {
		l.door, l.shown = want, want // waiting and served are the same to the kernel
		if after := l.options.RefuseAfter; want != registry.Served && want != registry.Refusing && after > 0 {
			l.timer = p.callAfter(l.key, max(0, after-now.Sub(l.alone)))
		}
		return
	}
	p.call(l.key)
}

// wait ends what l was waiting for at the door.
func (l *listener) wait() {
	if l.timer != nil {
		l.timer.Stop()
		l.timer = nil
	}
}

// call calls the doorman.
func (p *Pool) call(key registry.SocketKey) {
	p.callers[key] = struct{}{}
	select {
	case p.bell <- struct{}{}:
	default: // it rings already
	}
}

func (p *Pool) callAfter(key registry.SocketKey, d time.Duration) *time.Timer {
	return time.AfterFunc(d, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.call(key)
	})
}

// doorman turns doors until ctx ends.
func (p *Pool) doorman(ctx context.Context) {
	for {
		select {
		case <-p.bell:
		case <-ctx.Done():
			return
		}
		p.mu.Lock()
		callers := p.callers
		p.callers = make(map[registry.SocketKey]struct{})
		p.mu.Unlock()
		for key := range callers {
			p.settle(key)
		}
	}
}

// settle returns when what becomes of the key's clients is what is to become of them, or cannot be made so for now.
func (p *Pool) settle(key registry.SocketKey) {
	if p.cfg.Doors == nil {
		return
	}
	p.doors.Lock()
	defer p.doors.Unlock()
	for p.settleOnce(key) {
	}
}

// mayTurnDoors says whether doors are this Pool's to turn. Until it has taken over from a portd before, whose workers may be there still, and
// while it is suspended, they are not; then all are looked at.
func (p *Pool) mayTurnDoors() bool { return !p.suspended && (p.begun || p.cfg.Keep == nil) }

// settleOnce says whether to look again. It does not hold the lock while the door is turned, so nothing may be as it was then.
func (p *Pool) settleOnce(key registry.SocketKey) (again bool) {
	p.mu.Lock()
	l := p.listeners[key]
	if l == nil || !l.listening || p.closed || !p.mayTurnDoors() {
		p.mu.Unlock()
		return false
	}
	want, had := l.reception(time.Now()), l.door
	if want == had || want <= registry.Waiting && had != 0 && had <= registry.Waiting {
		p.attend(l)
		p.mu.Unlock()
		return false
	}
	l.door = 0 // until it is known
	if want == registry.Refusing {
		p.turnAway(l)
	}
	p.mu.Unlock()

	reset, err := 0, error(nil)
	switch want {
	case registry.Refusing:
		reset, err = p.cfg.Doors.Refuse(key)
	case registry.Parking:
		err = p.cfg.Doors.Park(key)
	default:
		err = p.cfg.Doors.Admit(key)
	}

	p.mu.Lock()
	defer p.mu.Unlock()
	if l != p.listeners[key] || !l.listening || p.closed {
		return false
	}
	l.refused += uint64(reset)
	if err != nil {
		p.log.Error("cannot change what becomes of clients; trying again", "endpoint", l.endpoint, "want", want.String(), "err", err)
		if want == registry.Refusing { // they come in still
			p.hear(l)
		}
		l.wait()
		l.timer = p.callAfter(key, afterFailure)
		return false
	}
	l.door, l.shown = want, want
	if want != registry.Refusing {
		p.hear(l)
	}
	if want >= registry.Refusing || had >= registry.Refusing {
		p.log.Info("clients without a worker", "endpoint", l.endpoint, "are", want.String())
	}
	return true
}

// turnAway stops to listen for l's connections, and resets those that are in portd's hands.
func (p *Pool) turnAway(l *listener) {
	if l.deaf {
		return
	}
	l.deaf = true
	for _, s := range l.sockets {
		p.unwatch(s.fd, s.slot)
		s.acceptable = false
	}
	l.ready = fifo[*socket]{}
	for l.held.n > 0 {
		p.reset(l, l.held.pop())
	}
}

// hear undoes turnAway.
func (p *Pool) hear(l *listener) {
	if !l.deaf {
		return
	}
	l.deaf = false
	for _, s := range l.sockets {
		var err error
		if s.slot, err = p.watch(s.fd, unix.EPOLLIN, slot{socket: s}); err != nil {
			p.log.Error("cannot watch a listening socket; nobody gets its connections", "endpoint", s.endpoint, "err", err)
		}
	}
}

// arrive opens the doors for a worker that is about to attach, and returns when they are open. It is undone by left.
func (p *Pool) arrive(parts []part) (left func()) {
	if p.cfg.Doors == nil {
		return func() {}
	}
	var at []*listener
	p.mu.Lock()
	for _, part := range parts {
		if l := p.listeners[part.key]; l != nil && l.listening && (part.socket || part.state == Ready) {
			l.arriving++
			at = append(at, l)
		}
	}
	p.mu.Unlock()
	for _, l := range at {
		p.settle(l.key)
	}
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		for _, l := range at {
			l.arriving--
			p.attend(l)
		}
	}
}
