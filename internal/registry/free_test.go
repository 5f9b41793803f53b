package registry_test

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/portd/portd/internal/ianadb"
	"github.com/portd/portd/internal/registry"
)

func TestFreePorts(t *testing.T) {
	t.Parallel()
	store, pegs := newStandIns()
	r, _ := start(t, store, pegs, registry.Config{})
	// IANA has some of 8103 to 8127 unassigned, and the host takes two of them away.
	myapp := own("myapp", 8124, ianadb.TCP, "")
	myapp.Last = 8125
	if _, _, err := r.AddServices(t.Context(), root, []ianadb.Entry{myapp}, true); err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"tcp/8105", "udp/8106", "tcp/127.0.0.1:8107"} {
		if _, err := r.Reserve(t.Context(), alice, registry.ReserveRequest{Spec: spec(t, text)}); err != nil {
			t.Fatal(err)
		}
	}
	recorded := spec(t, "tcp/8108")
	recorded.Mode = registry.Recorded
	if _, err := r.Reserve(t.Context(), alice, registry.ReserveRequest{Spec: recorded}); err != nil {
		t.Fatal(err)
	}
	occupied, err := registry.ParseEndpoint("tcp/127.0.0.1:8110")
	if err != nil {
		t.Fatal(err)
	}
	occupied.Netns = registry.HostNetns
	pegs.mu.Lock()
	pegs.bound[foreign] = []registry.Endpoint{occupied}
	pegs.mu.Unlock()

	within := registry.PortRange{First: 8103, Last: 8127}
	for _, tt := range []struct {
		protos []registry.Protocol
		count  int
	}{
		{[]registry.Protocol{registry.TCP}, 0},
		{[]registry.Protocol{registry.UDP}, 0},
		{[]registry.Protocol{registry.TCP, registry.UDP}, 0},
		{[]registry.Protocol{registry.TCP, registry.UDP}, 2},
	} {
		got, err := r.FreePorts(t.Context(), alice, registry.FreeQuery{Protos: tt.protos, Within: within, Count: tt.count})
		if err != nil {
			t.Fatal(err)
		}
		want := freeByHand(r.Services(), tt.protos, within, tt.count)
		want.Ephemeral, want.Services, got.Services = pegs.Ephemeral(registry.HostNetns), nil, nil
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%v in runs of %d (-want +got):\n%s", tt.protos, tt.count, diff)
		}
	}
	for name, q := range map[string]registry.FreeQuery{
		"no protocol": {},
		"not one":     {Protos: []registry.Protocol{1}},
		"port 0":      {Protos: []registry.Protocol{registry.TCP}, Within: registry.PortRange{Last: 5}},
		"backwards":   {Protos: []registry.Protocol{registry.TCP}, Within: registry.PortRange{First: 5, Last: 4}},
		"too long":    {Protos: []registry.Protocol{registry.TCP}, Within: within, Count: 26},
		"negative":    {Protos: []registry.Protocol{registry.TCP}, Count: -1},
	} {
		if _, err := r.FreePorts(t.Context(), alice, q); !errors.Is(err, registry.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := r.FreePorts(t.Context(), registry.Caller{UID: 1000, Netns: "blue"}, registry.FreeQuery{Protos: []registry.Protocol{registry.TCP}}); !errors.Is(err, registry.ErrUnsupported) {
		t.Errorf("in another network namespace: %v", err)
	}
}

// freeByHand goes port by port.
func freeByHand(s *registry.Services, protos []registry.Protocol, within registry.PortRange, count int) *registry.FreePorts {
	reserved := map[registry.Protocol]map[uint16]bool{
		registry.TCP: {8105: true, 8107: true, 8108: true},
		registry.UDP: {8106: true},
	}
	out := &registry.FreePorts{}
	run := func(last, length int) {
		if length >= max(count, 1) {
			out.Ranges = append(out.Ranges, registry.PortRange{First: uint16(last - length + 1), Last: uint16(last)})
		}
	}
	length := 0
	for port := int(within.First); port <= int(within.Last); port++ {
		unassigned, isReserved, inUse := true, false, false
		for _, p := range protos {
			known, _ := ianadb.ParseProtocol(p.String())
			unassigned = unassigned && s.Unassigned(uint16(port), known)
			isReserved = isReserved || reserved[p][uint16(port)]
			inUse = inUse || p == registry.TCP && port == 8110
		}
		switch {
		case !unassigned:
			out.Assigned++
		case isReserved:
			out.Reserved++
		case inUse:
			out.InUse++
		default:
			out.Free++
			length++
			continue
		}
		run(port-1, length)
		length = 0
	}
	run(int(within.Last), length)
	return out
}
