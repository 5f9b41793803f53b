package registry_test

import (
	"errors"
	"testing"

	"github.com/portd/portd/internal/registry"
)

// TestListenMixed checks that a reservation of TCP and UDP listens where it can.
func TestListenMixed(t *testing.T) {
	t.Parallel()
	store, pegs := newStandIns()
	r, _ := start(t, store, pegs, registry.Config{})
	for name, text := range map[string]string{"both": "tcp,udp/5353", "datagrams": "udp/5354"} {
		if _, err := r.Reserve(t.Context(), alice, registry.ReserveRequest{Spec: spec(t, text), Name: name}); err != nil {
			t.Fatal(err)
		}
	}
	res, err := r.Listen(t.Context(), alice, "both", registry.Listen{}, "")
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range res.Assigned {
		if listens := a.State(registry.Held) == registry.StateListening; listens != (a.Endpoint.Proto == registry.TCP) {
			t.Errorf("%v: listens is %v", a.Endpoint, listens)
		}
	}
	if _, err := r.Listen(t.Context(), alice, "datagrams", registry.Listen{}, ""); !errors.Is(err, registry.ErrUnsupported) {
		t.Errorf("listen on UDP alone: got %v, want ErrUnsupported", err)
	}
}

// What cannot be closed as it should leaves nothing else of the reservation open.
func TestUnlistenGoesOn(t *testing.T) {
	t.Parallel()
	store, pegs := newStandIns()
	r, _ := start(t, store, pegs, registry.Config{})
	s := spec(t, "tcp/8082")
	s.Endpoints = append(s.Endpoints, spec(t, "tcp/8083").Endpoints...)
	if _, err := r.Reserve(t.Context(), alice, registry.ReserveRequest{Spec: s, Name: "two"}); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Listen(t.Context(), alice, "two", registry.Listen{}, ""); err != nil {
		t.Fatal(err)
	}
	stuck := errors.New("stuck")
	var closed []int
	pegs.closing = func(key registry.SocketKey) error {
		if closed = append(closed, key.Index); key.Index == 0 {
			return stuck
		}
		return nil
	}
	if _, err := r.Unlisten(t.Context(), alice, "two", ""); !errors.Is(err, stuck) || len(closed) != 2 {
		t.Errorf("closed %v, %v; want both, and the error", closed, err)
	}
}

// TestSpecIsKept checks that what was asked stays what was asked.
func TestSpecIsKept(t *testing.T) {
	t.Parallel()
	store, pegs := newStandIns()
	r, _ := start(t, store, pegs, registry.Config{Policy: registry.Policy{UID: alice.UID}})
	res, err := r.Reserve(t.Context(), alice, registry.ReserveRequest{Spec: spec(t, "tcp/https"), Name: "web"})
	if err != nil {
		t.Fatal(err)
	}
	if got := res.Spec.Endpoints[0]; got.Service != "https" || res.Assigned[0].Endpoint.First != 443 {
		t.Errorf("asked is %+v, given is %v", got, res.Assigned[0].Endpoint)
	}
	for _, ref := range []string{"web", res.ID, "tcp/443", "tcp/https", "https/tcp", "tcp/127.0.0.1:443"} {
		if found, err := r.Get(t.Context(), alice, ref); err != nil || found != res.Reservation {
			t.Errorf("%s: got %v, %v", ref, found, err)
		}
	}
}

// TestNobodyWaitsInACircle has two callers want the same two ports, each the other way round.
func TestNobodyWaitsInACircle(t *testing.T) {
	t.Parallel()
	store, pegs := newStandIns()
	r, _ := start(t, store, pegs, registry.Config{})
	reserve := func(first, second string) error {
		s := spec(t, first)
		s.Endpoints = append(s.Endpoints, spec(t, second).Endpoints...)
		res, err := r.Reserve(t.Context(), alice, registry.ReserveRequest{Spec: s})
		if err == nil {
			_, err = r.Release(t.Context(), alice, res.ID, "")
		} else if errors.Is(err, registry.ErrTaken) {
			err = nil // the other one was faster
		}
		return err
	}
	const rounds = 500
	errs := make(chan error, 2)
	for _, way := range [][2]string{{"tcp/6001", "udp/6001"}, {"udp/6001", "tcp/6001"}} {
		go func() {
			for range rounds {
				if err := reserve(way[0], way[1]); err != nil {
					errs <- err
					return
				}
			}
			errs <- nil
		}()
	}
	for range 2 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	if n := pegs.count(); n != 0 {
		t.Errorf("%d endpoints are still held", n)
	}
}

// TestLabelsAreSafeToPrint refuses what would write to another user's terminal.
func TestLabelsAreSafeToPrint(t *testing.T) {
	t.Parallel()
	store, pegs := newStandIns()
	r, _ := start(t, store, pegs, registry.Config{})
	for _, v := range []string{"\x1b]0;OWNED\a", "a\nid  forged", "\xff", "\u009b31m"} {
		_, err := r.Reserve(t.Context(), alice, registry.ReserveRequest{Spec: spec(t, "tcp/8080"), Labels: map[string]string{"k": v}})
		if !errors.Is(err, registry.ErrInvalid) {
			t.Errorf("%q: got %v, want ErrInvalid", v, err)
		}
	}
}
