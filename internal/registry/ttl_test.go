package registry_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/portd/portd/internal/registry"
	"github.com/portd/portd/internal/registry/boltstore"
)

func ttl(d time.Duration) registry.LeaseSpec {
	return registry.LeaseSpec{Kind: registry.TTLLease, TTL: d}
}

// forAWhile reserves an endpoint with a lease of its own.
func forAWhile(t *testing.T, r *registry.Registry, text, name string, l registry.LeaseSpec) *registry.Reservation {
	t.Helper()
	res, err := r.Reserve(t.Context(), alice, registry.ReserveRequest{Spec: spec(t, text), Name: name, NewLease: &l})
	if err != nil {
		t.Fatal(err)
	}
	return res.Reservation
}

// events are those of a store, as "type reason".
func (m *memory) events() (all []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, ch := range m.log {
		for _, ev := range ch.Events {
			all = append(all, fmt.Sprintf("%d %d %s", ch.Revision, ev.Type, ev.Reason))
		}
	}
	return all
}

func TestTTLEndsUnlessRenewed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store, pegs := newStandIns()
		r, stop := start(t, store, pegs, registry.Config{BootTime: fakeBoot()})
		before := r.Status().Revision
		kept := forAWhile(t, r, "tcp/8080", "kept", ttl(10*time.Second))
		left := forAWhile(t, r, "tcp/8081", "left", ttl(10*time.Second))
		if got := r.Status().Revision; got != before+2 {
			t.Errorf("two reservations with leases made %d revisions, want 2", got-before)
		}
		for range 100 {
			time.Sleep(9900 * time.Millisecond)
			if _, err := r.RenewLease(t.Context(), bob, kept.Lease); !errors.Is(err, registry.ErrDenied) {
				t.Fatalf("another's renewal: got %v, want ErrDenied", err)
			}
			now := time.Now()
			s, err := r.RenewLease(t.Context(), alice, kept.Lease)
			if err != nil || !s.Expires.Equal(now.Add(10*time.Second)) || !r.Expires(kept.Lease).Equal(s.Expires) {
				t.Fatalf("renewed until %v (%v), want %v", s.Expires, err, now.Add(10*time.Second))
			}
		}
		if n := pegs.count(); n != 1 {
			t.Errorf("%d endpoints are held, want the one that was renewed", n)
		}
		if _, err := r.RenewLease(t.Context(), alice, left.Lease); !errors.Is(err, registry.ErrNotFound) {
			t.Errorf("renewing what is over: got %v, want ErrNotFound", err)
		}
		time.Sleep(9900 * time.Millisecond)
		if n := pegs.count(); n != 1 {
			t.Errorf("%d endpoints are held before the time is over, want 1", n)
		}
		rev := r.Status().Revision
		time.Sleep(1100 * time.Millisecond)
		synctest.Wait()
		if n := pegs.count(); n != 0 || r.Status().Revision != rev+1 {
			t.Errorf("%d endpoints are held after the time is over, and its end made %d revisions", n, r.Status().Revision-rev)
		}
		all := store.events()
		want := fmt.Sprintf("%d %d it was not renewed within 10s", rev+1, registry.EventExpired)
		if len(all) == 0 || all[len(all)-1] != want {
			t.Errorf("the last event is %q, want %q", all[len(all)-1], want)
		}
		stop()
	})
}

func TestTTLAcrossRestartAndReboot(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store, pegs := newStandIns()
		r, stop := start(t, store, pegs, registry.Config{BootTime: fakeBoot()})
		short := forAWhile(t, r, "tcp/8080", "short", ttl(10*time.Second))
		forAWhile(t, r, "tcp/8081", "long", ttl(24*time.Hour))
		restart := func(boot string, down time.Duration) {
			stop()
			clear(pegs.bound)
			time.Sleep(down)
			r, stop = startAt(t, store, pegs, registry.Config{BootTime: fakeBoot(), BootID: boot})
		}

		// portd was down: the whole time again, however long that was.
		restart("boot", time.Hour)
		time.Sleep(9 * time.Second)
		if _, err := r.RenewLease(t.Context(), alice, short.Lease); err != nil || pegs.count() != 2 {
			t.Fatalf("within the grace: %v, %d endpoints", err, pegs.count())
		}
		// The host was down for so short a time that the lease may live.
		restart("another boot", 5*time.Second)
		time.Sleep(9 * time.Second)
		if _, err := r.RenewLease(t.Context(), alice, short.Lease); err != nil || pegs.count() != 2 {
			t.Fatalf("within the grace after a reboot: %v, %d endpoints", err, pegs.count())
		}
		// A day of renewals, and then the host was down for longer than the one, and not than the other.
		for range 12 * 60 * 24 {
			time.Sleep(5 * time.Second)
			if _, err := r.RenewLease(t.Context(), alice, short.Lease); err != nil {
				t.Fatal(err)
			}
		}
		stop()
		r, stop = startAt(t, store, pegs, registry.Config{BootTime: fakeBoot(), BootID: "the day after"})
		if _, err := r.RenewLease(t.Context(), alice, short.Lease); err != nil {
			t.Fatalf("renewed all day, and over after a reboot: %v", err)
		}
		rev := r.Status().Revision
		restart("third boot", time.Hour)
		if _, err := r.RenewLease(t.Context(), alice, short.Lease); !errors.Is(err, registry.ErrNotFound) || pegs.count() != 0 {
			t.Errorf("over while the host was down: %v, %d endpoints", err, pegs.count())
		}
		all := store.events()
		want := fmt.Sprintf("%d %d it was not renewed within 10s, in which the host was down", rev+1, registry.EventExpired)
		if all[len(all)-1] != want {
			t.Errorf("the last event is %q, want %q", all[len(all)-1], want)
		}
		stop()
	})
}

