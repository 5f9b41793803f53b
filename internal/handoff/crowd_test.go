package handoff_test

import (
	"io"
	"testing"

	"github.com/portd/portd/internal/nstest"
	"github.com/portd/portd/internal/registry"
	"github.com/portd/portd/internal/wire"
)

// Workers leave more behind than portd keeps account of. That stays in their queues, where neither a kill loses it, until there are places, and
// the clients of others do not wait for them.
func TestFullLedger(t *testing.T) {
	for _, how := range []string{"there are places", "killed", "by address"} {
		t.Run(how, func(t *testing.T) {
			nstest.Descriptors(t)
			d := &dynasty{holders: true}
			if how == "by address" {
				d.options.Strategy = registry.ClientAddress
			}
			d = begun(t, d)
			w := d.host.attach(wire.Attach{Room: 4, Wishes: []wire.Wish{connections(dynastyID)}})
			queued := d.clients(3)
			until(t, "all are in the queue", func() bool { return d.reign.ask(t).Totals.HandedOver == 3 })
			d.reign.does(t, "crowd")
			w.Close()
			until(t, "it is gone", func() bool { return len(d.reign.ask(t).Workers) == 0 })
			s := d.scribe(5, connections(dynastyID))
			for _, c := range d.clients(6) {
				if answer, err := io.ReadAll(c); string(answer) != "5" || err != nil {
					t.Errorf("a client who came later: %q, %v", answer, err)
				}
			}
			if got := d.reign.ask(t).Totals; got.Redelivered > 0 || got.Held > 0 {
				t.Errorf("%+v", got)
			}
			if how == "killed" {
				d.kill()
				d.begin()
			} else {
				d.reign.does(t, "relax")
			}
			for _, c := range queued {
				if answer, err := io.ReadAll(c); string(answer) != "5" || err != nil {
					t.Errorf("who was in the queue: %q, %v", answer, err)
				}
			}
			got := d.reign.ask(t).Totals
			if _, wrong, again := s.count(); wrong > 0 || again != 3 || got.Redelivered != 3 || got.Lost > 0 {
				t.Errorf("%d messages out of order, %d connections sent again, %+v", wrong, again, got)
			}
		})
	}
}
