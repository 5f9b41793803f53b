package boltstore

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/registry"
	"github.com/portd/portd/internal/registry/storetest"
)

// A recorder has the calls with which a store's files are written, in their order.
type recorder struct {
	dir    string
	memory *os.File // the process's own, which the race detector would not let us look at in another way

	mu    sync.Mutex
	calls []call
}

type call struct {
	nr       int32
	name, to string // of the file; its new name
	at       int64  // where it is written; its new length
	data     []byte

	answered registry.Revision // it is no call: this revision has been answered by now
}

// tell is called before each call, by a thread of the same process.
func (r *recorder) tell(nr int32, args [6]uint64) {
	c := call{nr: nr}
	file := func(fd uint64) string {
		path, _ := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
		if filepath.Dir(path) != r.dir {
			return ""
		}
		return filepath.Base(path)
	}
	switch nr {
	case unix.SYS_PWRITE64:
		c.name, c.at = file(args[0]), int64(args[3])
		c.data = make([]byte, args[2])
		if _, err := r.memory.ReadAt(c.data, int64(args[1])); err != nil {
			panic(err)
		}
	case unix.SYS_FTRUNCATE:
		c.name, c.at = file(args[0]), int64(args[1])
	case unix.SYS_FSYNC, unix.SYS_FDATASYNC:
		c.name = file(args[0])
	case unix.SYS_RENAMEAT:
		c.name, c.to = r.cstring(args[1]), r.cstring(args[3])
	case unix.SYS_UNLINKAT:
		c.name = r.cstring(args[1])
	}
	if c.name == "" {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.calls = append(r.calls, c)
}

func (r *recorder) cstring(at uint64) string {
	var path [4096]byte
	n, _ := r.memory.ReadAt(path[:], int64(at)) // short where the mapping ends
	text, _, _ := bytes.Cut(path[:n], []byte{0})
	if filepath.Dir(string(text)) != r.dir {
		return ""
	}
	return filepath.Base(string(text))
}

func (r *recorder) answer(rev registry.Revision) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.calls = append(r.calls, call{answered: rev})
}

// A disk is what files have for certain, and what is on its way.
type disk struct {
	files map[string][]byte
	loose map[string][]call
}

func (d *disk) do(c call) {
	switch c.nr {
	case unix.SYS_PWRITE64:
		d.loose[c.name] = append(d.loose[c.name], c)
	case unix.SYS_FTRUNCATE:
		d.files[c.name] = resized(d.files[c.name], c.at)
	case unix.SYS_FSYNC, unix.SYS_FDATASYNC:
		for _, w := range d.loose[c.name] {
			d.files[c.name] = written(d.files[c.name], w.at, w.data)
		}
		delete(d.loose, c.name)
	case unix.SYS_RENAMEAT:
		d.files[c.to], d.loose[c.to] = d.files[c.name], d.loose[c.name]
		delete(d.files, c.name)
		delete(d.loose, c.name)
	case unix.SYS_UNLINKAT:
		delete(d.files, c.name)
		delete(d.loose, c.name)
	}
}

// cut is what the files have when the power fails now: of what is on its way each sector or not, and more of it than of others at times.
func (d *disk) cut(rnd *rand.Rand) map[string][]byte {
	const sector = 512
	files := map[string][]byte{}
	for name, b := range d.files {
		files[name] = bytes.Clone(b)
	}
	for name, writes := range d.loose {
		likely := rnd.Float64()
		for _, w := range writes {
			for at := 0; at < len(w.data); at += sector {
				if rnd.Float64() < likely {
					files[name] = written(files[name], w.at+int64(at), w.data[at:min(at+sector, len(w.data))])
				}
			}
		}
	}
	return files
}

func resized(b []byte, size int64) []byte {
	if int64(len(b)) > size {
		return b[:size]
	}
	return append(b, make([]byte, size-int64(len(b)))...)
}

func written(b []byte, at int64, data []byte) []byte {
	b = resized(b, max(int64(len(b)), at+int64(len(data))))
	copy(b[at:], data)
	return b
}

