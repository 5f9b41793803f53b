package boltstore

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/portd/portd/internal/nstest"
	"github.com/portd/portd/internal/registry"
	"github.com/portd/portd/internal/registry/storetest"
)

// die ends a Store as the end of its process does.
func (s *Store) die() error {
	close(s.stop)
	<-s.stopped
	s.base.Lock()
	defer s.base.Unlock()
	s.writer.Lock()
	defer s.writer.Unlock()
	if s.journal != nil {
		s.journal.file.Close()
	}
	return s.db.Close()
}

// A mortal dies in place of being closed.
type mortal struct{ *Store }

func (m mortal) Close() error { return m.die() }

// Whatever is in the journal and not in the file is a part of the store all the same, also for who opens it next.
func TestStoreInJournal(t *testing.T) {
	nstest.Descriptors(t)
	kept := map[string]Options{
		"all of it":      {Delay: -1},
		"never for long": {Delay: time.Nanosecond, Journal: 1},
	}
	if os.Getenv("PORTD_LONG") != "" {
		kept["some of it"] = Options{Delay: -1, Journal: 1}
		kept["now and then"] = Options{Delay: time.Millisecond}
	}
	for name, opt := range kept {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			storetest.Run(t, func(t *testing.T) func() registry.Store {
				path := filepath.Join(t.TempDir(), "portd.db")
				return func() registry.Store {
					s, err := Open(path, opt)
					if err != nil {
						t.Fatal(err)
					}
					return mortal{s}
				}
			})
		})
	}
}

// leave makes a store with a history, the last ten batches of which are in the journal alone, and returns what is in it.
func leave(t *testing.T, path string) *storetest.Model {
	t.Helper()
	return leaving(t, path, 10)
}

