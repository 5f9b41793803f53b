package boltstore

import (
	"path/filepath"
	"testing"
	"time"

	"github.com/portd/portd/internal/nstest"
)

// What a portd that died has left in the journal is put into the file as soon as all has been read, so that the next start, which may be
// soon, has not to go through it again.
func TestLeftoverIsMergedAtOnce(t *testing.T) {
	nstest.Descriptors(t)
	for name, atEnd := range map[string]int{"little": 10, "much": 30} {
		t.Run(name, func(t *testing.T) { mergedAtOnce(t, atEnd) })
	}
}

func mergedAtOnce(t *testing.T, batches int) {
	dir := t.TempDir()
	m := leaving(t, filepath.Join(dir, "left.db"), batches)
	s, err := Open(filepath.Join(dir, "left.db"), Options{Delay: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	waiting := func() int {
		s.writer.Lock()
		defer s.writer.Unlock()
		return len(s.pending)
	}
	if n := waiting(); n != batches {
		t.Fatalf("%d batches are in the journal, want %d", n, batches)
	}
	if _, err := s.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Requests(t.Context()); err != nil {
		t.Fatal(err)
	}
	for late := time.Now().Add(20 * time.Second); waiting() > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(late) {
			t.Fatalf("%d batches are in the journal still", waiting())
		}
	}
	m.Check(t, s)
}
