package registry_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/portd/portd/internal/ianadb"
	"github.com/portd/portd/internal/registry"
)

// places are addresses that share ports in every way: not at all, both, one way, by device.
var places = []string{
	"tcp/", "udp/", "tcp4/", "tcp6/", "tcp/127.0.0.1:", "tcp/127.0.0.2:", "tcp/[::1]:", "tcp/*%eth1:", "tcp/*%eth2:", "udp/127.0.0.1:",
}

// TestChooseAgreesWithTheTable draws a host at random, takes ports of portd's choice until there are none, and counts what
// is left one port at a time.
func TestChooseAgreesWithTheTable(t *testing.T) {
	t.Parallel()
	for seed := range uint64(30) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			chance := rand.New(rand.NewPCG(seed, 0))
			store, pegs := newStandIns()
			r, _ := start(t, store, pegs, registry.Config{})
			within := registry.PortRange{First: 20000 - uint16(chance.IntN(64)), Last: 20100 + uint16(chance.IntN(300))}
			anywhere := func() string {
				first := int(within.First) - 10 + chance.IntN(int(within.Last-within.First)+10)
				return fmt.Sprintf("%s%d-%d", places[chance.IntN(len(places))], first, first+chance.IntN(4))
			}
			var reserved, inUse []registry.Endpoint
			for range chance.IntN(60) {
				s := spec(t, anywhere())
				s.Mode = registry.Mode(chance.IntN(2))
				res, err := r.Reserve(t.Context(), alice, registry.ReserveRequest{Spec: s})
				if errors.Is(err, registry.ErrTaken) {
					continue
				} else if err != nil {
					t.Fatal(err)
				}
				if chance.IntN(4) == 0 {
					if _, err := r.Release(t.Context(), alice, res.ID, ""); err != nil {
						t.Fatal(err)
					}
					continue
				}
				reserved = append(reserved, endpoints(res.Reservation)...)
			}
			for range chance.IntN(30) {
				if ep := hostEndpoint(t, anywhere()); !overlaps(reserved, ep) {
					inUse = append(inUse, ep)
				}
			}
			pegs.mu.Lock()
			pegs.bound[foreign] = inUse
			pegs.mu.Unlock()

			s := spec(t, places[chance.IntN(len(places))]+"any")
			s.Mode = registry.Mode(chance.IntN(2))
			s.Endpoints[0].Any = &registry.AnyPorts{Within: within, Count: []int{0, 1, 2, 7, 65, 130}[chance.IntN(6)]}
			if chance.IntN(3) == 0 {
				s.Endpoints[0].Protos = []registry.Protocol{registry.TCP, registry.UDP}
			}
			var ran *registry.ExhaustedError
			for {
				res, err := r.Reserve(t.Context(), alice, registry.ReserveRequest{Spec: s})
				if errors.As(err, &ran) {
					break
				} else if err != nil {
					t.Fatal(err)
				}
				for _, ep := range endpoints(res.Reservation) {
					if overlaps(reserved, ep) || overlaps(inUse, ep) || ep.First < within.First || ep.Last > within.Last || ep.Ports() != max(1, s.Endpoints[0].Any.Count) {
						t.Fatalf("%v was given; reserved are %v, in use %v", ep, reserved, inUse)
					}
				}
				reserved = append(reserved, endpoints(res.Reservation)...)
			}
			want := countByHand(t, s.Endpoints[0], within, reserved, inUse)
			if diff := cmp.Diff(want, ran, cmpopts.IgnoreUnexported(*want), cmpopts.IgnoreFields(*want, "Example")); diff != "" {
				t.Errorf("%v (-want +got):\n%s", s, diff)
			}
			if want.Longest >= want.Count {
				t.Errorf("%d free ports in a row are enough for %d", want.Longest, want.Count)
			}
			if (ran.Example != nil) != (ran.InUse > 0) {
				t.Errorf("%d in use, of which the example is %v", ran.InUse, ran.Example)
			}
		})
	}
}

func countByHand(t *testing.T, s registry.EndpointSpec, within registry.PortRange, reserved, inUse []registry.Endpoint) *registry.ExhaustedError {
	e := &registry.ExhaustedError{Protos: s.Protos, Count: max(1, s.Any.Count), From: []registry.PortRange{within}}
	run := 0
	for port := within.First; port <= within.Last; port++ {
		var here, there bool
		for _, p := range s.Protos {
			ep := registry.Endpoint{Netns: registry.HostNetns, Proto: p, Addr: registry.AnyAddr, V6Only: s.V6Only, Device: s.Device, First: port, Last: port}
			if len(s.Addrs) > 0 {
				ep.Addr = s.Addrs[0]
			}
			here, there = here || overlaps(reserved, ep), there || overlaps(inUse, ep)
		}
		run++
		switch {
		case here:
			e.Reserved++
			run = 0
		case there:
			e.InUse++
			run = 0
		default:
			e.Free++
		}
		e.Longest = max(e.Longest, run)
	}
	return e
}