// The power fails at each moment of a life, and of what was written and not synced the disk has any part. What was answered is there, and at
// most the one commit beyond that was being written.
func TestPowerCut(t *testing.T) {
	f := faults(t)
	if f == nil {
		return
	}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	dir := t.TempDir()
	path := filepath.Join(dir, "portd.db")
	if err := mustOpen(t, path).Close(); err != nil {
		t.Fatal(err)
	}
	first, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	r := &recorder{dir: dir}
	if r.memory, err = os.Open("/proc/self/mem"); err != nil {
		t.Fatal(err)
	}
	defer r.memory.Close()
	f.told(r.tell)
	var m storetest.Model
	commits := map[registry.Revision][]registry.Change{}
	for range 2 { // the second time it opens what one that died has left
		s, err := Open(path, manually)
		if err != nil {
			t.Fatal(err)
		}
		commit := func(bytes int) error {
			changes := sizedChange(m.Revision, bytes)
			err := s.Commit(t.Context(), m.Revision, changes)
			if err == nil {
				m.Apply(changes...)
				commits[m.Revision] = changes
				r.answer(m.Revision)
			}
			return err
		}
		if err := life(s, commit); err != nil {
			t.Fatal(err)
		}
		if s, err = Open(path, manually); err != nil {
			t.Fatal(err)
		}
		for range 3 {
			if err := commit(20_000); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.die(); err != nil {
			t.Fatal(err)
		}
	}
	f.told(nil)

	d := &disk{files: map[string][]byte{"portd.db": first}, loose: map[string][]call{}}
	answered := registry.Revision(0)
	whole, cuts, each := 0, 0, 1 // at each moment
	if os.Getenv("PORTD_LONG") != "" {
		each = 10
	}
	for i, c := range r.calls {
		if c.answered != 0 {
			answered = c.answered
			continue
		}
		d.do(c)
		for range each {
			cuts++
			at := t.TempDir()
			for name, b := range d.cut(rnd) {
				write(t, filepath.Join(at, name), b)
			}
			s, err := Open(filepath.Join(at, "portd.db"), manually)
			if err != nil {
				t.Fatalf("power cut after call %d of %d (%d of %s), revision %d: %v", i, len(r.calls), c.nr, c.name, answered, err)
			}
			var want storetest.Model
			for want.Revision < answered {
				want.Apply(commits[want.Revision+1]...)
			}
			if s.rev == answered+1 && commits[s.rev] != nil {
				want.Apply(commits[s.rev]...)
				whole++
			}
			want.Check(t, s)
			if rnd.IntN(8) == 0 { // it goes on as any other
				next := sizedChange(want.Revision, 5000)
				if err := s.Commit(t.Context(), want.Revision, next); err != nil {
					t.Errorf("power cut after call %d of %d (%d of %s), revision %d: %v", i, len(r.calls), c.nr, c.name, want.Revision, err)
				}
			}
			if err := s.Close(); err != nil {
				t.Error(err)
			}
			if t.Failed() {
				t.Fatalf("power cut after call %d of %d (%d of %s), revision %d", i, len(r.calls), c.nr, c.name, answered)
			}
		}
	}
	t.Logf("%d calls, %d power cuts; %d times there was a commit that was not answered", len(r.calls), cuts, whole)
	if cuts < 150 || whole < 10 {
		t.Error("that proves nothing")
	}
}

// A record failed, and so did the sync of the zeros over it, so that they are in memory only. A portd that comes then, and is answered
// by a disk that is well again, must not leave the record there: after a power cut it would stand beside another of its revision.
func TestPowerCutAfterZeros(t *testing.T) {
	f := faults(t)
	if f == nil {
		return
	}
	dir := t.TempDir()
	path := filepath.Join(dir, "portd.db")
	s, err := Open(path, manually)
	if err != nil {
		t.Fatal(err)
	}
	var m storetest.Model
	commit := func(bytes int) {
		t.Helper()
		changes := sizedChange(m.Revision, bytes)
		if err := s.Commit(t.Context(), m.Revision, changes); err != nil {
			t.Fatal(err)
		}
		m.Apply(changes...)
	}
	commit(20_000)
	at := s.journal.head
	f.fail(fault{unix.SYS_FDATASYNC, 1}, true)
	if err := s.Commit(t.Context(), m.Revision, sizedChange(m.Revision, 20_000)); err == nil || s.journal.doubt != at {
		t.Fatalf("%v; in doubt is what is at %d, want %d", err, s.journal.doubt, at)
	}
	f.stop()
	if err := s.checkpoint(); err != nil { // so that the next record goes to another place
		t.Fatal(err)
	}
	if err := s.die(); err != nil {
		t.Fatal(err)
	}
	d := &disk{files: map[string][]byte{}, loose: map[string][]call{}}
	for _, name := range list(t, dir) {
		if d.files[name], err = os.ReadFile(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	overwriteAt(t, s.journal.path, noRecord[:], int(at))

	r := &recorder{dir: dir}
	if r.memory, err = os.Open("/proc/self/mem"); err != nil {
		t.Fatal(err)
	}
	defer r.memory.Close()
	f.told(r.tell)
	if s, err = Open(path, manually); err != nil {
		t.Fatal(err)
	}
	commit(10)
	f.told(nil)
	if err := s.die(); err != nil {
		t.Fatal(err)
	}
	r.mu.Lock()
	for _, c := range r.calls {
		d.do(c)
	}
	r.mu.Unlock()
	to := t.TempDir()
	for name, b := range d.files {
		write(t, filepath.Join(to, name), b)
	}
	s = mustOpen(t, filepath.Join(to, "portd.db"))
	m.Check(t, s)
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// The kernel tells of a page that could not be written once for each open file, and to whoever asks first. So who waits for
// a record has another than who makes the journal longer meanwhile.
func TestGrowsBeside(t *testing.T) {
	f := faults(t)
	if f == nil {
		return
	}
	s, err := Open(filepath.Join(t.TempDir(), "portd.db"), Options{Delay: -1, Journal: 4 * firstSize})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := s.Commit(t.Context(), s.rev, sizedChange(s.rev, 90_000)); err != nil {
			t.Fatal(err)
		}
	}
	records := uint64(s.journal.file.Fd())
	var mu sync.Mutex
	longer, synced := 0, 0
	f.told(func(nr int32, args [6]uint64) {
		mu.Lock()
		defer mu.Unlock()
		switch path, _ := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", args[0])); {
		case path != s.journal.path:
		case nr == unix.SYS_PWRITE64 && int64(args[3]) >= firstSize:
			longer++
		case nr == unix.SYS_FDATASYNC:
			synced++
		default:
			return
		}
		if args[0] == records && (nr == unix.SYS_PWRITE64 || nr == unix.SYS_FDATASYNC) {
			t.Error("the journal's own file")
		}
	})
	err = s.checkpoint()
	f.told(nil)
	if err != nil || longer == 0 || synced != 1 || s.journal.size <= firstSize {
		t.Errorf("%v; %d writes and %d syncs, and it is %d bytes long", err, longer, synced, s.journal.size)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}
