package registry_test

import (
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/portd/portd/internal/registry"
)

func reserveNamed(t *testing.T, r *registry.Registry, c registry.Caller, text, name string) *registry.Reservation {
	t.Helper()
	res, err := r.Reserve(t.Context(), c, registry.ReserveRequest{Spec: spec(t, text), Name: name})
	if err != nil {
		t.Fatal(err)
	}
	return res.Reservation
}

// TestExpectedRevision has every change refused that was made up on an older state, and done on the present one.
func TestExpectedRevision(t *testing.T) {
	t.Parallel()
	store, pegs := newStandIns()
	r, _ := start(t, store, pegs, registry.Config{})
	read := reserveNamed(t, r, alice, "tcp/8080", "web")
	now, err := r.Listen(t.Context(), alice, "web", registry.Listen{}, "")
	if err != nil {
		t.Fatal(err)
	}
	label := registry.Update{Labels: map[string]string{"team": "a"}}
	changes := []struct {
		name string
		do   func(requestID string, rev registry.IfRevision) error
	}{
		{"listen", func(id string, rev registry.IfRevision) error {
			_, err := r.Listen(t.Context(), alice, "web", registry.Listen{Options: registry.ListenOptions{Backlog: 5}}, id, rev)
			return err
		}},
		{"close", func(id string, rev registry.IfRevision) error {
			_, err := r.Unlisten(t.Context(), alice, "web", id, rev)
			return err
		}},
		{"update", func(id string, rev registry.IfRevision) error {
			_, err := r.Update(t.Context(), alice, "web", label, id, rev)
			return err
		}},
		{"release", func(id string, rev registry.IfRevision) error {
			_, err := r.Release(t.Context(), alice, "web", id, rev)
			return err
		}},
	}
	for _, c := range changes {
		before := r.Status().Revision
		err := c.do("", registry.IfRevision(read.Revision))
		var conflict *registry.ConflictError
		if !errors.Is(err, registry.ErrConflict) || !errors.As(err, &conflict) {
			t.Fatalf("%s: got %v, want ErrConflict", c.name, err)
		}
		if conflict.Expected != read.Revision || conflict.Reservation.Revision != now.Revision {
			t.Errorf("%s: %v names %d and %d, want %d and %d", c.name, err, conflict.Expected, conflict.Reservation.Revision, read.Revision, now.Revision)
		}
		if err := c.do("", -1); !errors.Is(err, registry.ErrInvalid) {
			t.Errorf("%s: -1: got %v, want ErrInvalid", c.name, err)
		}
		if after := r.Status().Revision; after != before {
			t.Errorf("%s: what was refused made revision %d of %d", c.name, after, before)
		}
	}
	for _, c := range changes {
		rev := registry.IfRevision(now.Revision)
		if err := c.do(c.name, rev); err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		// The repeated call is answered from its record; with another revision it is another request.
		if err := c.do(c.name, rev); err != nil {
			t.Errorf("%s, repeated: %v", c.name, err)
		}
		if err := c.do(c.name, rev+1); !errors.Is(err, registry.ErrInvalid) {
			t.Errorf("%s, its request id with another revision: got %v, want ErrInvalid", c.name, err)
		}
		if now, err = r.Get(t.Context(), alice, "web"); (err != nil) != (c.name == "release") {
			t.Fatalf("after %s: %v", c.name, err)
		}
	}
}

