package registry_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/portd/portd/internal/registry"
)

// One user's names drive out his own, not those of others that are older.
func TestNamesRememberedFairly(t *testing.T) {
	t.Parallel()
	store, pegs := newStandIns()
	ended := time.Now().Add(-24 * time.Hour)
	remember := func(owner registry.Principal, n int) {
		for i := range n {
			s := anyOf(t, "tcp", registry.AnyPorts{})
			ep := hostEndpoint(t, fmt.Sprintf("tcp/%d", 20000+i%1000))
			ended = ended.Add(time.Second)
			store.state.Formers = append(store.state.Formers, &registry.Former{
				Reservation: &registry.Reservation{
					ID: fmt.Sprintf("rsv_%s%d", owner, i), Name: fmt.Sprintf("n%d", i), Owner: owner,
					Spec: s, Assigned: []registry.Assigned{{Endpoint: ep}},
				},
				Ended: ended, Until: ended,
			})
		}
	}
	const many = 10_000
	remember(bob.Principal(), 10)
	remember(alice.Principal(), many)
	r, stop := start(t, store, pegs, registry.Config{})
	reserveNamed(t, r, root, "tcp/8080", "") // with which others are forgotten
	stop()
	left := map[registry.Principal]int{}
	for _, f := range store.state.Formers {
		left[f.Reservation.Owner]++
	}
	if left[bob.Principal()] != 10 || left[alice.Principal()] != many-10 {
		t.Errorf("remembered are %v", left)
	}
}

// Nobody has all ports of a pool kept from others by taking them and letting them go.
func TestQuarantineOfOneOwner(t *testing.T) {
	t.Parallel()
	all := registry.PortRange{First: 20000, Last: 29999}
	ci := registry.AnyPorts{Pool: "ci", Count: 2500}
	one := registry.AnyPorts{Pool: "ci"}
	t.Run("one after the other", func(t *testing.T) {
		store, pegs := newStandIns()
		r, _ := start(t, store, pegs, registry.Config{Settings: onePool("ci", registry.StrategyLowest, time.Hour, all)})
		for i := range 4 {
			port(t, r, alice, anyOf(t, "tcp", ci), fmt.Sprint("n", i))
		}
		for i := range 4 {
			release(t, r, fmt.Sprint("n", i))
		}
		if p := port(t, r, bob, anyOf(t, "tcp", one), ""); p >= 25000 {
			t.Errorf("bob got %d, which was let go last", p)
		}
	})
	t.Run("at once", func(t *testing.T) {
		store, pegs := newStandIns()
		r, _ := start(t, store, pegs, registry.Config{Settings: onePool("ci", registry.StrategyLowest, time.Hour, all)})
		s := anyOf(t, "tcp", ci)
		for range 3 {
			s.Endpoints = append(s.Endpoints, s.Endpoints[0])
		}
		port(t, r, alice, s, "all")
		release(t, r, "all")
		if p := port(t, r, bob, anyOf(t, "tcp", one), ""); p < 25000 {
			t.Errorf("bob got %d, which is alice's for an hour", p)
		}
	})
	t.Run("the same under many names", func(t *testing.T) {
		store, pegs := newStandIns()
		r, _ := start(t, store, pegs, registry.Config{Settings: onePool("ci", registry.StrategyLowest, time.Hour, all)})
		for i := range 10 { // 20000-22499 each time
			name := fmt.Sprint("n", i)
			port(t, r, alice, anyOf(t, "tcp", ci), name)
			release(t, r, name)
		}
		if p := port(t, r, bob, anyOf(t, "tcp", one), ""); p != 22500 {
			t.Errorf("bob got %d, want the first that was nobody's", p)
		}
	})
}
