package registry_test

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/portd/portd/internal/ianadb"
	"github.com/portd/portd/internal/registry"
)

// While a Registry is frozen its store stays as it is, whatever callers and clocks want; to look goes on.
func TestFrozen(t *testing.T) {
	t.Parallel()
	for _, over := range []bool{false, true} {
		t.Run(fmt.Sprint("over ", over), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				store, pegs := newStandIns()
				r, stop := start(t, store, pegs, registry.Config{BootTime: fakeBoot()})
				defer stop()
				lease, err := r.CreateLease(t.Context(), alice, registry.LeaseSpec{Kind: registry.TTLLease, TTL: time.Second}, "")
				if err != nil {
					t.Fatal(err)
				}
				held, err := r.Reserve(t.Context(), alice, registry.ReserveRequest{Spec: spec(t, "tcp/8080"), Lease: lease.ID})
				if err != nil {
					t.Fatal(err)
				}
				if err := r.Freeze(t.Context()); err != nil {
					t.Fatal(err)
				}
				before := r.Status().Revision
				changes := map[string]func() error{
					"reserve": func() error {
						_, err := r.Reserve(t.Context(), alice, registry.ReserveRequest{Spec: spec(t, "tcp/8081")})
						return err
					},
					"release": func() error { _, err := r.Release(t.Context(), alice, "tcp/8080", "once"); return err },
					"renew":   func() error { _, err := r.RenewLease(t.Context(), alice, lease.ID); return err },
					"session": func() error { _, err := r.OpenSession(t.Context(), alice, 0, ""); return err },
					"undo": func() error {
						_, err := r.UndoImport(t.Context(), registry.Caller{}, registry.UndoOptions{Embedded: true})
						return err
					},
				}
				var waiting atomic.Int32
				waiting.Store(int32(len(changes)))
				outcomes := make(chan error, len(changes))
				for what, change := range changes {
					go func() {
						defer waiting.Add(-1)
						if err := change(); err != nil {
							outcomes <- fmt.Errorf("%s: %w", what, err)
						}
					}()
				}
				time.Sleep(time.Minute) // the lease is over by now
				synctest.Wait()
				if n := int(waiting.Load()); n != len(changes) {
					t.Errorf("%d of %d changes wait", n, len(changes))
				}
				if st := r.Status(); st.Revision != before || pegs.count() != 1 {
					t.Errorf("frozen at revision %d with 1 socket, it is at %d with %d", before, st.Revision, pegs.count())
				}
				if _, err := r.Get(t.Context(), alice, held.Reservation.ID); err != nil {
					t.Errorf("to look: %v", err)
				}
				given, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				if _, err := r.Release(given, alice, "tcp/8080", ""); !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("who has no more time is told %v", err)
				}
				if over {
					r.Retire()
				} else {
					r.Thaw()
				}
				synctest.Wait()
				close(outcomes)
				failed := 0
				for err := range outcomes {
					failed++
					if over && !errors.Is(err, registry.ErrUnavailable) {
						t.Error(err)
					}
				}
				st := r.Status()
				switch {
				case over && (failed != len(changes) || st.Revision != before || pegs.count() != 1):
					t.Errorf("retired: %d of %d changes were refused, at revision %d with %d sockets", failed, len(changes), st.Revision, pegs.count())
				case !over && st.Revision == before:
					t.Error("thawed, nothing goes on")
				}
			})
		})
	}
}

// Freeze waits for what is under way, and lets all go on where that takes too long.
func TestFreezeWaits(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store, pegs := newStandIns()
		disk := &slowDisk{memory: store}
		r, stop := startAt(t, disk, pegs, registry.Config{BootTime: fakeBoot(), BootID: "boot"})
		defer stop()
		disk.takes = time.Minute
		done := make(chan error, 1)
		go func() {
			_, err := r.Reserve(t.Context(), alice, registry.ReserveRequest{Spec: spec(t, "tcp/8080")})
			done <- err
		}()
		time.Sleep(time.Millisecond)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		frozen := make(chan error)
		go func() { frozen <- r.Freeze(ctx) }()
		time.Sleep(10 * time.Millisecond)
		select {
		case err := <-frozen:
			t.Fatalf("Freeze did not wait: %v", err)
		default:
		}
		<-ctx.Done()
		if err := <-frozen; !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Freeze: %v", err)
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
		if err := r.Freeze(t.Context()); err != nil {
			t.Error(err)
		}
		r.Thaw()
		if _, err := r.Reserve(t.Context(), alice, registry.ReserveRequest{Spec: spec(t, "tcp/8081")}); err != nil {
			t.Error(err)
		}
	})
}

// slowDisk is a store that takes its time.
type slowDisk struct {
	*memory
	takes time.Duration
}

func (s *slowDisk) Commit(ctx context.Context, base registry.Revision, changes []registry.Change) error {
	time.Sleep(s.takes)
	return s.memory.Commit(ctx, base, changes)
}

// Who loads beside another process writes nothing before it is settled that the store is its own.
func TestLoad(t *testing.T) {
	t.Parallel()
	store, pegs := newStandIns()
	r, stop := start(t, store, pegs, registry.Config{})
	if _, err := r.Reserve(t.Context(), alice, registry.ReserveRequest{Spec: spec(t, "tcp/8080")}); err != nil {
		t.Fatal(err)
	}
	before := r.Status().Revision
	stop()
	pegs.bound = map[registry.SocketKey][]registry.Endpoint{foreign: {hostEndpoint(t, "tcp/8080")}}
	r = registry.New(registry.Config{Store: store, Binder: pegs, Services: ianadb.Embedded(), BootID: "boot"})
	if err := r.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	if st, err := store.Load(t.Context()); err != nil || st.Revision != before || st.Reservations[0].LostAny() {
		t.Errorf("loaded: %+v, %v; want it as it was, at revision %d", st, err, before)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	if err := r.Settle(); err != nil {
		t.Fatal(err)
	}
	if st := r.Status(); st.Revision != before+1 || st.Lost != 1 {
		t.Errorf("settled: %+v", st)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
