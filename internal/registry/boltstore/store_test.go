package boltstore

import (
	"path/filepath"
	"testing"

	"github.com/portd/portd/internal/nstest"
	"github.com/portd/portd/internal/registry"
	"github.com/portd/portd/internal/registry/storetest"
)

func TestStore(t *testing.T) {
	nstest.Descriptors(t)
	storetest.Run(t, func(t *testing.T) func() registry.Store {
		path := filepath.Join(t.TempDir(), "portd.db")
		return func() registry.Store { return mustOpen(t, path) }
	})
}

// mustOpen leaves the closing to the caller.
func mustOpen(t testing.TB, path string) *Store {
	t.Helper()
	s, err := Open(path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	settled(t, s)
	return s
}

// settled waits until s has brought to the disk what it found, so that what it does next is all that it does.
func settled(t testing.TB, s *Store) {
	t.Helper()
	if err := s.Synced(); err != nil {
		t.Fatal(err)
	}
}
