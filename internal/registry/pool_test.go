package registry_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/portd/portd/internal/ianadb"
	"github.com/portd/portd/internal/registry"
)

// onePool are settings with a pool of some TCP and UDP ports.
func onePool(name string, s registry.Strategy, quarantine time.Duration, ranges ...registry.PortRange) registry.Settings {
	ports := registry.PoolPorts{Ranges: ranges}
	return registry.Settings{Pools: []registry.Pool{{
		Name: name, Strategy: s, Quarantine: quarantine,
		Ports: map[registry.Protocol]registry.PoolPorts{registry.TCP: ports, registry.UDP: ports},
	}}}
}

// anyOf asks for ports of portd's choice.
func anyOf(t *testing.T, protos string, a registry.AnyPorts) registry.Spec {
	t.Helper()
	s := spec(t, protos+"/any")
	s.Endpoints[0].Any = &a
	return s
}

// port reserves a spec and returns the first port that was given.
func port(t *testing.T, r *registry.Registry, c registry.Caller, s registry.Spec, name string) int {
	t.Helper()
	res, err := r.Reserve(t.Context(), c, registry.ReserveRequest{Spec: s, Name: name})
	if err != nil {
		t.Fatal(err)
	}
	return int(res.Assigned[0].Endpoint.First)
}

func release(t *testing.T, r *registry.Registry, ref string) {
	t.Helper()
	if _, err := r.Release(t.Context(), root, ref, ""); err != nil {
		t.Fatal(err)
	}
}

