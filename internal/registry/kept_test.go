package registry_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/portd/portd/internal/registry"
)

// A ledger is a registry.LocalPorts that counts.
type ledger struct {
	mu    sync.Mutex
	times map[int]int
}

func (l *ledger) count(ports registry.PortRange, n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for p := int(ports.First); p <= int(ports.Last); p++ {
		if l.times[p] += n; l.times[p] == 0 {
			delete(l.times, p)
		}
	}
}

func (l *ledger) Keep(ports registry.PortRange)    { l.count(ports, 1) }
func (l *ledger) LetGo(ports registry.PortRange)   { l.count(ports, -1) }
func (l *ledger) Settle(ctx context.Context) error { return ctx.Err() }

func (l *ledger) now() map[int]int {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := map[int]int{}
	for p, n := range l.times {
		out[p] = n
	}
	return out
}

// Who asks in vain for a port in quarantine takes nothing from another one who has its number kept.
func TestKeptOnceForEach(t *testing.T) {
	t.Parallel()
	store, pegs := newStandIns()
	kept := &ledger{times: map[int]int{}}
	only := registry.PortRange{First: 20000, Last: 20000}
	r, _ := start(t, store, pegs, registry.Config{
		LocalPorts: kept, Settings: onePool("ci", registry.StrategyLowest, time.Hour, only),
	})
	recorded := func(s registry.Spec) registry.ReserveRequest {
		s.Mode = registry.Recorded
		return registry.ReserveRequest{Spec: s}
	}
	port(t, r, alice, anyOf(t, "tcp", registry.AnyPorts{Pool: "ci"}), "web")
	release(t, r, "web")
	if _, err := r.Reserve(t.Context(), alice, recorded(spec(t, "udp/20000"))); err != nil {
		t.Fatal(err)
	}
	want := map[int]int{20000: 1}
	for what, tt := range map[string]struct {
		spec registry.Spec
		want error
	}{
		"by its number": {spec(t, "tcp/20000"), registry.ErrTaken},
		"preferred":     {anyOf(t, "tcp", registry.AnyPorts{Pool: "ci", PreferPort: 20000}), registry.ErrExhausted},
	} {
		if _, err := r.Reserve(t.Context(), bob, recorded(tt.spec)); !errors.Is(err, tt.want) {
			t.Errorf("%s: got %v, want %v", what, err, tt.want)
		}
		if diff := cmp.Diff(want, kept.now()); diff != "" {
			t.Errorf("%s: kept (-want +got):\n%s", what, diff)
		}
	}
}