// TestNothingLeftToChoose counts what portd keeps out of by itself.
func TestNothingLeftToChoose(t *testing.T) {
	t.Parallel()
	store, pegs := newStandIns()
	r, _ := start(t, store, pegs, registry.Config{})
	var want registry.ExhaustedError
	for port := 1024; port <= 65535; port++ {
		status := r.Services().Status(uint16(port), ianadb.TCP)
		switch {
		case port >= 32768 && port <= 60999:
			want.Ephemeral++
		case port >= 30000 && port <= 32767:
			want.NodePorts++
		case status == ianadb.StatusAssigned:
			want.Assigned++
		case status != ianadb.StatusUnassigned:
			want.Kept++
		default:
			want.Reserved++
		}
	}
	want.Reserved-- // port 8110 is in use
	want.InUse = 1
	want.Protos, want.Count = []registry.Protocol{registry.TCP}, 1
	want.Pool, want.From = registry.DefaultPool, []registry.PortRange{{First: 1024, Last: 65535}}
	pegs.mu.Lock()
	pegs.bound[foreign] = []registry.Endpoint{hostEndpoint(t, "tcp/127.0.0.1:8110")}
	pegs.mu.Unlock()
	all := spec(t, "tcp/1-65535")
	all.Mode = registry.Recorded
	for _, ports := range []registry.PortRange{{First: 1, Last: 8109}, {First: 8111, Last: 65535}} {
		all.Endpoints[0].Exact = ports
		if _, err := r.Reserve(t.Context(), root, registry.ReserveRequest{Spec: all}); err != nil {
			t.Fatal(err)
		}
	}
	res, err := r.Reserve(t.Context(), alice, registry.ReserveRequest{Spec: spec(t, "tcp/any")})
	var got *registry.ExhaustedError
	if !errors.As(err, &got) || !errors.Is(err, registry.ErrExhausted) {
		t.Fatalf("got %v, %v, want an ExhaustedError", res, err)
	}
	if diff := cmp.Diff(&want, got, cmpopts.IgnoreUnexported(want), cmpopts.IgnoreFields(want, "Example")); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	for _, says := range []string{
		`no free port for tcp in the pool "default" (1024-65535): of 64512 ports `,
		fmt.Sprintf("%d are reserved here, 1 in use by other programs (", want.Reserved), "127.0.0.1:8110",
		"28232 in the kernel's ephemeral range 32768-60999", "2768 node ports of Kubernetes",
		fmt.Sprintf("%d assigned to services", want.Assigned),
	} {
		if !strings.Contains(err.Error(), says) {
			t.Errorf("%v\ndoes not say %q", err, says)
		}
	}
}

// TestReleasedIsFree releases one of two that share a port, and then the other.
func TestReleasedIsFree(t *testing.T) {
	t.Parallel()
	store, pegs := newStandIns()
	r, _ := start(t, store, pegs, registry.Config{})
	for _, text := range []string{"tcp/127.0.0.1:8105", "tcp/127.0.0.2:8105"} {
		if _, err := r.Reserve(t.Context(), alice, registry.ReserveRequest{Spec: spec(t, text)}); err != nil {
			t.Fatal(err)
		}
	}
	query := registry.FreeQuery{Protos: []registry.Protocol{registry.TCP}, Within: registry.PortRange{First: 8105, Last: 8105}}
	for i, text := range []string{"tcp/127.0.0.1:8105", "tcp/127.0.0.2:8105"} {
		if _, err := r.Release(t.Context(), alice, text, ""); err != nil {
			t.Fatal(err)
		}
		if free, err := r.FreePorts(t.Context(), alice, query); err != nil || free.Reserved != 1-i || free.Free != i {
			t.Errorf("after the release of %s: %d reserved, %d free (%v)", text, free.Reserved, free.Free, err)
		}
	}
}

// TestChooseTogether has many choose from just as many ports as they want.
func TestChooseTogether(t *testing.T) {
	t.Parallel()
	store, pegs := newStandIns()
	r, _ := start(t, store, pegs, registry.Config{})
	s := spec(t, "tcp/any")
	s.Endpoints[0].Any = &registry.AnyPorts{Within: registry.PortRange{First: 20000, Last: 20199}}
	var all sync.WaitGroup
	for range 20 {
		all.Go(func() {
			for range 10 {
				if _, err := r.Reserve(t.Context(), alice, registry.ReserveRequest{Spec: s}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
}

func hostEndpoint(t *testing.T, text string) registry.Endpoint {
	t.Helper()
	ep, err := registry.ParseEndpoint(text)
	if err != nil {
		t.Fatal(err)
	}
	ep.Netns = registry.HostNetns
	return ep
}

func endpoints(res *registry.Reservation) (eps []registry.Endpoint) {
	for _, a := range res.Assigned {
		eps = append(eps, a.Endpoint)
	}
	return eps
}

func overlaps(all []registry.Endpoint, ep registry.Endpoint) bool {
	for _, o := range all {
		if o.Overlaps(ep) {
			return true
		}
	}
	return false
}
