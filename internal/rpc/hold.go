package rpc

import (
	"context"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/portd/portd/internal/registry"
)

// A hold keeps calls waiting while it is not known which of two portds answers them. The zero hold keeps nobody.
type hold struct {
	held    atomic.Pointer[chan struct{}] // closed when calls may go on; nil where they may
	running atomic.Int64                  // calls that are being answered, but for streams

	mu sync.Mutex
	ln *net.UnixListener // that is served; nil before that
}

// enter is pass, and counts the call as running.
func (h *hold) enter(ctx, stopping context.Context) error {
	for {
		h.running.Add(1) // before the look, so that Finish misses nobody
		if h.held.Load() == nil {
			return nil
		}
		h.running.Add(-1)
		if err := h.pass(ctx, stopping); err != nil {
			return err
		}
	}
}

// pass waits while calls are held, until one of the contexts has ended.
func (h *hold) pass(ctx, stopping context.Context) error {
	for {
		held := h.held.Load()
		if held == nil {
			return nil
		}
		select {
		case <-*held:
		case <-stopping.Done():
			return registry.ErrHandedOver
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (h *hold) serves(ln *net.UnixListener) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ln = ln
	h.acceptLocked()
}

func (h *hold) acceptLocked() {
	switch {
	case h.ln == nil:
	case h.held.Load() != nil:
		_ = h.ln.SetDeadline(time.Unix(1, 0))
	default:
		_ = h.ln.SetDeadline(time.Time{})
	}
}

// Hold lets no call begin and accepts no connection until Release: they wait, connections in the socket's backlog. Calls that have
// begun go on.
func (s *Server) Hold() {
	h := &s.hold
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.held.Load() == nil {
		held := make(chan struct{})
		h.held.Store(&held)
		h.acceptLocked()
	}
}

// Release ends Hold: this portd answers.
func (s *Server) Release() {
	h := &s.hold
	h.mu.Lock()
	defer h.mu.Unlock()
	if held := h.held.Swap(nil); held != nil {
		h.acceptLocked()
		close(*held)
	}
}

// Finish returns when all that had begun before Hold is answered, streams and Upgrade aside, or ctx has ended.
func (s *Server) Finish(ctx context.Context) {
	for s.hold.running.Load() > 0 && ctx.Err() == nil {
		wait(ctx, time.Millisecond)
	}
}
