package boltstore

import (
	"bytes"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/portd/portd/internal/registry/storetest"
)

// Three copies stay, the newest ones. Where the newest is no longer whole the one before it is found.
func TestCopies(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a[b]*.db") // a name that is also a pattern
	s := mustOpen(t, path)
	defer s.Close()
	if file, _, err := NewestCopy(t.Context(), path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("there is %q (%v)", file, err)
	}
	var m storetest.Model
	var made []string
	for range keptCopies + 2 {
		changes := sizedChange(m.Revision, 10)
		if err := s.Commit(t.Context(), m.Revision, changes); err != nil {
			t.Fatal(err)
		}
		m.Apply(changes...)
		info, err := s.copyNow(t.Context())
		if err != nil || info.Revision != m.Revision {
			t.Fatalf("a copy of revision %d at %d (%v)", info.Revision, m.Revision, err)
		}
		file, _, err := NewestCopy(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		made = append(made, file)
		time.Sleep(2 * time.Millisecond) // their names have milliseconds
	}
	slices.Reverse(made)
	got, err := Copies(path)
	if err != nil || !slices.Equal(got, made[:keptCopies]) {
		t.Errorf("there is %v, want %v (%v)", got, made[:keptCopies], err)
	}
	if err := os.Truncate(got[0], 1000); err != nil {
		t.Fatal(err)
	}
	if file, info, err := NewestCopy(t.Context(), path); file != got[1] || info.Revision != m.Revision-1 {
		t.Errorf("%s at revision %d, want %s (%v)", file, info.Revision, got[1], err)
	}
}

// A store is copied by itself where something has changed, and not where nothing has.
func TestCopiesByItself(t *testing.T) {
	path := filepath.Join(t.TempDir(), "portd.db")
	s, err := Open(path, Options{Copies: 5 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for at := range 2 {
		if err := s.Commit(t.Context(), s.rev, sizedChange(s.rev, 10)); err != nil {
			t.Fatal(err)
		}
		for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
			if _, info, err := NewestCopy(t.Context(), path); err == nil && int(info.Revision) == at+1 {
				break
			} else if time.Now().After(deadline) {
				t.Fatalf("no copy of revision %d: %d (%v)", at+1, info.Revision, err)
			}
		}
	}
	before, _ := Copies(path)
	time.Sleep(50 * time.Millisecond) // nothing is to happen in it
	if now, _ := Copies(path); !slices.Equal(now, before) {
		t.Errorf("nothing has changed, and there is %v where there was %v", now, before)
	}
}

// A journal that cannot be made is said once, and each change is kept all the same.
func TestNoJournalIsLogged(t *testing.T) {
	path := filepath.Join(t.TempDir(), "portd.db")
	var log bytes.Buffer
	opt := manually
	opt.Log = slog.New(slog.NewTextHandler(&log, nil))
	s, err := Open(path, opt)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(journalPath(path), "in the way"), 0o700); err != nil {
		t.Fatal(err)
	}
	var m storetest.Model
	for range 3 {
		s.without = time.Time{} // try at once
		changes := sizedChange(m.Revision, 10)
		if err := s.Commit(t.Context(), m.Revision, changes); err != nil {
			t.Fatal(err)
		}
		m.Apply(changes...)
	}
	if n := strings.Count(log.String(), "the journal cannot be made"); n != 1 {
		t.Errorf("it is said %d times: %s", n, &log)
	}
	m.Check(t, s)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(journalPath(path)); err != nil {
		t.Fatal(err)
	}
	s = mustOpen(t, path)
	defer s.Close()
	m.Check(t, s)
}
