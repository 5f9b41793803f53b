package boltstore

import (
	"path/filepath"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"

	"github.com/portd/portd/internal/registry"
	"github.com/portd/portd/internal/registry/storetest"
)

// What is forgotten is removed as fast as new changes come, also where a transaction has more of them than a commit.
func TestForgottenIsRemoved(t *testing.T) {
	const batch, kept = 200, 100
	s, err := Open(filepath.Join(t.TempDir(), "portd.db"), Options{Delay: -1, Journal: 8 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	most := 0 // of a transaction
	for range 12 {
		before := s.rev
		for range 15 {
			changes := make([]registry.Change, batch)
			for i := range changes {
				changes[i].Revision = s.rev + 1 + registry.Revision(i)
			}
			changes[batch-1].Compact = max(changes[batch-1].Revision-kept, 0)
			if err := s.Commit(t.Context(), s.rev, changes); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.checkpoint(); err != nil {
			t.Fatal(err)
		}
		most = max(most, int(s.rev-before))
	}
	there := 0
	if err := s.db.View(func(tx *bolt.Tx) error {
		there = tx.Bucket(bucketEvent).Stats().KeyN
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if there > 2*most+kept || most <= sweepAtLeast {
		t.Errorf("the file has %d changes after transactions of at most %d, and %d are to be kept", there, most, kept)
	}
}

// A load that meets a checkpoint reads a transaction that has forgotten every change of several pages.
func TestLoadAllForgotten(t *testing.T) {
	s, err := Open(filepath.Join(t.TempDir(), "portd.db"), Options{Delay: -1})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for n := range 20 {
		c := storetest.Full(n)
		c.Revision = registry.Revision(n + 1)
		if n == 19 {
			c.Compact = 100
		}
		if err := s.Commit(t.Context(), s.rev, []registry.Change{c}); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.checkpoint(); err != nil {
		t.Fatal(err)
	}
	st := &registry.State{}
	done := make(chan error, 1)
	go func() { done <- s.ahead(func(tx *bolt.Tx) error { return loadState(t.Context(), tx, st) }) }()
	select {
	case err := <-done:
		if err != nil || st.Oldest != 21 || st.Revision != 20 {
			t.Errorf("revision %d, from %d on (%v)", st.Revision, st.Oldest, err)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("it does not end")
	}
}