func TestUpdate(t *testing.T) {
	t.Parallel()
	store, pegs := newStandIns()
	r, stop := start(t, store, pegs, registry.Config{})
	web := reserveNamed(t, r, alice, "tcp/8080", "web")
	reserveNamed(t, r, bob, "tcp/8081", "db")
	name, none, taken, bad := "shop", "", "db", "No Name"
	lease, err := r.CreateLease(t.Context(), alice, ttl(time.Hour), "")
	if err != nil {
		t.Fatal(err)
	}
	others, err := r.CreateLease(t.Context(), bob, ttl(time.Hour), "")
	if err != nil {
		t.Fatal(err)
	}
	for what, tt := range map[string]struct {
		c    registry.Caller
		u    registry.Update
		want error
	}{
		"nothing":            {alice, registry.Update{}, registry.ErrInvalid},
		"a bad name":         {alice, registry.Update{Name: &bad}, registry.ErrInvalid},
		"a bad label":        {alice, registry.Update{Labels: map[string]string{"": "x"}}, registry.ErrInvalid},
		"another's name":     {alice, registry.Update{Name: &taken, Labels: map[string]string{"a": "b"}}, registry.ErrTaken},
		"another's lease":    {alice, registry.Update{Name: &name, Lease: &others.ID}, registry.ErrNotFound},
		"no lease":           {alice, registry.Update{Lease: &bad}, registry.ErrNotFound},
		"another's":          {bob, registry.Update{Name: &name}, registry.ErrDenied},
		"what it is (no-op)": {alice, registry.Update{Name: &web.Name, Labels: map[string]string{}, Lease: &none}, nil},
	} {
		before := r.Status().Revision
		if _, err := r.Update(t.Context(), tt.c, web.ID, tt.u, ""); !errors.Is(err, tt.want) {
			t.Errorf("%s: got %v, want %v", what, err, tt.want)
		}
		if after := r.Status().Revision; after != before {
			t.Errorf("%s made a revision", what)
		}
	}
	before := r.Status().Revision
	got, err := r.Update(t.Context(), alice, "tcp/8080", registry.Update{Name: &name, Labels: map[string]string{"team": "a"}, Lease: &lease.ID}, "")
	if err != nil {
		t.Fatal(err)
	}
	want := *web
	want.Name, want.Labels, want.Lease, want.Revision = name, map[string]string{"team": "a"}, lease.ID, before+1
	if diff := cmp.Diff(&want, got, cmpopts.EquateComparable(netip.Addr{})); diff != "" {
		t.Errorf("the update (-want +got):\n%s", diff)
	}
	if ev := store.log[len(store.log)-1].Events; len(ev) != 1 || ev[0].Type != registry.EventUpdated || ev[0].Reservation != got || ev[0].Reason != `name, which was "web", labels, lease` {
		t.Errorf("the change tells %+v", ev)
	}
	if _, err := r.Get(t.Context(), alice, "web"); !errors.Is(err, registry.ErrNotFound) {
		t.Errorf("its old name: got %v, want ErrNotFound", err)
	}
	reserveNamed(t, r, bob, "tcp/8082", "web") // is free for others
	stop()
	_, pegs = newStandIns()
	r, _ = start(t, store, pegs, registry.Config{})
	if again, err := r.Get(t.Context(), alice, name); err != nil || cmp.Diff(got, again, cmpopts.EquateComparable(netip.Addr{})) != "" {
		t.Errorf("after a restart %v, %v", again, err)
	}
	if out, err := r.EndLease(t.Context(), alice, lease.ID, ""); err != nil || len(out.Released) != 1 || out.Released[0].ID != web.ID {
		t.Errorf("the end of its new lease: %+v, %v", out, err)
	}
}

// TestUpdateFails has the store refuse: nothing is as it was asked for, and everything can be asked again.
func TestUpdateFails(t *testing.T) {
	t.Parallel()
	store, pegs := newStandIns()
	r, _ := start(t, store, pegs, registry.Config{})
	res := forAWhile(t, r, "tcp/8080", "web", ttl(time.Hour))
	old, shop, none := res.Lease, "shop", ""
	other, err := r.CreateLease(t.Context(), alice, ttl(time.Hour), "")
	if err != nil {
		t.Fatal(err)
	}
	store.mu.Lock()
	store.fail = registry.ErrUnavailable
	store.mu.Unlock()
	for _, lease := range []string{none, other.ID} {
		if _, err := r.Update(t.Context(), alice, "web", registry.Update{Name: &shop, Lease: &lease}, ""); !errors.Is(err, registry.ErrUnavailable) {
			t.Fatalf("got %v, want ErrUnavailable", err)
		}
	}
	store.mu.Lock()
	store.fail = nil
	store.mu.Unlock()
	if got, err := r.Get(t.Context(), alice, "web"); err != nil || got != res {
		t.Errorf("it is %v (%v) now", got, err)
	}
	if _, err := r.RenewLease(t.Context(), alice, old); err != nil {
		t.Errorf("its lease: %v", err)
	}
	if out, err := r.EndLease(t.Context(), alice, other.ID, ""); err != nil || len(out.Released) > 0 {
		t.Errorf("the other lease released %v (%v)", out.Released, err)
	}
	reserveNamed(t, r, bob, "tcp/8081", shop)
	if out, err := r.EndLease(t.Context(), alice, old, ""); err != nil || len(out.Released) != 1 {
		t.Errorf("its lease released %v (%v)", out.Released, err)
	}
}

// TestUpdateMovesLeases takes a reservation from the lease that was made with it, which ends, and from one that was not.
func TestUpdateMovesLeases(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store, pegs := newStandIns()
		r, stop := start(t, store, pegs, registry.Config{BootTime: fakeBoot()})
		single := forAWhile(t, r, "tcp/8080", "web", ttl(time.Minute))
		long, err := r.CreateLease(t.Context(), alice, ttl(time.Hour), "")
		if err != nil {
			t.Fatal(err)
		}
		before := r.Status().Revision
		if _, err := r.Update(t.Context(), alice, "web", registry.Update{Lease: &long.ID}, ""); err != nil {
			t.Fatal(err)
		}
		if now := r.Status().Revision; now != before+1 {
			t.Errorf("it made %d revisions, want 1 for both", now-before)
		}
		if _, err := r.GetLease(t.Context(), alice, single.Lease); !errors.Is(err, registry.ErrNotFound) {
			t.Errorf("a lease without the reservation that it was made for: got %v, want ErrNotFound", err)
		}
		time.Sleep(2 * time.Minute)
		none := ""
		if _, err := r.Update(t.Context(), alice, "web", registry.Update{Lease: &none}, ""); err != nil {
			t.Fatal(err)
		}
		if _, err := r.GetLease(t.Context(), alice, long.ID); err != nil {
			t.Errorf("a lease of its own: %v", err)
		}
		time.Sleep(2 * time.Hour)
		if _, err := r.Get(t.Context(), alice, "web"); err != nil || pegs.count() != 1 {
			t.Errorf("without a lease: %v", err)
		}
		if _, err := r.GetLease(t.Context(), alice, long.ID); !errors.Is(err, registry.ErrNotFound) {
			t.Errorf("the lease after its time: got %v, want ErrNotFound", err)
		}
		stop()
	})
}

