package client

import (
	"context"
	"net"
	"slices"
	"time"

	"github.com/portd/portd/internal/wire"
)

// Ready says that connections may come, of the wishes with these indexes or, without any, of all: for wishes that were NotReady, and to go on
// after a Drain of some. The error is net.ErrClosed where nothing can come any more.
func (l *Listener) Ready(wishes ...int) error {
	return l.stand(wishes, func(s *standing) { *s = standing{} }, wire.AppendReady)
}

// Drain takes no more connections, of the wishes with these indexes or, without any, of all: others get what would have come. It returns
// when all that had been sent is received, for which somebody is to call Accept meanwhile. Once nothing more can come Accept gives out what
// it has and then net.ErrClosed, which ends http.Server's Serve. Call Wait before its Shutdown: that closes connections whose first
// request it has not read yet.
//
// When ctx ends before, the error is ctx's; where all were to be drained the Listener is closed then, and what was not received goes to
// others.
//
// The operator's portctl drain does the same from outside, but for the waiting.
func (l *Listener) Drain(ctx context.Context, wishes ...int) error {
	if err := l.stand(wishes, func(s *standing) { s.draining = true }, wire.AppendDrain); err != nil {
		return err
	}
	for {
		drained, changed, err := l.drained(wishes)
		if drained || err != nil {
			return err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			if len(wishes) == 0 {
				_ = l.Close()
			}
			return ctx.Err()
		}
	}
}

