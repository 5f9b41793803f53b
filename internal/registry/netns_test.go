package registry_test

import (
	"cmp"
	"errors"
	"slices"
	"sync"
	"testing"

	"github.com/portd/portd/internal/registry"
)

// spaces are network namespaces that tests make and take away: their owners by name.
type spaces struct {
	mu    sync.Mutex
	owner map[string]uint32
	kept  map[string]int
}

func (s *spaces) Name(_ registry.Caller, text string) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, there := s.owner[text]; !there {
		return "", registry.ErrNotFound
	}
	return text, nil
}

func (s *spaces) Keep(_ registry.Caller, text string) (registry.Namespace, uint32, error) {
	return s.Restore(registry.Namespace{Name: text, Inode: 1, Cookie: 1, BootID: "boot"})
}

func (s *spaces) Restore(n registry.Namespace) (registry.Namespace, uint32, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	owner, there := s.owner[n.Name]
	if !there {
		return n, 0, registry.ErrNotFound
	}
	s.kept[n.Name]++
	return n, owner, nil
}

func (s *spaces) Hold(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.kept[name]++
}

func (s *spaces) Drop(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.kept[name]--; s.kept[name] == 0 {
		delete(s.kept, name)
	}
}

func (s *spaces) Gone(names []string) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(names), func(n string) bool { _, there := s.owner[n]; return there })
}

func (s *spaces) remove(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.owner, name)
}

func (s *spaces) keeps(name string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.kept[name]
}

func newSpaces() *spaces {
	return &spaces{owner: map[string]uint32{"blue": 0, "green": 1001}, kept: map[string]int{}}
}

// Who may reserve in a namespace, and which ports.
func TestEnterNetns(t *testing.T) {
	all := newSpaces()
	store, pegs := newStandIns()
	r, stop := start(t, store, pegs, registry.Config{Netns: all})
	defer stop()
	in := func(ns string, uid uint32) registry.Caller { return registry.Caller{UID: uid, Netns: ns} }
	for _, tt := range []struct {
		c         registry.Caller
		ns        string
		low, high error
	}{
		{root, "blue", nil, nil},
		{in("blue", 0), "", nil, nil},
		{in("blue", 0), "host", nil, nil},
		{alice, "blue", registry.ErrDenied, registry.ErrDenied},
		{in("blue", 1001), "", registry.ErrDenied, nil},
		{in("blue", 1001), "blue", registry.ErrDenied, nil},
		{in("blue", 1001), "host", registry.ErrDenied, registry.ErrDenied},
		{alice, "green", nil, nil}, // is the owner
		{in("green", 1001), "", nil, nil},
		{bob, "green", registry.ErrDenied, registry.ErrDenied},
		{in("green", 1002), "", registry.ErrDenied, nil},
		{in("green", 1002), "blue", registry.ErrDenied, registry.ErrDenied},
		{root, "nosuch", registry.ErrNotFound, registry.ErrNotFound},
		{in(registry.UnknownNetns, 1001), "", registry.ErrUnsupported, registry.ErrUnsupported},
		{in(registry.UnknownNetns, 1001), "host", registry.ErrDenied, registry.ErrDenied},
	} {
		for text, want := range map[string]error{"tcp/81": tt.low, "tcp/8080": tt.high} {
			s := spec(t, text)
			s.Endpoints[0].Netns = tt.ns
			got, err := r.Reserve(t.Context(), tt.c, registry.ReserveRequest{Spec: s})
			if !errors.Is(err, want) {
				t.Errorf("%+v reserves %s in %q: %v, want %v", tt.c, text, tt.ns, err, want)
			}
			if err != nil {
				continue
			}
			if ns := got.Assigned[0].Endpoint.Netns; ns != cmp.Or(tt.ns, tt.c.Netns) {
				t.Errorf("%+v reserves %s in %q: it is in %q", tt.c, text, tt.ns, ns)
			}
			if _, err := r.Release(t.Context(), root, got.ID, ""); err != nil {
				t.Fatal(err)
			}
		}
		// To look needs the same right.
		if _, err := r.Uses(t.Context(), tt.c, tt.ns, registry.TCP, registry.PortRange{First: 8080, Last: 8080}); !errors.Is(err, tt.high) {
			t.Errorf("%+v looks at %q: %v, want %v", tt.c, tt.ns, err, tt.high)
		}
	}
	for _, ns := range []string{"blue", "green"} {
		if n := all.keeps(ns); n != 0 {
			t.Errorf("%s is kept %d times after all is released", ns, n)
		}
	}
}

