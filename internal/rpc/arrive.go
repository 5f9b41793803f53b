package rpc

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/portd/portd/internal/registry"
)

// A request whose end does not come takes as much memory as has come of it, up to maxMessage, and gRPC would wait for the rest as long as
// its caller likes. Those of callers who mean it are here at once, for a unix socket has no latency. So each user has a few places for
// requests that take longer. What finds none ends when mostHeld bytes have come from the user meanwhile, for they may be its;
// a busy host, on which many small requests are late, ends none.
const (
	prompt   = 100 * time.Millisecond
	mostLate = 64 // requests of a user on their way here for longer than that
	mostHeld = 8 * maxMessage
)

var errLate = fmt.Errorf("%w: the rest of the request has not come; send requests whole", registry.ErrExhausted)

// An arrival is the next request of a call, on its way here or not, and the context of a call by gRPC; end is called where it takes too
// long. Its methods may be called at the same time, those of a nil arrival do nothing.
type arrival struct {
	context.Context
	in  *account
	end func()

	mu       sync.Mutex
	timer    *time.Timer
	due      bool
	late     bool          // it has one of the user's places
	received int64         // all that had come from the user when it began
	patience time.Duration // what is left of it, once it is late; less than 0: it has no end
	forget   func() bool   // undoes that the place is given back when the call ends
}

type arrivalKey struct{}

// expect is ctx for a call by gRPC whose request is on its way.
func (in *account) expect(ctx context.Context) *arrival {
	ctx, cancel := context.WithCancelCause(ctx)
	a := &arrival{Context: ctx, in: in, end: func() { cancel(errLate) }}
	a.comes(patience)
	return a
}

// expectBody is for a request by REST; its line has a deadline of its own.
func expectBody(ctx context.Context, line *http.ResponseController) *arrival {
	c, ok := peerOf(ctx)
	if !ok || c.account == nil {
		return nil
	}
	return &arrival{Context: ctx, in: c.account, end: func() { _ = line.SetReadDeadline(time.Unix(1, 0)) }}
}

func arrivalOf(ctx context.Context) *arrival {
	a, _ := ctx.Value(arrivalKey{}).(*arrival)
	return a
}

func (a *arrival) Value(key any) any {
	if key == (arrivalKey{}) {
		return a
	}
	return a.Context.Value(key)
}

// comes says that a request is waited for, so long at most once it is late, or less than 0.
func (a *arrival) comes(patience time.Duration) {
	if a == nil {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.due, a.patience, a.received = true, patience, a.in.received.Load()
	if a.timer == nil {
		a.timer = time.AfterFunc(prompt, a.tick)
	} else {
		a.timer.Reset(prompt)
	}
}

// here says that it has come, or that nobody waits for it any more.
func (a *arrival) here() {
	if a == nil {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.hereLocked()
}

func (a *arrival) hereLocked() {
	a.due = false
	a.timer.Stop()
	if a.late {
		a.late = false
		a.in.late.Add(-1)
		a.forget()
	}
}

func (a *arrival) tick() {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case !a.due || a.Err() != nil: // a call that has ended gives its place back by itself
	case a.late:
		a.hereLocked()
		a.end()
	case a.in.late.Add(1) <= mostLate:
		a.late, a.forget = true, context.AfterFunc(a.Context, a.here)
		if a.patience >= 0 {
			a.timer.Reset(a.patience)
		}
	default:
		a.in.late.Add(-1)
		if a.patience == 0 || a.in.received.Load()-a.received > mostHeld {
			a.due = false
			a.end()
			return
		}
		if a.patience > 0 {
			a.patience = max(a.patience-prompt, 0)
		}
		a.timer.Reset(prompt)
	}
}
