package handoff_test

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/portd/portd/internal/nstest"
	"github.com/portd/portd/internal/registry"
)

// One portd takes the place of another under load, or does not come that far, or dies when it has: then the one before goes on. Nothing is
// lost, but what one that dies has in its hands.
func TestUpgradedUnderLoad(t *testing.T) {
	for _, test := range []struct {
		name    string
		options registry.HandoffOptions
	}{
		{"least active", registry.HandoffOptions{}},
		{"by address", registry.HandoffOptions{Strategy: registry.ClientAddress}},
	} {
		t.Run(test.name, func(t *testing.T) {
			nstest.Descriptors(t)
			d := newDynasty(t, test.options)
			var scribes []*scribe
			for i := range 3 {
				scribes = append(scribes, d.scribe(i, connections(dynastyID)))
			}
			a, stop := d.load(16)
			defer stop()
			deaths := 0
			for i := range repeat(15, 150) {
				time.Sleep(time.Duration(rand.IntN(10_000)) * time.Microsecond)
				old := d.reign
				next := d.prepare()
				old.does(t, "suspend")
				switch i % 3 {
				case 0: // it takes the place
					d.enthrone(next)
					old.does(t, "abandon")
					old.end()
				case 1: // it dies before
					_ = next.Process.Kill()
					close(next.kept)
					next.end()
					old.does(t, "resume")
				case 2: // it dies after
					d.enthrone(next)
					time.Sleep(time.Duration(rand.IntN(10_000)) * time.Microsecond)
					d.kill()
					deaths++
					old.does(t, "resume")
					d.reign = old
				}
			}
			stop()
			got := d.reign.ask(t)
			d.settled(t, a, scribes, got.Totals, deaths)
			if len(got.Workers) != len(scribes) || got.Totals.Held != 0 {
				t.Errorf("%d workers are left of %d, %d connections are in hand", len(got.Workers), len(scribes), got.Totals.Held)
			}
		})
	}
}