// leaving is leave with so many of 30 batches in the journal alone.
func leaving(t *testing.T, path string, last int) *storetest.Model {
	t.Helper()
	h := &history{seed: 1}
	s, err := Open(path, Options{Delay: -1})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 30 {
		changes := h.next()
		if err := s.Commit(t.Context(), h.Revision, changes); err != nil {
			t.Fatal(err)
		}
		h.Apply(changes...)
		if i == 29-last {
			if err := s.checkpoint(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := s.die(); err != nil {
		t.Fatal(err)
	}
	return &h.Model
}

// What is wrong with a journal is said, with what to do, and the two files stay as they are.
func TestJournalRefused(t *testing.T) {
	nstest.Descriptors(t)
	dir := t.TempDir()
	leave(t, filepath.Join(dir, "left.db"))
	leave(t, filepath.Join(dir, "other.db"))
	closed := mustOpen(t, reopened(t, dir, "left.db"))
	if _, err := closed.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := closed.Requests(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := closed.Close(); err != nil {
		t.Fatal(err)
	}
	read := func(name string) []byte {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	db, whole, other := read("left.db"), read("left.db-journal"), read("other.db-journal")
	clean, err := os.ReadFile(closed.path)
	if err != nil {
		t.Fatal(err)
	}
	new := filepath.Join(t.TempDir(), "new.db")
	if err := mustOpen(t, new).Close(); err != nil {
		t.Fatal(err)
	}
	fresh, err := os.ReadFile(new)
	if err != nil {
		t.Fatal(err)
	}
	missing := bytes.Clone(whole) // of the records that are needed, the second
	needed := 0
	for at := block; at < len(missing); at += block {
		if b, _ := readRecord(missing[at:], journalID(missing[headerBytes:][:16])); b != nil && b.at == 0 && string(missing[at:at+8]) == recordMagic {
			if needed++; needed == 5 {
				clear(missing[at : at+block])
			}
		}
	}
	for _, tt := range []struct {
		name        string
		db, journal []byte
		want        error
		says        string
	}{
		{"missing", db, nil, ErrDamaged, "missing, and has changes that the database has not: put it back"},
		{"empty", db, []byte{}, ErrForeign, "no journal of portd's: put back the one"},
		{"text", db, []byte("hello\n"), ErrForeign, "no journal of portd's"},
		{"zeros", db, make([]byte, len(whole)), ErrForeign, "no journal of portd's"},
		{"of another store", db, other, ErrForeign, "it is of the store sto_"},
		{"of another time", db, anew(whole), ErrDamaged, "of another time"},
		{"cut off", db, whole[:len(whole)-block], ErrDamaged, "cut off after"},
		{"cut off in the header", db, whole[:100], ErrForeign, "no journal of portd's"},
		{"a record missing", db, missing, ErrDamaged, "are missing, and later ones are there"},
		{"left over beside an older database", fresh, rehome(whole, storeOf(t, fresh)), ErrDamaged, "are missing, and later ones are there"},
		{"of another store, beside a database that needs none", clean, other, ErrForeign, "put back the database that belongs to it, or move it away"},
		{"text, beside a database that needs none", clean, []byte("hello\n"), ErrForeign, "move it away to go on without"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "portd.db")
			write(t, path, tt.db)
			if tt.journal != nil {
				write(t, path+"-journal", tt.journal)
			}
			s, err := Open(path, Options{})
			if err == nil {
				s.Close()
			}
			if !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.says) || !strings.Contains(err.Error(), path+"-journal") {
				t.Errorf("%v, want %v that says %q and the path", err, tt.want, tt.says)
			}
			if after, _ := os.ReadFile(path); !bytes.Equal(after, tt.db) {
				t.Error("it has changed the database")
			}
			if after, _ := os.ReadFile(path + "-journal"); !bytes.Equal(after, tt.journal) {
				t.Error("it has changed the journal")
			}
		})
	}
	t.Run("left over beside a database that has it all", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "portd.db")
		write(t, path, clean)
		write(t, path+"-journal", whole)
		s := mustOpen(t, path)
		if err := s.Commit(t.Context(), s.rev, []registry.Change{{Revision: s.rev + 1}}); err != nil {
			t.Error(err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if names := list(t, filepath.Dir(path)); len(names) != 1 {
			t.Errorf("there is %v", names)
		}
	})
}

// reopened copies a store with its journal, and returns where the copy is.
func reopened(t *testing.T, dir, name string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "portd.db")
	for _, suffix := range []string{"", "-journal"} {
		b, err := os.ReadFile(filepath.Join(dir, name+suffix))
		if err != nil {
			t.Fatal(err)
		}
		write(t, path+suffix, b)
	}
	return path
}

func write(t *testing.T, path string, b []byte) {
	t.Helper()
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// A single damaged bit in the journal, or a destroyed block, is found, or it is in a place that does not matter, or in the last record,
// which then cannot be told from one that was being written when portd died.
func TestJournalDamaged(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "portd.db")
	m := leave(t, path)
	whole, err := os.ReadFile(path + "-journal")
	if err != nil {
		t.Fatal(err)
	}
	before := m.Revision - registry.Revision(lastBatch(t))
	s := mustOpen(t, reopened(t, dir, "portd.db"))
	storeID, id, beyond := s.id, s.journal.id, s.pending[0].base
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	rare := 4 // bits are looked at one time in so many
	if os.Getenv("PORTD_LONG") != "" {
		rare = 1
	}
	outcomes := map[string]int{}
	look := func(at int, b []byte) {
		t.Helper()
		overwriteAt(t, path+"-journal", b, at)
		defer overwriteAt(t, path+"-journal", whole[at:at+len(b)], at)
		j, found, err := openJournal(path+"-journal", storeID, id, int64(len(whole)), beyond, os.O_RDWR)
		if err != nil {
			if !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrForeign) {
				t.Errorf("byte %d: %v", at, err)
			}
			outcomes["found"]++
			return
		}
		j.file.Close()
		switch last := found[len(found)-1].last; {
		case last == before:
			outcomes["the batch before"]++
		case last != m.Revision:
			t.Errorf("byte %d: it is at revision %d, want %d", at, last, m.Revision)
		case outcomes["no matter"]%200 == 0:
			s := mustOpen(t, reopened(t, dir, "portd.db"))
			m.Check(t, s)
			if err := s.die(); err != nil {
				t.Error(err)
			}
			fallthrough
		default:
			outcomes["no matter"]++
		}
	}
	for at := 0; at < len(whole) && !t.Failed(); at++ {
		switch in := at % block; {
		case at >= 32*block: // nothing has come so far
			at = len(whole)
		case (in < recordBytes || in%211 == 0) && rand.IntN(rare) > 0:
		case in < recordBytes, in%211 == 0:
			look(at, []byte{whole[at] ^ 1<<(at%8)})
		case in == block-1:
			look(at-in, make([]byte, block))
			look(at-in, bytes.Repeat([]byte("portd"), block)[:block])
			look(at-in, whole[(at+1)%len(whole):][:block])
		}
	}
	t.Logf("%v", outcomes)
	if outcomes["found"] < 300/rare || outcomes["the batch before"] < 20/rare || outcomes["no matter"] == 0 {
		t.Error("that cannot be")
	}
}

