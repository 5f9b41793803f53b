package registry_test

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/portd/portd/internal/registry"
)

var alice, bob = registry.Caller{UID: 1001, GID: 1001, Netns: registry.HostNetns}, registry.Caller{UID: 1002, GID: 1002, Netns: registry.HostNetns}

// fakeBoot counts boot time by synctest's clock.
func fakeBoot() func() time.Duration {
	began := time.Now()
	return func() time.Duration { return time.Since(began) }
}

func spec(t *testing.T, text string) registry.Spec {
	t.Helper()
	s, err := registry.ParseSpec(text)
	if err != nil {
		t.Fatal(err)
	}
	return registry.Spec{Endpoints: []registry.EndpointSpec{s}}
}

func TestSessionEndsAfterItsGrace(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store, pegs := newStandIns()
		r, stop := start(t, store, pegs, registry.Config{BootTime: fakeBoot()})
		s, err := r.OpenSession(t.Context(), alice, 5*time.Second, "")
		if err != nil {
			t.Fatal(err)
		}
		for _, text := range []string{"tcp/8080", "udp/8080"} {
			if _, err := r.Reserve(t.Context(), alice, registry.ReserveRequest{Spec: spec(t, text), Lease: s.Lease.ID}); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(time.Hour) // a session lives as long as its stream
		if n := pegs.count(); n != 2 {
			t.Fatalf("%d endpoints are held under an open session, want 2", n)
		}
		before := r.Status().Revision
		s.Close()
		time.Sleep(4900 * time.Millisecond)
		if n := pegs.count(); n != 2 {
			t.Errorf("%d endpoints are held within the grace, want 2", n)
		}
		time.Sleep(1100 * time.Millisecond)
		synctest.Wait()
		if n := pegs.count(); n != 0 {
			t.Errorf("%d endpoints are held a second after the grace, want none", n)
		}
		if got := r.Status().Revision; got != before+1 {
			t.Errorf("the end of a lease made %d revisions, want 1", got-before)
		}
		select {
		case <-s.Done():
		default:
			t.Error("Done is not closed after the lease has ended")
		}
		if _, err := r.OpenSession(t.Context(), alice, 0, s.Token); !errors.Is(err, registry.ErrNotFound) {
			t.Errorf("resuming an ended session: got %v, want ErrNotFound", err)
		}
		stop()
	})
}

func TestSessionIsResumed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store, pegs := newStandIns()
		r, stop := start(t, store, pegs, registry.Config{BootTime: fakeBoot()})
		s, err := r.OpenSession(t.Context(), alice, 5*time.Second, "")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := r.Reserve(t.Context(), alice, registry.ReserveRequest{Spec: spec(t, "tcp/8080"), Lease: s.Lease.ID}); err != nil {
			t.Fatal(err)
		}
		if _, err := r.OpenSession(t.Context(), bob, 0, s.Token); !errors.Is(err, registry.ErrNotFound) {
			t.Errorf("another user's token: got %v, want ErrNotFound", err)
		}
		s.Close()
		time.Sleep(4 * time.Second)
		again, err := r.OpenSession(t.Context(), alice, 0, s.Token)
		if err != nil || !again.Resumed || again.Lease.ID != s.Lease.ID {
			t.Fatalf("resume: got %+v, %v", again, err)
		}
		time.Sleep(time.Hour)
		if n := pegs.count(); n != 1 {
			t.Fatalf("%d endpoints are held by a resumed session, want 1", n)
		}

		// A restart: the lease is disconnected and has its whole grace again.
		again.Close()
		stop()
		pegs.bound = map[registry.SocketKey][]registry.Endpoint{}
		time.Sleep(time.Hour)
		r, stop = start(t, store, pegs, registry.Config{BootTime: fakeBoot()})
		time.Sleep(4 * time.Second)
		third, err := r.OpenSession(t.Context(), alice, 0, s.Token)
		if err != nil || !third.Resumed {
			t.Fatalf("resume after a restart: got %+v, %v", third, err)
		}
		third.Close()
		time.Sleep(7 * time.Second)
		synctest.Wait()
		if n := pegs.count(); n != 0 {
			t.Errorf("%d endpoints are held after the session, want none", n)
		}
		stop()
	})
}

func TestEndLease(t *testing.T) {
	t.Parallel()
	store, pegs := newStandIns()
	r, _ := start(t, store, pegs, registry.Config{})
	s, err := r.OpenSession(t.Context(), alice, 0, "")
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := r.Reserve(t.Context(), alice, registry.ReserveRequest{Spec: spec(t, "tcp/8080"), Lease: s.Lease.ID}); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Reserve(t.Context(), bob, registry.ReserveRequest{Spec: spec(t, "tcp/8081"), Lease: s.Lease.ID}); !errors.Is(err, registry.ErrNotFound) {
		t.Errorf("another's lease: got %v, want ErrNotFound", err)
	}
	if _, err := r.EndLease(t.Context(), bob, s.Lease.ID, ""); !errors.Is(err, registry.ErrDenied) {
		t.Errorf("ending another's lease: got %v, want ErrDenied", err)
	}
	ended, err := r.EndLease(t.Context(), alice, s.Lease.ID, "")
	if err != nil || len(ended.Released) != 1 || pegs.count() != 0 {
		t.Errorf("got %+v, %v and %d endpoints held", ended, err, pegs.count())
	}
	<-s.Done()
	if _, err := r.Reserve(t.Context(), alice, registry.ReserveRequest{Spec: spec(t, "tcp/8080"), Lease: s.Lease.ID}); !errors.Is(err, registry.ErrNotFound) {
		t.Errorf("an ended lease: got %v, want ErrNotFound", err)
	}
}

// TestFailedCommitUndoes checks that nothing is left of what could not be recorded.
func TestFailedCommitUndoes(t *testing.T) {
	t.Parallel()
	store, pegs := newStandIns()
	r, _ := start(t, store, pegs, registry.Config{})
	store.mu.Lock()
	store.fail = registry.ErrUnavailable
	store.mu.Unlock()
	req := registry.ReserveRequest{Spec: spec(t, "tcp/8080"), Name: "web", RequestID: "1"}
	if _, err := r.Reserve(t.Context(), alice, req); !errors.Is(err, registry.ErrUnavailable) {
		t.Fatalf("got %v, want ErrUnavailable", err)
	}
	if n := pegs.count(); n != 0 {
		t.Errorf("%d endpoints are still held", n)
	}
	store.mu.Lock()
	store.fail = nil
	store.mu.Unlock()
	if _, err := r.Reserve(t.Context(), bob, req); err != nil {
		t.Errorf("the port, the name or the request id is still taken: %v", err)
	}
}
