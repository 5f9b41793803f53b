package registry_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/portd/portd/internal/ianadb"
	"github.com/portd/portd/internal/registry"
)

// forgetful is a store that says late which requests it remembers.
type forgetful struct {
	*memory
	cannot atomic.Pointer[error]
	tells  chan struct{} // nil: at once
}

func (f *forgetful) Requests(ctx context.Context) ([]*registry.Request, error) {
	if err := f.cannot.Load(); err != nil {
		return nil, *err
	}
	if f.tells != nil {
		<-f.tells
	}
	return f.memory.Requests(ctx)
}

// After a restart ports are held before it is known which requests were answered. One that comes again meanwhile waits, and is answered as it
// was; nothing else is changed either.
func TestRecall(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store, pegs := newStandIns()
		r, stop := startAt(t, store, pegs, registry.Config{BootTime: fakeBoot(), BootID: "boot"})
		req := registry.ReserveRequest{Spec: spec(t, "tcp/8080"), RequestID: "1"}
		first, err := r.Reserve(t.Context(), alice, req)
		if err != nil {
			t.Fatal(err)
		}
		stop()

		pegs.bound = map[registry.SocketKey][]registry.Endpoint{}
		late := &forgetful{memory: store, tells: make(chan struct{})}
		unavailable := error(registry.ErrUnavailable)
		late.cannot.Store(&unavailable)
		r, stop = startAt(t, late, pegs, registry.Config{BootTime: fakeBoot(), BootID: "boot"})
		defer stop()
		if pegs.count() != 1 {
			t.Errorf("%d sockets are bound, want that of the reservation", pegs.count())
		}
		answers := make(chan *registry.Reservation, 2)
		for _, again := range []registry.ReserveRequest{req, {Spec: spec(t, "tcp/8081")}} {
			go func() {
				got, err := r.Reserve(t.Context(), alice, again)
				if err != nil {
					t.Error(err)
					answers <- nil
					return
				}
				answers <- got.Reservation
			}()
		}
		time.Sleep(time.Second)
		late.cannot.Store(nil)
		time.Sleep(time.Second)
		if n := len(answers); n != 0 {
			t.Errorf("%d changes were answered before it was known what had been", n)
		}
		close(late.tells)
		same := 0
		for range 2 {
			if got := <-answers; got != nil && got.ID == first.Reservation.ID {
				same++
			}
		}
		if n := r.Status().Reservations; same != 1 || n != 2 {
			t.Errorf("of two requests %d got the first one's answer, and there are %d reservations; want 1 and 2", same, n)
		}
	})
}

// Where it cannot be known for good, portd does not go on.
func TestRecallDamaged(t *testing.T) {
	t.Parallel()
	store, pegs := newStandIns()
	damaged := errors.New("damaged")
	bad := &forgetful{memory: store}
	bad.cannot.Store(&damaged)
	_, stop := start(t, store, pegs, registry.Config{}) // so that there is nothing to be written by the next one
	stop()
	before := store.state.Revision
	r := registry.New(registry.Config{Store: bad, Binder: pegs, Services: ianadb.Embedded(), BootID: "boot"})
	if err := r.Start(t.Context()); err != nil { // nothing is to be written
		t.Fatal(err)
	}
	changed := make(chan error, 2)
	for _, req := range []registry.ReserveRequest{
		{Spec: spec(t, "tcp/8080")}, {Spec: spec(t, "tcp/8081"), RequestID: "1"},
	} {
		go func() {
			_, err := r.Reserve(t.Context(), alice, req)
			changed <- err
		}()
	}
	if err := r.Run(t.Context()); !errors.Is(err, damaged) {
		t.Errorf("Run ends with %v", err)
	}
	for range 2 {
		if err := <-changed; !errors.Is(err, registry.ErrUnavailable) {
			t.Errorf("a change: %v", err)
		}
	}
	if store.state.Revision != before {
		t.Errorf("the store is at revision %d", store.state.Revision)
	}
}

// Load finds it out before another process has given up for this one.
func TestLoadRecalls(t *testing.T) {
	t.Parallel()
	store, pegs := newStandIns()
	damaged := errors.New("damaged")
	bad := &forgetful{memory: store}
	bad.cannot.Store(&damaged)
	r := registry.New(registry.Config{Store: bad, Binder: pegs, Services: ianadb.Embedded(), BootID: "boot"})
	if err := r.Load(t.Context()); !errors.Is(err, damaged) {
		t.Errorf("Load says %v", err)
	}
}
