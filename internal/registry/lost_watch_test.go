package registry_test

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/portd/portd/internal/ianadb"
	"github.com/portd/portd/internal/registry"
)

// A bell is a registry.Closings that is rung by hand.
type bell struct {
	mu      sync.Mutex
	watched []uint16
	look    func()
	closed  func(registry.Protocol, uint16)
	began   int
	broken  error // what WatchClosed answers where it is not nil
}

func (b *bell) WatchClosed(ctx context.Context, ports []uint16, look func(), closed func(registry.Protocol, uint16)) error {
	b.mu.Lock()
	b.began++
	if b.broken != nil {
		defer b.mu.Unlock()
		return b.broken
	}
	b.watched, b.look, b.closed = ports, look, closed
	b.mu.Unlock()
	look()
	<-ctx.Done()
	b.mu.Lock()
	defer b.mu.Unlock()
	b.watched = nil
	return ctx.Err()
}

func (b *bell) watching() []uint16 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.watched
}

// TestLostIsTakenAtOnce has no time pass: what is taken again was told of, and not found by trying now and then.
func TestLostIsTakenAtOnce(t *testing.T) {
	t.Parallel()
	for name, ring := range map[string]func(*bell){
		"closed": func(b *bell) { b.closed(registry.TCP, 8080) },
		"missed": func(b *bell) { b.look() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				store, pegs, _ := loseOne(t)
				began, b := time.Now(), &bell{}
				r, stop := start(t, store, pegs, registry.Config{Closings: b})
				synctest.Wait()
				if got := b.watching(); !slices.Equal(got, []uint16{8080}) {
					t.Fatalf("watched are %v, want 8080", got)
				}
				b.closed(registry.TCP, 8080) // of one of several who have it
				synctest.Wait()
				pegs.free(foreign)
				b.closed(registry.UDP, 8080)
				b.closed(registry.TCP, 8081)
				synctest.Wait()
				if n := r.Status().Lost; n != 1 {
					t.Errorf("%d are lost after others were closed, want 1", n)
				}
				ring(b)
				synctest.Wait()
				res, err := r.Get(t.Context(), alice, "web")
				if err != nil || res.LostAny() || res.Assigned[0].State(registry.Held) != registry.StateListening {
					t.Errorf("got %+v, %v; want it listening", res, err)
				}
				if passed := time.Since(began); passed != 0 {
					t.Errorf("%v have passed", passed)
				}
				if got := b.watching(); got != nil {
					t.Errorf("%v are watched still, and nothing is lost", got)
				}
				stop()
			})
		})
	}
}

// TestLostWithoutBeingTold has the kernel tell nothing.
func TestLostWithoutBeingTold(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store, pegs, _ := loseOne(t)
		b := &bell{broken: errors.New("not for you")}
		r, stop := start(t, store, pegs, registry.Config{Closings: b})
		time.Sleep(2500 * time.Millisecond)
		pegs.free(foreign)
		time.Sleep(time.Second)
		synctest.Wait()
		if n := r.Status().Lost; n != 0 {
			t.Errorf("%d are lost, want none", n)
		}
		if b.began != 3 {
			t.Errorf("a watch was begun %d times, want once and after each of two tries", b.began)
		}
		stop()
	})
}

// An echo is a pegboard whose every bind in vain ends in a socket being closed, which is told of.
type echo struct {
	*pegboard
	bell  *bell
	tries atomic.Int64
}

func (e *echo) Bind(ctx context.Context, b registry.Bind) error {
	err := e.pegboard.Bind(ctx, b)
	e.bell.mu.Lock()
	closed := e.bell.closed
	e.bell.mu.Unlock()
	if err != nil && closed != nil {
		e.tries.Add(1)
		closed(b.Endpoint.Proto, b.Endpoint.First)
	}
	return err
}

// TestLostIsNotTriedWithoutEnd has each try be the reason for the next.
func TestLostIsNotTriedWithoutEnd(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store, pegs, _ := loseOne(t)
		b := &bell{}
		e := &echo{pegboard: pegs, bell: b}
		r := registry.New(registry.Config{Store: store, Binder: e, Closings: b, Services: ianadb.Embedded(), BootID: "boot"})
		if err := r.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- r.Run(ctx) }()
		const seconds = 10
		time.Sleep(seconds * time.Second)
		if n := e.tries.Load(); n < seconds || n > 30*seconds {
			t.Errorf("it was tried %d times in %d s, want some 20 a second at most", n, seconds)
		}
		pegs.free(foreign)
		time.Sleep(time.Second)
		synctest.Wait()
		if n := r.Status().Lost; n != 0 {
			t.Errorf("%d are lost, want none", n)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}
