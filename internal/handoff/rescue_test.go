package handoff_test

import (
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/portd/portd/internal/fdstore"
	"github.com/portd/portd/internal/handoff"
	"github.com/portd/portd/internal/holder"
	"github.com/portd/portd/internal/nstest"
	"github.com/portd/portd/internal/registry"
)

// rescued adds what the portd before had in hand to the items, where this one is to have a holder, and tells which that is.
func rescued(store *fdstore.Store, items []fdstore.Item, log *slog.Logger) ([]fdstore.Item, int, error) {
	if os.Getenv("HANDOFF_HOLDER") == "" {
		return items, 0, nil
	}
	h, err := holder.Start()
	if err != nil {
		return nil, 0, err
	}
	store.Put(h.Name(), h.Socket())
	saved := handoff.Rescue(items, h.PID(), log)
	for _, it := range items {
		if holder.PIDOf(it.Name) != 0 {
			store.Remove(it.Name)
		}
	}
	return append(items, saved...), h.PID(), nil
}

// The next portd is killed too, at any moment while it comes back, and the one after it.
func TestKilledInRecovery(t *testing.T) {
	for _, strategy := range []registry.HandoffStrategy{0, registry.ClientAddress} {
		t.Run(fmt.Sprint(strategy), func(t *testing.T) {
			nstest.Descriptors(t)
			d := begun(t, &dynasty{options: registry.HandoffOptions{Strategy: strategy}, holders: true})
			var scribes []*scribe
			for i := range 2 {
				scribes = append(scribes, d.scribe(i, connections(dynastyID)))
			}
			a, stop := d.load(16)
			defer stop()
			kills := repeat(3, 100)
			for range kills {
				time.Sleep(time.Duration(rand.IntN(10_000)) * time.Microsecond)
				d.kill()
				for range 2 {
					r := d.start()
					go d.keep(r.conn, r.kept)
					time.Sleep(time.Duration(rand.IntN(30_000)) * time.Microsecond) // the moment, from its beginning to its full work
					d.reign = r
					d.kill()
				}
				d.begin()
			}
			stop()
			d.settled(t, a, scribes, d.reign.ask(t).Totals, 3*kills)
		})
	}
}

// BenchmarkHolder compares a portd that has a holder with one that has none, as BenchmarkHandoff does with a server: what is called direct
// there is the portd without. That of none compares that with itself.
func BenchmarkHolder(b *testing.B) {
	b.Run("one", func(b *testing.B) { benchHolder(b, "1") })
	b.Run("none", func(b *testing.B) { benchHolder(b, "") })
}

func benchHolder(b *testing.B, has string) {
	dir, err := os.MkdirTemp("", "handoff")
	if err != nil {
		b.Fatal(err)
	}
	defer os.RemoveAll(dir)
	h := &host{t: b, socket: filepath.Join(dir, "s")}
	without := h.worker("portd", "")
	var port uint16
	if _, err := fmt.Sscanf(without.said, "ready %d", &port); err != nil {
		b.Fatal(err)
	}
	others := []process{without, h.worker("serve64", "web")}
	b.Setenv("HANDOFF_HOLDER", has)
	compare(b, others, port, 1, 64)
}