// lastBatch is how many changes the last batch of leave has.
func lastBatch(t *testing.T) int {
	t.Helper()
	h := &history{seed: 1}
	for range 29 {
		h.Apply(h.next()...)
	}
	return len(h.next())
}

// The pages of the file go bad under an open store whose commits are in the journal. They are durable; the store ends when it
// finds out.
func TestDamagedUnderJournal(t *testing.T) {
	path := filepath.Join(t.TempDir(), "portd.db")
	s, err := Open(path, manually)
	if err != nil {
		t.Fatal(err)
	}
	commit := func() error { return s.Commit(t.Context(), s.rev, sizedChange(s.rev, 10)) }
	if err := commit(); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	overwriteAt(t, path, make([]byte, info.Size()), 0)
	if err := commit(); err != nil {
		t.Errorf("what goes into the journal: %v", err)
	}
	if err := s.checkpoint(); !errors.Is(err, ErrDamaged) || !errors.Is(err, registry.ErrUnavailable) {
		t.Errorf("what goes into the file: %v", err)
	}
	if err := commit(); !errors.Is(err, ErrDamaged) || !errors.Is(err, registry.ErrUnavailable) {
		t.Errorf("after that was found: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	overwriteAt(t, path, whole, 0) // as a copy of it is put back
	s = mustOpen(t, path)
	if s.rev != 2 {
		t.Errorf("revision %d, want 2", s.rev)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// overwriteAt writes into a file that may be mapped.
func overwriteAt(t *testing.T, path string, b []byte, at int) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(b, int64(at)); err != nil {
		t.Fatal(err)
	}
}

// While changes go from the journal into the file, and the oldest are forgotten, who reads finds each once, in order, up to the last
// that was answered.
func TestReadDuringCheckpoints(t *testing.T) {
	s, err := Open(filepath.Join(t.TempDir(), "portd.db"), Options{Delay: time.Nanosecond, Journal: 1})
	if err != nil {
		t.Fatal(err)
	}
	var answered atomic.Int64
	var readers sync.WaitGroup
	done := make(chan struct{})
	for n := range 2 {
		readers.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-done:
					return
				default:
				}
				if n == 0 && i%8 == 0 {
					least := answered.Load()
					if st, err := s.Load(t.Context()); err != nil || int64(st.Revision) < least {
						t.Errorf("%v, want revision %d or later", err, least)
						return
					}
				}
				from, until := registry.Revision(max(answered.Load()-400, 1)), registry.Revision(answered.Load())
				next := from
				for c, err := range s.Events(t.Context(), from) {
					if errors.Is(err, registry.ErrCompacted) {
						until = 0
						break
					}
					if err != nil || c.Revision != next {
						t.Errorf("revision %d (%v), want %d", c.Revision, err, next)
						return
					}
					next++
				}
				if next <= until {
					t.Errorf("it ends before %d, and %d was answered", next, until)
					return
				}
			}
		})
	}
	for range 300 {
		changes := make([]registry.Change, 7)
		for i := range changes {
			changes[i] = sizedChange(s.rev+registry.Revision(i), 2000)[0]
		}
		changes[3].Compact = max(s.rev-500, 0)
		last := changes[6].Revision
		if err := s.Commit(t.Context(), changes[0].Revision-1, changes); err != nil {
			t.Fatal(err)
		}
		answered.Store(int64(last))
	}
	close(done)
	readers.Wait()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// Who reads the service registry without a portd sees what one that died has left in its journal.