// TestUpdateAsItsLeaseEnds takes reservations from a lease in the moment when it ends: each has either ended or stays.
func TestUpdateAsItsLeaseEnds(t *testing.T) {
	t.Parallel()
	const each = 50
	store, pegs := newStandIns()
	r, _ := start(t, store, pegs, registry.Config{})
	lease, err := r.CreateLease(t.Context(), alice, ttl(time.Hour), "")
	if err != nil {
		t.Fatal(err)
	}
	for i := range each {
		_, err := r.Reserve(t.Context(), alice, registry.ReserveRequest{Spec: spec(t, fmt.Sprint("tcp/", 8000+i)), Name: fmt.Sprint("n", i), Lease: lease.ID})
		if err != nil {
			t.Fatal(err)
		}
	}
	errs := make([]error, each)
	var all sync.WaitGroup
	none := ""
	for i := range each {
		all.Go(func() {
			_, errs[i] = r.Update(t.Context(), alice, fmt.Sprint("n", i), registry.Update{Lease: &none}, "")
		})
		if i == each/2 {
			all.Go(func() {
				if _, err := r.EndLease(t.Context(), alice, lease.ID, ""); err != nil {
					t.Error(err)
				}
			})
		}
	}
	all.Wait()
	stay := 0
	for i, err := range errs {
		switch _, gone := r.Get(t.Context(), alice, fmt.Sprint("n", i)); {
		case err == nil && gone == nil:
			stay++
		case errors.Is(err, registry.ErrNotFound) && errors.Is(gone, registry.ErrNotFound):
		default:
			t.Errorf("n%d: the update ended with %v, and now %v", i, err, gone)
		}
	}
	if stay != pegs.count() {
		t.Errorf("%d reservations stay, %d ports are held", stay, pegs.count())
	}
}

// TestNamesAreSwapped has two want each other's name, again and again: nobody has two, and nobody waits for ever.
func TestNamesAreSwapped(t *testing.T) {
	t.Parallel()
	store, pegs := newStandIns()
	r, _ := start(t, store, pegs, registry.Config{})
	ids := []string{reserveNamed(t, r, alice, "tcp/8080", "a").ID, reserveNamed(t, r, alice, "tcp/8081", "b").ID}
	names := []string{"a", "b", "c"}
	var both sync.WaitGroup
	for i, id := range ids {
		both.Go(func() {
			for n := range 200 {
				_, err := r.Update(t.Context(), alice, id, registry.Update{Name: &names[(i+n)%len(names)]}, "")
				if err != nil && !errors.Is(err, registry.ErrTaken) {
					t.Error(err)
				}
			}
		})
	}
	both.Wait()
	for _, id := range ids {
		res, err := r.Get(t.Context(), alice, id)
		if err != nil {
			t.Fatal(err)
		}
		if found, err := r.Get(t.Context(), alice, res.Name); err != nil || found != res {
			t.Errorf("%q is %v (%v), want %v", res.Name, found, err, res)
		}
	}
}

// A watch that is filtered by labels is told when a reservation's are others.
func TestUpdateLeadsOutOfAFilter(t *testing.T) {
	t.Parallel()
	store, pegs := newStandIns()
	r, _ := start(t, store, pegs, registry.Config{})
	from := r.Status().Revision + 1
	label := func(team string) registry.Update { return registry.Update{Labels: map[string]string{"team": team}} }
	reserveNamed(t, r, alice, "tcp/8080", "web")
	for _, team := range []string{"a", "b", "c"} {
		if _, err := r.Update(t.Context(), alice, "web", label(team), ""); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := r.Release(t.Context(), alice, "web", ""); err != nil {
		t.Fatal(err)
	}
	last := r.Status().Revision
	for _, tt := range []struct {
		filter registry.Filter
		want   []string
	}{
		{registry.Filter{Labels: map[string]string{"team": "a"}}, []string{"a", "b", "c"}},
		{registry.Filter{Labels: map[string]string{"team": "a"}, Owner: bob.Principal()}, nil},
		{registry.Filter{Lease: "lse_1"}, []string{"a", "b", "c"}},
		{registry.Filter{Proto: registry.UDP}, nil},
	} {
		var got []string
		done := errors.New("all seen")
		err := r.Watch(t.Context(), alice, registry.WatchRequest{From: from, Filter: tt.filter, Progress: 1}, func(_ string, ch registry.Change) error {
			for _, ev := range ch.Events {
				if ev.Type == registry.EventUpdated {
					got = append(got, ev.Reservation.Labels["team"])
				}
			}
			if ch.Revision >= last {
				return done
			}
			return nil
		})
		if !errors.Is(err, done) {
			t.Fatal(err)
		}
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%+v (-want +got):\n%s", tt.filter, diff)
		}
	}
}
