package registry_test

import (
	"errors"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/portd/portd/internal/registry"
	"github.com/portd/portd/internal/registry/boltstore"
)

// historian is a Registry on a real store, in which changes are made.
type historian struct {
	*registry.Registry
	path string
	held string // id of its reservation; empty while it has none
	stop func()
}

func newHistorian(t *testing.T, h registry.History) *historian {
	d := &historian{path: filepath.Join(t.TempDir(), "portd.db"), stop: func() {}}
	d.restart(t, h)
	return d
}

func (d *historian) restart(t *testing.T, h registry.History) {
	t.Helper()
	d.stop()
	store, err := boltstore.Open(d.path, boltstore.Options{})
	if err != nil {
		t.Fatal(err)
	}
	_, pegs := newStandIns()
	var stop func()
	d.Registry, stop = startAt(t, store, pegs, registry.Config{BootID: "boot", BootTime: fakeBoot(), Settings: registry.Settings{History: h}})
	d.stop = func() {
		stop()
		if err := store.Close(); err != nil {
			t.Error(err)
		}
		d.stop = func() {}
	}
	t.Cleanup(func() { d.stop() })
}

// change makes n changes.
func (d *historian) change(t *testing.T, n int) {
	t.Helper()
	for range n {
		var err error
		if d.held == "" {
			var res registry.Reserved
			res, err = d.Reserve(t.Context(), alice, registry.ReserveRequest{Spec: spec(t, "tcp/8080")})
			if err == nil {
				d.held = res.ID
			}
		} else {
			_, err = d.Release(t.Context(), alice, d.held, "")
			d.held = ""
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// from is the revision of the first change that a watch from rev shows, or its error.
func (d *historian) from(t *testing.T, rev registry.Revision) (first registry.Revision, err error) {
	t.Helper()
	enough := errors.New("enough")
	err = d.Watch(t.Context(), alice, registry.WatchRequest{From: rev}, func(_ string, ch registry.Change) error {
		if len(ch.Events) == 0 {
			return nil
		}
		first = ch.Revision
		return enough
	})
	if errors.Is(err, enough) {
		err = nil
	}
	return first, err
}

// wantOldest checks that a watch can start from a revision and not from the one before.
func (d *historian) wantOldest(t *testing.T, want registry.Revision) {
	t.Helper()
	st := d.Status()
	if st.Oldest != want {
		t.Errorf("the oldest of %d revisions is %d, want %d", st.Revision, st.Oldest, want)
	}
	if want <= st.Revision {
		if first, err := d.from(t, want); err != nil || first < want {
			t.Errorf("a watch from %d begins with %d: %v", want, first, err)
		}
	}
	if want == 1 {
		return
	}
	_, err := d.from(t, want-1)
	var compacted *registry.CompactedError
	if !errors.As(err, &compacted) || *compacted != (registry.CompactedError{Wanted: want - 1, Oldest: want}) {
		t.Errorf("a watch from %d: %v, want that %d is the oldest", want-1, err, want)
	}
}

func TestHistoryByNumber(t *testing.T) {
	t.Parallel()
	d := newHistorian(t, registry.History{Revisions: 100})
	d.change(t, 90)
	d.wantOldest(t, 1)
	for range 2 {
		before := d.Status()
		d.change(t, 30)
		after := d.Status()
		if n := after.Revision - after.Oldest + 1; n < 100 || n > 101 {
			t.Errorf("%d revisions are kept, want 100 and at most a percent more", n)
		}
		d.wantOldest(t, after.Oldest)
		if after.Oldest <= before.Oldest {
			t.Errorf("the oldest is %d still", after.Oldest)
		}
	}
	// Less from now on, and then more again, which brings nothing back.
	if err := d.Apply(registry.Settings{History: registry.History{Revisions: 50}}); err != nil {
		t.Fatal(err)
	}
	d.change(t, 1)
	least := d.Status()
	if n := least.Revision - least.Oldest + 1; n != 50 {
		t.Errorf("%d revisions are kept, want 50", n)
	}
	d.wantOldest(t, least.Oldest)
	d.restart(t, registry.History{})
	d.change(t, 60)
	d.wantOldest(t, least.Oldest)
}

func TestHistoryByAge(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d := newHistorian(t, registry.History{Age: time.Hour})
		defer func() { d.stop() }() // in the bubble; that of the last restart
		d.change(t, 40)
		first := d.Status().Revision
		time.Sleep(30 * time.Minute)
		d.change(t, 40)
		second := d.Status().Revision
		d.wantOldest(t, 1)

		// Half of it is too old now; the next change forgets it.
		time.Sleep(32 * time.Minute)
		d.wantOldest(t, 1)
		d.change(t, 1)
		d.wantOldest(t, first+1)

		// All of it, which was written by a portd that has stopped since.
		d.restart(t, registry.History{})
		time.Sleep(2 * time.Hour)
		d.change(t, 1)
		d.wantOldest(t, first+1)
		last := d.Status().Revision
		if err := d.Apply(registry.Settings{History: registry.History{Age: 90 * time.Minute}}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Minute)
		d.change(t, 1)
		if d.Status().Oldest <= second {
			t.Errorf("changes from before revision %d are two hours old", second)
		}
		d.wantOldest(t, last)
	})
}

// Whichever limit is reached first ends it.
func TestHistoryByBoth(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d := newHistorian(t, registry.History{Revisions: 100, Age: time.Hour})
		defer func() { d.stop() }()
		d.change(t, 50)
		old := d.Status().Revision
		time.Sleep(2 * time.Hour)
		d.change(t, 1)
		d.wantOldest(t, old+1)
		d.change(t, 110)
		st := d.Status()
		if n := st.Revision - st.Oldest + 1; n < 100 || n > 101 {
			t.Errorf("%d revisions are kept, want 100 or 101", n)
		}
	})
}

// Who watches and is so slow that it has fallen out of the history is told where it goes on.
func TestHistoryLeavesTheSlowBehind(t *testing.T) {
	t.Parallel()
	d := newHistorian(t, registry.History{})
	d.change(t, 600)
	d.restart(t, registry.History{Revisions: 100}) // what it reads is in the store alone, and is read in chunks
	seen, ended := make(chan registry.Revision), make(chan error, 1)
	go func() {
		ended <- d.Watch(t.Context(), alice, registry.WatchRequest{From: 2}, func(_ string, ch registry.Change) error {
			seen <- ch.Revision
			return nil
		})
	}()
	for want := range registry.Revision(20) { // the first is the mark; nothing happened at revision 1 but the start
		if rev := <-seen; rev != want+1 {
			t.Fatalf("revision %d, want %d", rev, want+1)
		}
	}
	d.change(t, 2) // while it does not look
	for last := registry.Revision(20); ; {
		select {
		case rev := <-seen:
			if rev != last+1 {
				t.Fatalf("revision %d after %d", rev, last)
			}
			last = rev
		case err := <-ended:
			var compacted *registry.CompactedError
			if !errors.As(err, &compacted) || *compacted != (registry.CompactedError{Wanted: last + 1, Oldest: d.Status().Oldest}) {
				t.Fatalf("after revision %d: %v; the oldest is %d", last, err, d.Status().Oldest)
			}
			return
		}
	}
}