func TestLeaseOfOneReservation(t *testing.T) {
	t.Parallel()
	store, pegs := newStandIns()
	r, _ := start(t, store, pegs, registry.Config{})
	web := forAWhile(t, r, "tcp/8080", "web", ttl(time.Hour))
	dns := registry.ReserveRequest{Spec: spec(t, "udp/53"), Lease: web.Lease}
	dns.Spec.Endpoints[0].Exact = registry.PortRange{First: 5353, Last: 5353}
	other, err := r.Reserve(t.Context(), alice, dns)
	if err != nil {
		t.Fatal(err)
	}

	// The same again is the same, with its time renewed; another time to live is another wish.
	again := registry.ReserveRequest{Spec: spec(t, "tcp/8080"), Name: "web", NewLease: &registry.LeaseSpec{Kind: registry.TTLLease, TTL: time.Hour}}
	if res, err := r.Reserve(t.Context(), alice, again); err != nil || !res.Existed || res.ID != web.ID {
		t.Errorf("the same again: %v, %v, %v", res, res.Existed, err)
	}
	again.NewLease.TTL = 2 * time.Hour
	if _, err := r.Reserve(t.Context(), alice, again); !errors.Is(err, registry.ErrTaken) {
		t.Errorf("another time to live: got %v, want ErrTaken", err)
	}

	for i, res := range []*registry.Reservation{web, other.Reservation} {
		if _, err := r.GetLease(t.Context(), alice, web.Lease); err != nil {
			t.Errorf("the lease ended with %d of 2 reservations", i)
		}
		if _, err := r.Release(t.Context(), alice, res.ID, ""); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := r.GetLease(t.Context(), alice, web.Lease); !errors.Is(err, registry.ErrNotFound) {
		t.Errorf("a lease that carries nothing any more: got %v, want ErrNotFound", err)
	}
	if st, err := store.Load(t.Context()); err != nil || len(st.Leases) != 0 {
		t.Errorf("%d leases are left in the store (%v)", len(st.Leases), err)
	}
}

func TestCreateLease(t *testing.T) {
	t.Parallel()
	store, pegs := newStandIns()
	r, _ := start(t, store, pegs, registry.Config{})
	made, err := r.CreateLease(t.Context(), alice, ttl(time.Hour), "1")
	if err != nil {
		t.Fatal(err)
	}
	again, err := r.CreateLease(t.Context(), alice, ttl(time.Hour), "1")
	if err != nil || again.ID != made.ID || again.Expires.IsZero() {
		t.Errorf("the same request id: got %+v, %v", again, err)
	}
	if _, err := r.CreateLease(t.Context(), alice, ttl(2*time.Hour), "1"); !errors.Is(err, registry.ErrInvalid) {
		t.Errorf("the same request id for another lease: got %v, want ErrInvalid", err)
	}
	for _, text := range []string{"tcp/8080", "udp/8080"} {
		if _, err := r.Reserve(t.Context(), alice, registry.ReserveRequest{Spec: spec(t, text), Lease: made.ID}); err != nil {
			t.Fatal(err)
		}
	}
	ended, err := r.EndLease(t.Context(), alice, made.ID, "")
	if err != nil || len(ended.Released) != 2 || pegs.count() != 0 {
		t.Errorf("got %+v, %v and %d endpoints held", ended, err, pegs.count())
	}
	for _, d := range []time.Duration{0, -time.Second, registry.MinTTL - 1, registry.MaxTTL + 1} {
		if _, err := r.CreateLease(t.Context(), alice, ttl(d), ""); !errors.Is(err, registry.ErrInvalid) {
			t.Errorf("%v to live: got %v, want ErrInvalid", d, err)
		}
	}
}

// While the store does not take the end of a lease, it is tried about once a second, and the lease can be renewed.
func TestExpiryIsTriedAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store, pegs := newStandIns()
		r, stop := start(t, store, pegs, registry.Config{BootTime: fakeBoot()})
		forAWhile(t, r, "tcp/8080", "gone", ttl(5*time.Second))
		kept := forAWhile(t, r, "tcp/8081", "kept", ttl(5*time.Second))
		store.breakDown(registry.ErrUnavailable)
		time.Sleep(10500 * time.Millisecond)
		if n := pegs.count(); n != 2 {
			t.Errorf("%d endpoints are held whose end is not recorded, want 2", n)
		}
		if _, err := r.RenewLease(t.Context(), alice, kept.Lease); err != nil {
			t.Errorf("renewing a lease that could not be ended: %v", err)
		}
		store.breakDown(nil)
		time.Sleep(1100 * time.Millisecond)
		synctest.Wait()
		if n := pegs.count(); n != 1 {
			t.Errorf("%d endpoints are held, want the one that was renewed", n)
		}
		stop()
	})
}

