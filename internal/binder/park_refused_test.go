package binder_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/binder"
	"github.com/portd/portd/internal/registry"
)

// Where this user may not park all of it either, many are refused, and nobody gets or loses a port for it. (Root has nearly no
// such bound, and is refused for want of descriptors.)
func TestParkedAndRefused(t *testing.T) {
	b := open(t, binder.Config{Spare: 50})
	limit(t, 300)
	before := descriptors(t)
	var mu sync.Mutex
	held := map[uint16]bool{}
	var all sync.WaitGroup
	for g := range 4 {
		all.Go(func() {
			r := rand.New(rand.NewPCG(2, uint64(g)))
			ctx := context.WithoutCancel(t.Context())
			mine := map[uint16]int{} // 1 held, 2 listening
			for range 3000 {
				p := uint16(10000 + 300*g + r.IntN(300))
				ep := at(t, "tcp/1", p)
				var err error
				next := mine[p]
				switch what := r.IntN(10); {
				case mine[p] == 0:
					err, next = b.Bind(ctx, registry.Bind{Key: key(ep), Endpoint: ep}), 1
				case what < 2:
					err, next = b.Release(key(ep)), 0
				case mine[p] == 2:
					err, next = b.Unlisten(key(ep)), 1
				case what == 2:
					err, next = b.Listen(ctx, key(ep), registry.ListenOptions{}), 2
				case what < 5:
					var lent []registry.Socket
					if lent, err = b.Lend(key(ep)); err == nil {
						_ = unix.Close(lent[0].FD)
						b.Return(key(ep))
					}
				}
				switch {
				case err == nil:
					mine[p] = next
				case !errors.Is(err, registry.ErrExhausted):
					t.Errorf("port %d, state %d: %v", p, mine[p], err)
					return
				}
			}
			mu.Lock()
			defer mu.Unlock()
			for p, state := range mine {
				held[p] = state > 0
			}
		})
	}
	all.Wait()
	for p, is := range held {
		ep := at(t, "tcp/1", p)
		if !is {
			wantAllFree(t, ep)
			continue
		}
		wantHeld(t, ep)
	}
	for p, is := range held {
		if is {
			release(t, b, at(t, "tcp/1", p))
			wantAllFree(t, at(t, "tcp/1", p))
		}
	}
	if n := descriptors(t); n > before {
		t.Errorf("%d descriptors are open, %d before", n, before)
	}
}
