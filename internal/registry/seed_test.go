package registry_test

import (
	"context"
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"github.com/portd/portd/internal/ianadb"
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
	d.restart(t, newer)
	d.want(t, registry.Embedded, "2026-06-01", "2026-01-01")
	if why := d.replaced(t, rev, "2026-06-01"); !strings.Contains(why, "portd was built with a newer registry") || !strings.Contains(why, "1 renamed") {
		t.Errorf("the registry was replaced because %q", why)
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

// An edition in the store that this portd cannot read stays there, and portd starts and answers from its own; until somebody
// replaces it, be it by the very file that portd was built with.
func TestUnreadableEdition(t *testing.T) {
	t.Parallel()
	built := parsed(t, "2026-01-01", small())
	for name, tt := range map[string]struct {
		replace func(*desk) (*registry.ServiceImport, error)
		origin  registry.Origin
	}{
		"by the built-in one": {func(d *desk) (*registry.ServiceImport, error) {
			return d.UndoImport(t.Context(), root, registry.UndoOptions{Embedded: true})
		}, registry.Embedded},
		"by the file of the built-in one": {func(d *desk) (*registry.ServiceImport, error) {
			return d.ImportServices(t.Context(), root, file(t, small()), registry.ImportOptions{})
		}, registry.Imported},
	} {
		d := &desk{path: filepath.Join(t.TempDir(), "portd.db")}
		d.restart(t, built)
		d.mustImport(t, later(), registry.ImportOptions{Date: "2026-06-01"})
		strange := d.spoil(t)
		d.restart(t, built)
		d.want(t, registry.Embedded, "2026-01-01", "2026-01-01")
		if _, _, err := d.AddServices(t.Context(), root, []ianadb.Entry{own("myapp", 8123, ianadb.TCP, "")}, false); err != nil {
			t.Fatal(err)
		}
		d.stop()
		if got := d.stored(t); *got != *strange {
			t.Errorf("the store has %+v, want it left alone", got)
		}
		d.restart(t, built)
		done, err := tt.replace(d)
		if err != nil || done.Unchanged {
			t.Fatalf("%s: %+v, %v", name, done, err)
		}
		d.restart(t, built)
		d.want(t, tt.origin, "2026-01-01", "2026-01-01")
		if left := d.Services().Unreadable; left != nil {
			t.Errorf("%s: the store still has %+v", name, left)
		}
	}
}

// Who goes back to the built-in edition gets the newer portd's with a newer portd, also from an imported one that says the same.
func TestBackToTheBuiltIn(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	d.mustImport(t, later(), registry.ImportOptions{Date: "2026-06-01"})
	d.restart(t, parsed(t, "2026-06-01", later()))
	d.want(t, registry.Imported, "2026-06-01", "2026-01-01")
	for range 2 { // the second time there is nothing to do
		if _, err := d.UndoImport(t.Context(), root, registry.UndoOptions{Embedded: true}); err != nil {
			t.Fatal(err)
		}
		d.want(t, registry.Embedded, "2026-06-01", "2026-01-01")
	}
	d.restart(t, edition(t, "2026-09-01", small()[:9]))
	d.want(t, registry.Embedded, "2026-09-01", "2026-06-01")
}

// replaced is why the registry was replaced by one of that date, as the only change since rev tells.
func (d *desk) replaced(t *testing.T, rev registry.Revision, date string) string {
	t.Helper()
	var changes []registry.Change
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	last := d.Status().Revision
	err := d.Watch(ctx, alice, registry.WatchRequest{From: rev + 1, Progress: 1}, func(_ string, ch registry.Change) error {
		if len(ch.Events) > 0 {
			changes = append(changes, ch)
		}
		if ch.Revision >= last {
			stop()
		}
		return nil
	})
	if !errors.Is(err, context.Canceled) || len(changes) != 1 || len(changes[0].Events) != 1 {
		t.Fatalf("watch: %v, %+v", err, changes)
	}
	ev := changes[0].Events[0]
	if ev.Type != registry.EventRegistryReplaced || ev.Caller != registry.Self || ev.Edition.Date != date || ev.Edition.Blob != "" {
		t.Errorf("the event is %+v", ev)
	}
	return ev.Reason
}

// parsed is an edition as it is compiled from a file.
func parsed(t *testing.T, date string, entries []ianadb.Entry) *ianadb.DB {
	t.Helper()
	f, err := ianadb.Parse(file(t, entries))
	if err != nil {
		t.Fatal(err)
	}
	db, err := ianadb.New(f.Entries, ianadb.Source{Date: date, SHA256: f.SHA256})
	if err != nil {
		t.Fatal(err)
	}
	return db
}

// spoil stops portd and makes the edition in its store one of a format that it cannot read.
func (d *desk) spoil(t *testing.T) *registry.Edition {
	t.Helper()
	d.stop()
	strange := *d.stored(t)
	strange.Blob = "of another format"
	store, err := boltstore.Open(d.path, boltstore.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	st, err := store.Load(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := store.Commit(t.Context(), st.Revision, []registry.Change{{Revision: st.Revision + 1, Put: []registry.Record{&strange}}}); err != nil {
		t.Fatal(err)
	}
	return &strange
}

// stored is the edition in the store of a portd that has stopped.
func (d *desk) stored(t *testing.T) *registry.Edition {
	t.Helper()
	current, _, err := boltstore.ReadServices(t.Context(), d.path)
	if err != nil {
		t.Fatal(err)
	}
	return current
}