func (m *memory) breakDown(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.fail = err
}

// A counter is a store that keeps nothing.
type counter struct {
	*memory
	ended map[string]time.Time // when the end of a lease was written
}

func (s *counter) Commit(_ context.Context, _ registry.Revision, changes []registry.Change) error {
	for _, ch := range changes {
		for _, ev := range ch.Events {
			if ev.Type == registry.EventLeaseEnded {
				s.ended[ev.Lease.ID] = time.Now()
			}
		}
	}
	return nil
}

// Ten thousand leases, fifty with PORTD_LONG=1, a third of which is renewed again and again: each of the others ends within a second of its time,
// and of those none.
func TestManyLeasesEndOnTime(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		many, rounds := long(50_000, 10_000), long(10, 4)
		memory, pegs := newStandIns()
		store := &counter{memory, map[string]time.Time{}}
		for i := range many {
			store.state.Leases = append(store.state.Leases, &registry.Lease{
				ID: fmt.Sprint(i), Owner: alice.Principal(), Spec: ttl(10*time.Second + time.Duration(i)*time.Millisecond), CreateRevision: 1,
			})
		}
		began := time.Now()
		r, stop := startAt(t, store, pegs, registry.Config{BootTime: fakeBoot(), BootID: "boot"})
		for range rounds { // until all the others have ended
			time.Sleep(9 * time.Second)
			for i := 0; i < many; i += 3 {
				if _, err := r.RenewLease(t.Context(), alice, fmt.Sprint(i)); err != nil {
					t.Fatal(err)
				}
			}
		}
		stop()
		for i := range many {
			at, ended := store.ended[fmt.Sprint(i)]
			switch late := at.Sub(began.Add(10*time.Second + time.Duration(i)*time.Millisecond)); {
			case i%3 == 0 && ended:
				t.Errorf("lease %d was renewed, and ended", i)
			case i%3 != 0 && (!ended || late < 0 || late > time.Second):
				t.Errorf("lease %d ended (%v) %v after its time", i, ended, late)
			}
		}
	})
}

func BenchmarkRenew(b *testing.B) {
	for _, n := range []int{100, 50_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			store, pegs := newStandIns()
			for i := range n {
				store.state.Leases = append(store.state.Leases, &registry.Lease{ID: fmt.Sprint(i), Owner: alice.Principal(), Spec: ttl(time.Hour)})
			}
			r, _ := startAt(b, store, pegs, registry.Config{BootID: "boot"})
			i := 0
			for b.Loop() {
				if _, err := r.RenewLease(b.Context(), alice, fmt.Sprint(i%n)); err != nil {
					b.Fatal(err)
				}
				i++
			}
		})
	}
}

// How long after their time the last of 50,000 leases that end in the same instant has ended, in a real store.
func BenchmarkExpireAtOnce(b *testing.B) {
	const many = 50_000
	for b.Loop() {
		store, err := boltstore.Open(b.TempDir()+"/portd.db", boltstore.Options{})
		if err != nil {
			b.Fatal(err)
		}
		put := make([]registry.Record, many)
		for i := range put {
			put[i] = &registry.Lease{ID: fmt.Sprint(i), Owner: alice.Principal(), Spec: ttl(3 * time.Second), CreateRevision: 1}
		}
		if err := store.Commit(b.Context(), 0, []registry.Change{{Revision: 1, Time: time.Now(), Put: put}}); err != nil {
			b.Fatal(err)
		}
		_, pegs := newStandIns()
		r, stop := startAt(b, store, pegs, registry.Config{BootID: "boot"})
		due := time.Now().Add(3 * time.Second)
		for begun := r.Status().Revision; r.Status().Revision < begun+many; {
			time.Sleep(time.Millisecond)
		}
		b.ReportMetric(float64(time.Since(due).Milliseconds()), "ms-late")
		stop()
		if err := store.Close(); err != nil {
			b.Fatal(err)
		}
	}
}