func TestStrategies(t *testing.T) {
	t.Parallel()
	ranges := []registry.PortRange{{First: 20010, Last: 20012}, {First: 20000, Last: 20002}, {First: 20001, Last: 20004}}
	ci := registry.AnyPorts{Pool: "ci"}
	tests := []struct {
		strategy registry.Strategy
		want     []int // of releases, 20001 after the third and each after the fifth
	}{
		{registry.StrategyLowest, []int{20000, 20001, 20002, 20001, 20003, 20003, 20003}},
		{registry.StrategyNext, []int{20000, 20001, 20002, 20003, 20004, 20010, 20011, 20012, 20001, 20004}},
	}
	for _, tt := range tests {
		t.Run(tt.strategy.String(), func(t *testing.T) {
			store, pegs := newStandIns()
			cfg := registry.Config{Settings: onePool("ci", tt.strategy, time.Hour, ranges...)}
			r, stop := start(t, store, pegs, cfg)
			var got []int
			for i := range tt.want {
				p := port(t, r, alice, anyOf(t, "tcp", ci), "")
				got = append(got, p)
				switch {
				case i == 2:
					release(t, r, "tcp/20001")
				case i >= 4:
					release(t, r, fmt.Sprintf("tcp/%d", p))
				}
				if i == 6 { // what goes round goes on after a restart
					stop()
					_, pegs = newStandIns()
					r, stop = start(t, store, pegs, cfg)
				}
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
	t.Run("random", func(t *testing.T) {
		store, pegs := newStandIns()
		r, _ := start(t, store, pegs, registry.Config{Settings: onePool("ci", registry.StrategyRandom, 0, ranges...)})
		var got []int
		for range 8 {
			got = append(got, port(t, r, alice, anyOf(t, "tcp,udp", ci), ""))
		}
		slices.Sort(got)
		if diff := cmp.Diff([]int{20000, 20001, 20002, 20003, 20004, 20010, 20011, 20012}, got); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	})
}

// TestPoolsLeaveOut draws pools, takes all that they give, and counts by hand what they do not.
func TestPoolsLeaveOut(t *testing.T) {
	t.Parallel()
	store, pegs := newStandIns()
	r, _ := start(t, store, pegs, registry.Config{})
	for seed := range uint64(20) {
		chance := rand.New(rand.NewPCG(seed, 1))
		avoid := map[registry.Protocol]registry.Avoid{registry.TCP: registry.Avoid(chance.IntN(8)), registry.UDP: registry.Avoid(chance.IntN(8))}
		first := uint16(29900 + chance.IntN(60)) // across the first node port
		within := registry.PortRange{First: first, Last: first + 120}
		if chance.IntN(2) == 0 { // across the first ephemeral one
			within = registry.PortRange{First: 32700 + uint16(chance.IntN(60)), Last: 32800}
		}
		p := registry.Pool{Name: "ci", Ports: map[registry.Protocol]registry.PoolPorts{}}
		for proto, a := range avoid {
			p.Ports[proto] = registry.PoolPorts{Ranges: []registry.PortRange{within}, Avoid: a}
		}
		if err := r.Apply(registry.Settings{Pools: []registry.Pool{p}}); err != nil {
			t.Fatal(err)
		}
		protos := []string{"tcp", "udp", "tcp,udp"}[chance.IntN(3)]
		s := anyOf(t, protos, registry.AnyPorts{Pool: "ci"})
		want := &registry.ExhaustedError{Protos: s.Endpoints[0].Protos, Count: 1, Pool: "ci", From: []registry.PortRange{within}}
		for port := within.First; port <= within.Last; port++ {
			var left registry.Avoid
			kept := false
			for _, proto := range s.Endpoints[0].Protos {
				of := map[registry.Protocol]ianadb.Protocol{registry.TCP: ianadb.TCP, registry.UDP: ianadb.UDP}[proto]
				status := r.Services().Status(port, of)
				if port >= 32768 {
					left |= avoid[proto] & registry.AvoidEphemeral
				}
				if port >= 30000 && port <= 32767 {
					left |= avoid[proto] & registry.AvoidNodePorts
				}
				if status == ianadb.StatusAssigned {
					left |= avoid[proto] & registry.AvoidAssigned
				} else if status != ianadb.StatusUnassigned {
					kept = kept || avoid[proto]&registry.AvoidAssigned != 0
				}
			}
			switch {
			case left&registry.AvoidEphemeral != 0:
				want.Ephemeral++
			case left&registry.AvoidNodePorts != 0:
				want.NodePorts++
			case left&registry.AvoidAssigned != 0:
				want.Assigned++
			case kept:
				want.Kept++
			default:
				want.Reserved++
			}
		}
		var ran *registry.ExhaustedError
		var given []string
		for {
			res, err := r.Reserve(t.Context(), alice, registry.ReserveRequest{Spec: s})
			if errors.As(err, &ran) {
				break
			} else if err != nil {
				t.Fatal(err)
			}
			given = append(given, res.ID)
		}
		if diff := cmp.Diff(want, ran, cmpopts.IgnoreUnexported(*want)); diff != "" || len(given) != want.Reserved {
			t.Errorf("seed %d: %s of %v avoiding %v gave %d (-want +got):\n%s", seed, protos, within, avoid, len(given), diff)
		}
		for _, id := range given {
			release(t, r, id)
		}
	}
}

func TestPoolsRefuse(t *testing.T) {
	t.Parallel()
	store, pegs := newStandIns()
	settings := onePool("ci", registry.StrategyLowest, 0, registry.PortRange{First: 20000, Last: 20009})
	low := onePool("low", registry.StrategyLowest, 0, registry.PortRange{First: 1000, Last: 1025}).Pools[0]
	lower := onePool("lower", registry.StrategyLowest, 0, registry.PortRange{First: 1000, Last: 1010}).Pools[0]
	half := registry.Pool{Name: "half", Ports: map[registry.Protocol]registry.PoolPorts{
		registry.TCP: {Ranges: []registry.PortRange{{First: 20000, Last: 20005}}},
		registry.UDP: {Ranges: []registry.PortRange{{First: 20005, Last: 20009}}},
	}}
	settings.Pools = append(settings.Pools, low, lower, half)
	r, _ := start(t, store, pegs, registry.Config{Settings: settings})
	tests := []struct {
		protos string
		any    registry.AnyPorts
		who    registry.Caller
		want   error
		says   string
		port   int
	}{
		{"tcp", registry.AnyPorts{Pool: "cl"}, alice, registry.ErrNotFound, `there is no pool "cl"; there are default, ci, half, low, lower`, 0},
		{"sctp", registry.AnyPorts{Pool: "ci"}, alice, registry.ErrInvalid, `the pool "ci" has no ports of sctp`, 0},
		{"tcp", registry.AnyPorts{Pool: "ci", Within: registry.PortRange{First: 20010, Last: 20020}}, alice, registry.ErrInvalid, `the pool "ci" has no port of tcp in 20010-20020`, 0},
		{"tcp", registry.AnyPorts{Pool: "ci", Within: registry.PortRange{First: 20009, Last: 20020}}, alice, nil, "", 20009},
		{"tcp,udp", registry.AnyPorts{Pool: "half"}, alice, nil, "", 20005},
		{"tcp,udp", registry.AnyPorts{Pool: "half"}, alice, registry.ErrExhausted, `no free port for tcp,udp in the pool "half" (20005): of 1 ports 1 are reserved here`, 0},
		{"tcp", registry.AnyPorts{Pool: "low"}, alice, nil, "", 1024},
		{"tcp", registry.AnyPorts{Pool: "low"}, root, nil, "", 1000},
		{"tcp", registry.AnyPorts{Pool: "lower"}, alice, registry.ErrDenied, "ports below 1024 are for root", 0},
		{"tcp", registry.AnyPorts{Pool: "ci", Count: 11}, alice, registry.ErrExhausted, "no free run of 11 ports", 0},
	}
	for _, tt := range tests {
		res, err := r.Reserve(t.Context(), tt.who, registry.ReserveRequest{Spec: anyOf(t, tt.protos, tt.any)})
		if !errors.Is(err, tt.want) || err != nil && !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%s %+v: got %v, want %v: %s", tt.protos, tt.any, err, tt.want, tt.says)
		} else if err == nil && int(res.Assigned[0].Endpoint.First) != tt.port {
			t.Errorf("%s %+v: got %s, want %d", tt.protos, tt.any, res.Endpoints(), tt.port)
		}
	}
}

func TestApply(t *testing.T) {
	t.Parallel()
	store, pegs := newStandIns()
	r, _ := start(t, store, pegs, registry.Config{})
	good := onePool("ci", registry.StrategyLowest, time.Second, registry.PortRange{First: 20000, Last: 20009})
	if err := r.Apply(good); err != nil {
		t.Fatal(err)
	}
	with := func(change func(*registry.Pool)) registry.Pool {
		p := onePool("bad", 0, 0, registry.PortRange{First: 1, Last: 2}).Pools[0]
		change(&p)
		return p
	}
	tests := []struct {
		pool registry.Pool
		says string
	}{
		{with(func(p *registry.Pool) { p.Name = "Bad" }), `pool "Bad": name`},
		{with(func(p *registry.Pool) { p.Name = "any" }), `pool "any": name`},
		{with(func(p *registry.Pool) { p.Name = "ci" }), `pool "ci": name: there are two`},
		{with(func(p *registry.Pool) { p.Quarantine = -1 }), `pool "bad": quarantine`},
		{with(func(p *registry.Pool) { p.Strategy = 3 }), `pool "bad": strategy`},
		{with(func(p *registry.Pool) { p.Ports = nil }), `pool "bad": ports`},
		{with(func(p *registry.Pool) { p.Ports[registry.UDP] = registry.PoolPorts{} }), `pool "bad": udp: it has no ports`},
		{with(func(p *registry.Pool) { p.Ports[7] = p.Ports[registry.UDP] }), `pool "bad": ports: protocol(7)`},
		{with(func(p *registry.Pool) { p.Ports[registry.TCP].Ranges[0] = registry.PortRange{First: 9, Last: 8} }), `pool "bad": `},
		{with(func(p *registry.Pool) { p.Ports[registry.TCP].Ranges[0] = registry.PortRange{First: 0, Last: 8} }), `pool "bad": `},
	}
	for _, tt := range tests {
		err := r.Apply(registry.Settings{Pools: []registry.Pool{good.Pools[0], tt.pool}})
		if !errors.Is(err, registry.ErrInvalid) || !strings.HasPrefix(err.Error(), tt.says) {
			t.Errorf("got %v, want %s", err, tt.says)
		}
	}
	if diff := cmp.Diff(good, r.Settings()); diff != "" {
		t.Errorf("what was refused has changed something (-want +got):\n%s", diff)
	}
	bad := registry.New(registry.Config{Store: store, Binder: pegs, Services: ianadb.Embedded(), Settings: registry.Settings{Pools: []registry.Pool{tests[0].pool}}})
	if err := bad.Start(t.Context()); !errors.Is(err, registry.ErrInvalid) {
		t.Errorf("Start with bad settings: %v", err)
	}
}

func TestPoolCounts(t *testing.T) {
	t.Parallel()
	store, pegs := newStandIns()
	r, _ := start(t, store, pegs, registry.Config{Settings: onePool("ci", registry.StrategyLowest, time.Hour, registry.PortRange{First: 20000, Last: 20009})})
	for i := range 5 {
		port(t, r, alice, anyOf(t, "tcp", registry.AnyPorts{Pool: "ci"}), fmt.Sprintf("n%d", i))
	}
	release(t, r, "n0")
	release(t, r, "n1")
	port(t, r, root, spec(t, "tcp/20000"), "")
	pools := r.Pools()
	if len(pools) != 2 || pools[0].Name != registry.DefaultPool || pools[1].Name != "ci" {
		t.Fatalf("got %+v", pools)
	}
	want := map[registry.Protocol]registry.PoolCounts{registry.TCP: {Size: 10, Reserved: 4, Quarantined: 1}, registry.UDP: {Size: 10}}
	if diff := cmp.Diff(want, pools[1].Counts); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	free := len(r.Services().Free(ianadb.Range{First: 1024, Last: 65535}, ianadb.TCP))
	if n := pools[0].Counts[registry.TCP]; n.Size < free || n.Size > 64512-28232-2768 {
		t.Errorf("the default pool has %d ports of tcp", n.Size)
	}
}