// Everybody sees the reservations of a namespace, and who stands in their way is for those who may enter it.
func TestHoldersThere(t *testing.T) {
	store, pegs := newStandIns()
	r, _ := start(t, store, pegs, registry.Config{Netns: newSpaces()})
	var eps []registry.Endpoint
	for _, ns := range []string{"host", "blue", "green"} {
		s := spec(t, "tcp/8080")
		s.Mode, s.Endpoints[0].Netns = registry.Recorded, ns
		res, err := r.Reserve(t.Context(), root, registry.ReserveRequest{Spec: s})
		if err != nil {
			t.Fatal(err)
		}
		ep := res.Assigned[0].Endpoint
		eps, pegs.bound[foreign] = append(eps, ep), append(pegs.bound[foreign], ep)
	}
	for _, tt := range []struct {
		c    registry.Caller
		want []string
	}{
		{root, []string{"host", "blue", "green"}},
		{alice, []string{"host", "green"}}, // is the owner
		{bob, []string{"host"}},
		{registry.Caller{UID: bob.UID, Netns: "blue"}, []string{"blue"}},
		{registry.Caller{UID: bob.UID, Netns: registry.UnknownNetns}, nil},
	} {
		holders, err := r.HoldersThere(t.Context(), tt.c, eps...)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, h := range holders {
			got = append(got, h.Endpoint.Netns)
		}
		if !slices.Equal(got, tt.want) {
			t.Errorf("%+v sees sockets in %v, want %v", tt.c, got, tt.want)
		}
	}
}

// A namespace is kept once for all that is reserved in it, and what is reserved in it ends with it, by itself and with a lease that
// was its own.
func TestNetnsGone(t *testing.T) {
	all := newSpaces()
	store, pegs := newStandIns()
	r, stop := start(t, store, pegs, registry.Config{Netns: all})
	defer stop()
	in := func(text string) registry.ReserveRequest {
		s := spec(t, text)
		s.Endpoints[0].Netns = "blue"
		return registry.ReserveRequest{Spec: s}
	}
	held, recorded, leased := in("tcp/8080"), in("tcp/8081"), in("tcp/8082")
	recorded.Spec.Mode = registry.Recorded
	leased.NewLease = &registry.LeaseSpec{Kind: registry.TTLLease, TTL: registry.MaxTTL}
	ids := map[string]bool{}
	for _, req := range []registry.ReserveRequest{held, recorded, leased} {
		got, err := r.Reserve(t.Context(), root, req)
		if err != nil {
			t.Fatal(err)
		}
		ids[got.ID] = true
	}
	here, err := r.Reserve(t.Context(), root, registry.ReserveRequest{Spec: spec(t, "tcp/8080")})
	if err != nil {
		t.Fatal(err)
	}
	if n := all.keeps("blue"); n != 1 {
		t.Errorf("it is kept %d times", n)
	}
	all.remove("blue")
	ended := errors.New("all have ended")
	leases := 0
	err = r.Watch(t.Context(), root, registry.WatchRequest{From: here.Revision + 1}, func(_ string, ch registry.Change) error {
		for _, ev := range ch.Events {
			switch ev.Type {
			case registry.EventLeaseEnded:
				leases++
			case registry.EventExpired:
				if want := "network namespace blue is gone"; ev.Reason != want || ev.Caller != registry.Self {
					t.Errorf("%s has ended for %q by %s", ev.Reservation.ID, ev.Reason, ev.Caller)
				}
				delete(ids, ev.Reservation.ID)
			}
		}
		if len(ids) == 0 {
			return ended
		}
		return nil
	})
	if !errors.Is(err, ended) || leases != 1 {
		t.Errorf("%v; %d leases have ended, want 1", err, leases)
	}
	if n := all.keeps("blue"); n != 0 {
		t.Errorf("it is kept %d times after all has ended", n)
	}
	if st := r.Status(); st.Reservations != 1 {
		t.Errorf("%d reservations are left, want that of portd's own namespace", st.Reservations)
	}
}
