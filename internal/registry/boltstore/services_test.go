package boltstore_test

import (
	"compress/gzip"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/portd/portd/internal/ianadb"
	"github.com/portd/portd/internal/registry"
	"github.com/portd/portd/internal/registry/boltstore"
)

// TestReadServices reads the service registry beside a store that is closed, and not beside one that is open.
func TestReadServices(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "portd.db")
	if _, _, err := boltstore.ReadServices(t.Context(), path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without a file: %v, want that there is none", err)
	}
	s, err := boltstore.Open(path, boltstore.Options{})
	if err != nil {
		t.Fatal(err)
	}
	edition := &registry.Edition{Slot: registry.CurrentSlot, Origin: registry.Imported, Date: "2026-01-02", Records: 3, Blob: "blob"}
	own := &registry.OwnService{By: "uid:0", Revision: 1, Entry: ianadb.Entry{
		Name: "myapp", Port: "8123", First: 8123, Last: 8123, Protocol: ianadb.TCP,
	}}
	if err := s.Commit(t.Context(), 0, []registry.Change{{Revision: 1, Put: []registry.Record{edition, own}}}); err != nil {
		t.Fatal(err)
	}
	if _, _, err := boltstore.ReadServices(t.Context(), path); !errors.Is(err, boltstore.ErrInUse) {
		t.Errorf("beside an open store: %v, want %v", err, boltstore.ErrInUse)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	current, services, err := boltstore.ReadServices(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(edition, current); diff != "" {
		t.Errorf("edition (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]*registry.OwnService{own}, services); diff != "" {
		t.Errorf("the host's own (-want +got):\n%s", diff)
	}
}

// TestReadServicesOfOlder: a file from before the service registry was kept has none, and stays as it is.
func TestReadServicesOfOlder(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "portd.db")
	before := unpack(t, "testdata/schema1.db.gz")
	if err := os.WriteFile(path, before, 0o400); err != nil {
		t.Fatal(err)
	}
	current, own, err := boltstore.ReadServices(t.Context(), path)
	if err != nil || current != nil || len(own) > 0 {
		t.Errorf("%v, %d services, %v; want none", current, len(own), err)
	}
	after, err := os.ReadFile(path)
	if err != nil || !cmp.Equal(before, after) {
		t.Errorf("reading changed the file (%v)", err)
	}
	for name, text := range map[string][]byte{"empty": nil, "text": []byte("hello"), "torn": before[:len(before)/2]} {
		path := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, _, err := boltstore.ReadServices(t.Context(), path); !errors.Is(err, boltstore.ErrForeign) && !errors.Is(err, boltstore.ErrDamaged) {
			t.Errorf("%s: %v, want that it is not a store, or damaged", name, err)
		}
	}
}

func unpack(t *testing.T, path string) []byte {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
