package registry_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/portd/portd/internal/registry"
	"github.com/portd/portd/internal/registry/boltstore"
)

// The edition that portd is built with follows portd's updates, unless somebody has imported one or wants the older one.
func TestNewerPortd(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	older, newer := edition(t, "2026-01-01", small()), edition(t, "2026-06-01", later())
	rev := d.Status().Revision
	d.restart(t, older)
	if got := d.Status().Revision; got != rev {
		t.Errorf("a start that has nothing to do moves the revision from %d to %d", rev, got)
	}
	var changes []registry.Change
	d.restart(t, newer)
	d.want(t, registry.Embedded, "2026-06-01", "2026-01-01")
	ctx, stop := context.WithCancel(t.Context())
	err := d.Watch(ctx, alice, registry.WatchRequest{From: rev + 1}, func(_ string, ch registry.Change) error {
		if len(ch.Events) > 0 {
			changes = append(changes, ch)
			stop()
		}
		return nil
	})
	if !errors.Is(err, context.Canceled) || len(changes) != 1 || len(changes[0].Events) != 1 {
		t.Fatalf("watch: %v, %+v", err, changes)
	}
	ev := changes[0].Events[0]
	if ev.Type != registry.EventRegistryReplaced || ev.Caller != registry.Self || ev.Edition.Date != "2026-06-01" || ev.Edition.Blob != "" ||
		!strings.Contains(ev.Reason, "portd was built with a newer registry") || !strings.Contains(ev.Reason, "1 renamed") {
		t.Errorf("the event is %+v", ev)
	}
	d.restart(t, older) // a downgrade keeps what is newer
	d.want(t, registry.Embedded, "2026-06-01", "2026-01-01")
	d.restart(t, newer)
	if _, err := d.UndoImport(t.Context(), root, registry.UndoOptions{}); err != nil {
		t.Fatal(err)
	}
	d.restart(t, newer) // somebody wants the older one
	d.want(t, registry.Embedded, "2026-01-01", "2026-06-01")

	d.mustImport(t, small()[:9], registry.ImportOptions{Date: "2026-03-01", Force: true})
	d.restart(t, newer)
	d.want(t, registry.Imported, "2026-03-01", "2026-01-01")
}

// An edition in the store that this portd cannot read stays there; portd starts and answers from its own.
func TestUnreadableEdition(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	d.mustImport(t, later(), registry.ImportOptions{Date: "2026-06-01"})
	d.stop()
	store, err := boltstore.Open(d.path, boltstore.Options{})
	if err != nil {
		t.Fatal(err)
	}
	st, err := store.Load(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	strange := *st.Editions[slices.IndexFunc(st.Editions, func(e *registry.Edition) bool { return e.Slot == registry.CurrentSlot })]
	strange.Blob = "of another format"
	if err := store.Commit(t.Context(), st.Revision, []registry.Change{{Revision: st.Revision + 1, Put: []registry.Record{&strange}}}); err != nil {
		t.Fatal(err)
	}
	if err := store.Close(); err != nil {
		t.Fatal(err)
	}
	db := edition(t, "2026-01-01", small())
	d.restart(t, db)
	d.want(t, registry.Embedded, "2026-01-01", "2026-01-01")
	d.restart(t, db)
	d.stop()
	if store, err = boltstore.Open(d.path, boltstore.Options{}); err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	if st, err = store.Load(t.Context()); err != nil || !slices.ContainsFunc(st.Editions, func(e *registry.Edition) bool { return *e == strange }) {
		t.Errorf("the store has %+v, %v", st.Editions, err)
	}
}
