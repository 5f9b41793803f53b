package registry_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/portd/portd/internal/ianadb"
	"github.com/portd/portd/internal/registry"
)

var foreign = registry.SocketKey{Reservation: "a stranger"}

// loseOne is a store with one reservation, which listens, and a pegboard on which a stranger has its port.
func loseOne(t *testing.T) (*memory, *pegboard, *registry.Reservation) {
	t.Helper()
	store, pegs := newStandIns()
	r, stop := start(t, store, pegs, registry.Config{})
	if _, err := r.Reserve(t.Context(), alice, registry.ReserveRequest{Spec: spec(t, "tcp/8080"), Name: "web"}); err != nil {
		t.Fatal(err)
	}
	res, err := r.Listen(t.Context(), alice, "web", registry.Listen{}, "")
	if err != nil {
		t.Fatal(err)
	}
	stop()
	pegs.bound = map[registry.SocketKey][]registry.Endpoint{foreign: {res.Assigned[0].Endpoint}}
	return store, pegs, res
}

func (p *pegboard) free(key registry.SocketKey) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.bound, key)
}

// TestRecoveryIsRecordedLater has the store fail at the moment in which a lost port is held again.
func TestRecoveryIsRecordedLater(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store, pegs, _ := loseOne(t)
		r, stop := start(t, store, pegs, registry.Config{})
		if n := r.Status().Lost; n != 1 {
			t.Fatalf("%d reservations are lost after a start, want 1", n)
		}
		store.mu.Lock()
		store.fail = registry.ErrUnavailable
		store.mu.Unlock()
		pegs.free(foreign)
		time.Sleep(3 * time.Second)
		if pegs.count() != 1 || r.Status().Lost != 1 {
			t.Errorf("%d endpoints held, %d lost; want it held, and not said before it is recorded", pegs.count(), r.Status().Lost)
		}
		store.mu.Lock()
		store.fail = nil
		store.mu.Unlock()
		time.Sleep(2 * time.Second)
		res, err := r.Get(t.Context(), alice, "web")
		if err != nil || res.LostAny() || res.Assigned[0].State(registry.Held) != registry.StateListening {
			t.Errorf("got %+v, %v; want it listening", res, err)
		}
		if last := store.log[len(store.log)-1].Events; len(last) != 1 || last[0].Type != registry.EventRecovered {
			t.Errorf("the last change tells %+v, want EventRecovered", last)
		}
		stop()
	})
}

// TestInterruptedStartLosesNothing ends a start in its midst.
func TestInterruptedStartLosesNothing(t *testing.T) {
	t.Parallel()
	store, pegs, _ := loseOne(t)
	pegs.free(foreign)
	before := store.state.Revision
	r := registry.New(registry.Config{Store: store, Binder: pegs, Services: ianadb.Embedded(), BootID: "boot"})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := r.Start(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want Canceled", err)
	}
	if store.state.Revision != before {
		t.Errorf("an interrupted start wrote %+v", store.log[len(store.log)-1])
	}
}

// TestListAndWatchAgree looks at the table while the sockets of what was released are still being closed.
func TestListAndWatchAgree(t *testing.T) {
	t.Parallel()
	store, pegs := newStandIns()
	r, _ := start(t, store, pegs, registry.Config{})
	if _, err := r.Reserve(t.Context(), alice, registry.ReserveRequest{Spec: spec(t, "tcp/8080"), Name: "web"}); err != nil {
		t.Fatal(err)
	}
	looked := false
	pegs.releasing = func() {
		looked = true
		list, err := r.List(t.Context(), alice, registry.Filter{}, registry.Page{})
		if err != nil || len(list.Items) != 0 {
			t.Errorf("revision %d, which released it, still lists %v (%v)", list.Revision, list.Items, err)
		}
		if _, err := r.Get(t.Context(), alice, "web"); !errors.Is(err, registry.ErrNotFound) {
			t.Errorf("get: got %v, want ErrNotFound", err)
		}
	}
	if _, err := r.Release(t.Context(), alice, "web", ""); err != nil || !looked {
		t.Errorf("release: %v, looked %v", err, looked)
	}
}

// TestChooseHeedsTheCaller asks for what cannot be had, and for little time.
func TestChooseHeedsTheCaller(t *testing.T) {
	t.Parallel()
	store, pegs := newStandIns()
	r, _ := start(t, store, pegs, registry.Config{})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	s := spec(t, "tcp/any")
	if _, err := r.Reserve(ctx, alice, registry.ReserveRequest{Spec: s}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want Canceled", err)
	}
	for _, count := range []int{1, 7} {
		s.Endpoints[0].Any = &registry.AnyPorts{Within: registry.PortRange{First: 20000, Last: 20099}, Count: count}
		given := 0
		for ; ; given++ {
			_, err := r.Reserve(t.Context(), alice, registry.ReserveRequest{Spec: s})
			if errors.Is(err, registry.ErrExhausted) {
				break
			} else if err != nil {
				t.Fatal(err)
			}
		}
		if count == 1 && given != 100 {
			t.Errorf("%d of 100 ports were given", given)
		}
		if count == 7 && given != 0 {
			t.Errorf("%d runs were given out of a full range", given)
		}
	}
}