func TestReadServicesInJournal(t *testing.T) {
	path := filepath.Join(t.TempDir(), "portd.db")
	m := leave(t, path)
	s := mustOpen(t, reopened(t, filepath.Dir(path), "portd.db"))
	m.Check(t, s)
	st, err := s.Load(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	current, own, err := ReadServices(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(st.Services, own, cmpopts.EquateEmpty()); diff != "" || len(own) == 0 {
		t.Errorf("services (-want +got):\n%s", diff)
	}
	for _, e := range st.Editions {
		if e.Slot == registry.CurrentSlot && !cmp.Equal(e, current) {
			t.Errorf("the edition is another one")
		}
	}
}

// anew is a journal with another id, and rehome one of another store.
func anew(whole []byte) []byte {
	e := bytes.Clone(whole)
	e[headerBytes] ^= 1
	sign(e)
	return e
}

func rehome(whole []byte, storeID string) []byte {
	e := bytes.Clone(whole)
	copy(e[headerBytes+17:], storeID)
	sign(e)
	return e
}

func sign(e []byte) {
	h := e[headerBytes:][:17+int(e[headerBytes+16])]
	binary.BigEndian.PutUint32(e[len(journalMagic):], checksum(nil, h))
}

func storeOf(t *testing.T, db []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "portd.db")
	write(t, path, db)
	s := mustOpen(t, path)
	defer s.Close()
	return s.id
}

func FuzzJournal(f *testing.F) {
	id := journalID{1, 2, 3}
	all := make([]byte, 6*block)
	j := &journal{id: id}
	at := int64(block)
	for i, n := range []int{1, 5000, 3} {
		b, err := encode(registry.Revision(i), sizedChange(registry.Revision(i), n))
		if err != nil {
			f.Fatal(err)
		}
		r := b.record()
		j.seal(*r, b)
		copy(all[at:], *r)
		at += b.size()
	}
	f.Add(all, int64(0))
	f.Add(all, int64(1))
	f.Add(all[:2*block], int64(0))
	f.Add(all[block:], int64(2))
	f.Add([]byte(fmt.Sprintf("%s%s", recordMagic, make([]byte, 60))), int64(0))
	f.Fuzz(func(t *testing.T, all []byte, beyond int64) {
		if _, _, err := journalHeader(all); err != nil && !errors.Is(err, ErrForeign) {
			t.Error(err)
		}
		found, err := records(&window{file: bytes.NewReader(all), size: int64(len(all))}, id, registry.Revision(beyond))
		if err != nil {
			if !errors.Is(err, ErrDamaged) {
				t.Error(err)
			}
			return
		}
		last := registry.Revision(beyond)
		for _, b := range found {
			if b.base != last || b.last <= b.base {
				t.Fatalf("a batch from %d to %d after %d", b.base, b.last, last)
			}
			last = b.last
			// What is read is what is written.
			j := &journal{id: id}
			r := b.record()
			j.seal(*r, b)
			if !bytes.Equal((*r)[:recordBytes+b.length], all[b.at:][:recordBytes+b.length]) {
				t.Errorf("a record of %d bytes at %d is written in another way", b.length, b.at)
			}
		}
	})
}

func FuzzOps(f *testing.F) {
	var b []byte
	for _, o := range []op{{bucketEvent, eventKey(1), []byte("x")}, {bucketLease, []byte("k"), nil}, {bucketBoot, keyBoot, []byte{}}} {
		b = appendOp(b, o)
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		ops, err := readOps(b)
		if err != nil {
			if !errors.Is(err, ErrDamaged) {
				t.Error(err)
			}
			return
		}
		var again []byte
		n := 0
		for _, o := range ops {
			again = appendOp(again, o)
			n += o.size()
		}
		if n != len(again) {
			t.Errorf("it was to be %d bytes, and is %d", n, len(again))
		}
		back, err := readOps(again)
		if diff := cmp.Diff(ops, back, cmp.AllowUnexported(op{})); err != nil || diff != "" {
			t.Errorf("%v\n%s", err, diff)
		}
	})
}

// A file in which a record is damaged stays as it is, and so does its journal.
func TestDamagedBesideJournal(t *testing.T) {
	path := filepath.Join(t.TempDir(), "portd.db")
	leave(t, path)
	db, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	page := db[pageOfReservations(t, path, db):]
	for i := range binary.NativeEndian.Uint16(page[10:]) { // as bbolt has leaves
		e := page[16+16*int(i):]
		end := binary.NativeEndian.Uint32(e[4:]) + binary.NativeEndian.Uint32(e[8:]) + binary.NativeEndian.Uint32(e[12:])
		e[end-1] ^= 1
	}
	write(t, path, db)
	journal, err := os.ReadFile(path + "-journal")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Open(path, Options{}); !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), "reservation") {
		t.Errorf("open: %v, want %v", err, ErrDamaged)
	}
	for name, want := range map[string][]byte{path: db, path + "-journal": journal} {
		if got, err := os.ReadFile(name); err != nil || !bytes.Equal(got, want) {
			t.Errorf("it has changed %s (%v)", name, err)
		}
	}
}