// Wait returns when all connections that Accept gave out are closed, or ctx ends.
func (l *Listener) Wait(ctx context.Context) error {
	tick := time.NewTicker(waitTick)
	defer tick.Stop()
	for {
		if !l.busy() {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// waitTick is how often Wait looks. What would tell it costs something for each connection.
const waitTick = 5 * time.Millisecond

func (l *Listener) busy() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.forgetQuiet()
	return slices.ContainsFunc(l.pages, func(p *page) bool { return !p.quiet() })
}

// forgetQuiet forgets pages of which no connection is open and none will come.
func (l *Listener) forgetQuiet() {
	l.pages = slices.DeleteFunc(l.pages, func(p *page) bool {
		return p.quiet() && p != l.current.queue.page && !slices.ContainsFunc(l.queues, func(q *queue) bool { return q.page == p })
	})
}

// quiet says whether all connections that came with this page are closed.
func (p *page) quiet() bool {
	_, received, known := p.Taken()
	return known && p.Done() >= received
}

// A standing is what this worker wants of a wish now. It holds for the next attachment, too.
type standing struct {
	notReady bool
	draining bool
}

// A served is one listener of the current attachment.
type served struct {
	number   uint32
	wish     int
	draining bool
	drained  bool
	gone     bool
}

// over says whether nothing more will come of it.
func (s *served) over() bool { return s.gone || s.draining && s.drained }

// stand changes the standings of wishes, and tells portd. Where portd is away, the next attachment begins with that.
func (l *Listener) stand(wishes []int, change func(*standing), message func([]byte, uint32) []byte) error {
	l.mu.Lock()
	if l.closed || l.final != nil {
		l.mu.Unlock()
		return net.ErrClosed
	}
	var say [][]byte
	for i := range l.standings {
		if len(wishes) > 0 && !slices.Contains(wishes, i) {
			continue
		}
		change(&l.standings[i])
		for j := range l.serves {
			if s := &l.serves[j]; s.wish == i && !s.gone {
				s.draining, s.drained = l.standings[i].draining, false
				say = append(say, message(nil, s.number))
			}
		}
	}
	if len(say) > 1 && len(say) == len(l.serves) {
		say = [][]byte{message(nil, wire.AllListeners)}
	}
	a := l.current
	l.change()
	l.mu.Unlock()
	for _, m := range say {
		_ = a.say(m) // an attachment that is over is followed by one that begins so
	}
	return nil
}

// drained says whether nothing more will come of wishes, or when to ask again.
func (l *Listener) drained(wishes []int) (bool, <-chan struct{}, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	done := l.final != nil && len(l.queues) == 0 // then a server may have closed it already
	if l.closed && !done {
		return false, nil, net.ErrClosed
	}
	if l.final == nil {
		done = !slices.ContainsFunc(l.serves, func(s served) bool {
			return (len(wishes) == 0 || slices.Contains(wishes, s.wish)) && !s.over()
		})
	}
	return done, l.changed, nil
}

// serving makes a the current attachment, and tells portd what has changed since a was asked for. The caller has the lock.
func (l *Listener) serving(a *Attachment, asked []standing) {
	l.current = a
	l.forgetQuiet()
	l.pages = append(l.pages, a.queue.page)
	l.serves = l.serves[:0]
	for _, al := range a.Listeners {
		s := served{number: al.Number, wish: al.Wish}
		if al.Wish < len(l.standings) {
			now := l.standings[al.Wish]
			s.draining = now.draining
			switch {
			case now.draining: // also where it was asked for so: there is to be a DRAINED
				_ = a.Drain(al.Number)
			case now != asked[al.Wish] && !now.notReady:
				_ = a.Ready(al.Number)
			}
		}
		l.serves = append(l.serves, s)
	}
}

// toldToDrain heeds portd's DRAIN as if this worker had said it.
func (l *Listener) toldToDrain(a *Attachment, number uint32) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.current != a || l.final != nil {
		return
	}
	for i := range l.serves {
		s := &l.serves[i]
		if number != wire.AllListeners && s.number != number || s.draining {
			continue
		}
		s.draining = true
		l.log.Info("somebody drains this worker", "listener", a.Listeners[i].Endpoint)
		// A READY that was on its way has made it ready again. This one is answered in any case.
		_ = a.Drain(s.number)
		others := func(o served) bool { return o.wish == s.wish && !o.draining }
		if s.wish < len(l.standings) && !slices.ContainsFunc(l.serves, others) {
			l.standings[s.wish].draining = true
		}
	}
}

// over notes that nothing more will come of a listener: portd called it drained, or gone. With the last one Accept ends.
func (l *Listener) over(a *Attachment, number uint32, gone bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.current != a {
		return
	}
	left, all := false, true
	for i := range l.serves {
		s := &l.serves[i]
		if s.number == number {
			s.gone = s.gone || gone
			s.drained = s.drained || s.draining
		}
		left, all = left || !s.over(), all && s.gone
	}
	if !left && !all && l.final == nil { // where all are gone portd ends the attachment
		l.final = net.ErrClosed
		l.queues = slices.DeleteFunc(l.queues, func(q *queue) bool { return q == a.queue })
		a.queue.Close() // it is empty; this ends the Accept that waits there
	}
	l.change()
}

// leaves says whether all is to be drained, so that there is no use in attaching again.
func (l *Listener) leaves() (bool, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return !slices.ContainsFunc(l.standings, func(s standing) bool { return !s.draining }), l.changed
}

// untilLeaving is a context that ends when all is to be drained. done releases it.
func (l *Listener) untilLeaving(ctx context.Context) (_ context.Context, done func()) {
	ctx, cancel := context.WithCancel(ctx)
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		defer cancel()
		for {
			leaves, changed := l.leaves()
			if leaves {
				return
			}
			select {
			case <-changed:
			case <-ctx.Done():
				return
			}
		}
	}()
	return ctx, func() {
		cancel()
		<-stopped
	}
}

// wanted is what the next attachment is to begin with.
func (l *Listener) wanted() (AttachConfig, []standing) {
	l.mu.Lock()
	defer l.mu.Unlock()
	cfg, now := l.cfg, slices.Clone(l.standings)
	cfg.Wishes = slices.Clone(cfg.Wishes)
	for i, s := range now {
		cfg.Wishes[i].NotReady = s.notReady
	}
	cfg.draining = func(wish int) bool { return now[wish].draining }
	return cfg, now
}
