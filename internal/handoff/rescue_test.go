package handoff_test

import (
	"log/slog"
	"os"

	"github.com/portd/portd/internal/fdstore"
	"github.com/portd/portd/internal/handoff"
	"github.com/portd/portd/internal/holder"
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
