package boltstore

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	bolt "go.etcd.io/bbolt"

	"github.com/portd/portd/internal/ianadb"
	"github.com/portd/portd/internal/nstest"
	"github.com/portd/portd/internal/registry"
	"github.com/portd/portd/internal/registry/storetest"
)

// What Open refuses, it leaves as it is.
func TestRefused(t *testing.T) {
	nstest.Descriptors(t)
	good := filepath.Join(t.TempDir(), "good.db")
	makeStore(t, good)
	whole, err := os.ReadFile(good)
	if err != nil {
		t.Fatal(err)
	}
	write := func(b []byte) func(*testing.T, string) {
		return func(t *testing.T, path string) {
			if err := os.WriteFile(path, b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	foreign := func(opt bolt.Options) func(*testing.T, string) {
		return func(t *testing.T, path string) {
			db, err := bolt.Open(path, 0o600, &opt)
			if err != nil {
				t.Fatal(err)
			}
			if err := db.Update(func(tx *bolt.Tx) error {
				_, err := tx.CreateBucket([]byte("key"))
				return err
			}); err != nil {
				t.Fatal(err)
			}
			if err := db.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
	page, used := os.Getpagesize(), int64(0)
	db, err := bolt.Open(good, 0, &bolt.Options{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := db.View(func(tx *bolt.Tx) error {
		used = tx.Size() // bbolt lets the file be longer than that
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		make func(*testing.T, string)
		want error
		says string
	}{
		{"empty", write(nil), ErrForeign, "is empty; remove it"},
		{"text", write([]byte("hello\n")), ErrForeign, ""},
		{"long text", write(bytes.Repeat([]byte("hello\n"), 10_000)), ErrForeign, ""},
		{"zeros", write(make([]byte, len(whole))), ErrForeign, ""},
		{"another program's", foreign(bolt.Options{}), ErrForeign, `no bucket "meta"`},
		{"another program's, kept in another way", foreign(bolt.Options{NoFreelistSync: true}), ErrForeign, `no bucket "meta"`},
		{"cut off in the first page", write(whole[:100]), ErrForeign, ""},
		{"cut off after the first page", write(whole[:page+100]), ErrDamaged, ""},
		{"cut off after the meta pages", write(whole[:2*page]), ErrDamaged, "cut off after"},
		{"cut off before the last page", write(whole[:used-int64(page)]), ErrDamaged, "cut off after"},
		{"without meta pages", write(append(make([]byte, 2*page), whole[2*page:]...)), ErrForeign, ""},
		{"a directory", func(t *testing.T, path string) {
			if err := os.Mkdir(path, 0o700); err != nil {
				t.Fatal(err)
			}
		}, ErrForeign, "not a regular file"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "portd.db")
			tt.make(t, path)
			before, _ := os.ReadFile(path)
			s, err := Open(path, Options{})
			if err == nil {
				s.Close()
			}
			if !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.says) || !strings.Contains(err.Error(), path) {
				t.Errorf("%v, want %v that says %q and the path", err, tt.want, tt.says)
			}
			if after, _ := os.ReadFile(path); !bytes.Equal(before, after) {
				t.Error("it has changed the file")
			}
			if names := list(t, filepath.Dir(path)); len(names) != 1 {
				t.Errorf("beside the file there is now: %v", names)
			}
		})
	}
}

// makeStore makes a store with a history and returns what Load says before and after the last commit.
func makeStore(t *testing.T, path string) (states [2]*registry.State) {
	t.Helper()
	s := mustOpen(t, path)
	var m storetest.Model
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 30 {
		c := m.Next(rnd)
		if err := s.Commit(t.Context(), m.Revision, c); err != nil {
			t.Fatal(err)
		}
		m.Apply(c...)
		st, err := s.Load(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		states[0], states[1] = states[1], st
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return states
}

func list(t *testing.T, dir string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// A damaged page, or a single damaged bit in a page of records, is found, or in a place that nothing leads to.
func TestDamaged(t *testing.T) {
	path := filepath.Join(t.TempDir(), "portd.db")
	states := makeStore(t, path)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	page := os.Getpagesize()
	other := bytes.Repeat([]byte("portd"), page)[:page]
	outcomes := map[string]int{}
	for at := 0; at < len(whole); at += page {
		for name, bytes := range map[string][]byte{
			"zeros":        make([]byte, page),
			"text":         other,
			"another page": whole[(at+2*page)%len(whole):][:page],
		} {
			outcomes[lookAt(t, path, whole, at, bytes, states)]++
			if t.Failed() {
				t.Fatalf("page %d replaced by %s", at/page, name)
			}
		}
	}
	t.Logf("pages: %v", outcomes)
	if outcomes["damaged"] < 30 || outcomes["an edition lost"] == 0 {
		t.Error("too few were found")
	}

	// A page of reservations: all its header, and one bit in every eleventh byte.
	clear(outcomes)
	records := pageOfReservations(t, path, whole)
	for i := range page {
		for bit := range 8 {
			if i >= 16 && (i%11 != 0 || bit != i/11%8) {
				continue
			}
			outcomes[lookAt(t, path, whole, records+i, []byte{whole[records+i] ^ 1<<bit}, states)]++
			if t.Failed() {
				t.Fatalf("bit %d of byte %d of page %d", bit, i, records/page)
			}
		}
	}
	t.Logf("bits: %v", outcomes)
	if outcomes["damaged"] < 200 {
		t.Error("too few were found")
	}
}

// pageOfReservations finds where in the file one is.
func pageOfReservations(t *testing.T, path string, whole []byte) int {
	t.Helper()
	db, err := bolt.Open(path, 0, &bolt.Options{ReadOnly: true, PreLoadFreelist: true})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	at := -1
	if err := db.View(func(tx *bolt.Tx) error {
		_, v := tx.Bucket(bucketReservation).Cursor().First()
		// It stands in pages that are free, too, from where it was moved.
		for from := 0; ; {
			i := bytes.Index(whole[from:], v)
			if i < 0 {
				return nil
			}
			id := (from + i) / os.Getpagesize()
			p, err := tx.Page(id)
			if err != nil {
				return err
			}
			if p.Type == "leaf" {
				at = id * os.Getpagesize()
			}
			from += i + len(v)
		}
	}); err != nil || at < 0 {
		t.Fatalf("there is none: %v", err)
	}
	return at
}

// lookAt puts bytes into a file that was whole and says what comes of it.
func lookAt(t *testing.T, path string, whole []byte, at int, b []byte, states [2]*registry.State) string {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(b, int64(at)); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if _, err := f.WriteAt(whole[at:at+len(b)], int64(at)); err != nil {
			t.Fatal(err)
		}
	}()
	s, err := Open(path, Options{})
	if err != nil {
		if !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrForeign) && !errors.As(err, new(*SchemaError)) {
			t.Error(err)
		}
		return "damaged"
	}
	defer s.Close()
	st, err := s.Load(t.Context())
	if err != nil {
		if !errors.Is(err, ErrDamaged) {
			t.Error(err)
		}
		return "damaged"
	}
	outcome := "no matter"
	if st.Revision == states[0].Revision && at < 2*os.Getpagesize() {
		outcome, states[1] = "the commit before", states[0] // which bbolt cannot tell from one that was interrupted
	}
	if len(st.Damaged) > 0 { // it can be done without, and all else is there
		outcome = "an edition lost"
		for _, err := range st.Damaged {
			if !errors.Is(err, ErrDamaged) {
				t.Error(err)
			}
		}
		whole := *states[1]
		whole.Editions, whole.Damaged = st.Editions, st.Damaged
		states[1] = &whole
	}
	if !reflect.DeepEqual(states[1], st) { // go-cmp would take most of the test's time
		t.Errorf("it is not found: %+v, want %+v", st, states[1])
	}
	next := st.Oldest
	for c, err := range s.Events(t.Context(), next) {
		if err != nil {
			if !errors.Is(err, ErrDamaged) {
				t.Error(err)
			}
			return "found by events"
		}
		if c.Revision != next {
			t.Errorf("revision %d, want %d", c.Revision, next)
		}
		next++
	}
	if next != st.Revision+1 {
		t.Errorf("events end with revision %d, want %d", next-1, st.Revision)
	}
	return outcome
}

// The pages go bad under an open store. bbolt panics while it writes, and is left with its own lock locked.
func TestDamagedWhileOpen(t *testing.T) {
	for name, from := range map[string]int{"all": 0, "all but the meta pages": 2} {
		t.Run(name, func(t *testing.T) { damageWhileOpen(t, int64(from*os.Getpagesize())) })
	}
}

func damageWhileOpen(t *testing.T, from int64) {
	path := filepath.Join(t.TempDir(), "portd.db")
	makeStore(t, path)
	s := mustOpen(t, path)
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(make([]byte, info.Size()-from), from); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		err := s.Commit(t.Context(), s.rev, []registry.Change{{Revision: s.rev + 1}})
		if !errors.Is(err, registry.ErrUnavailable) || !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), path) {
			t.Errorf("commit: %v", err)
		}
		if _, err := s.Load(t.Context()); !errors.Is(err, registry.ErrUnavailable) {
			t.Errorf("load: %v", err)
		}
	}
	if err := s.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
	// It is not locked any more.
	if _, err := Open(path, Options{}); err == nil || errors.Is(err, ErrInUse) {
		t.Errorf("opened again: %v", err)
	}
}

func TestInUse(t *testing.T) {
	path := filepath.Join(t.TempDir(), "portd.db")
	s := mustOpen(t, path)
	start := time.Now()
	_, err := Open(path, Options{Timeout: 100 * time.Millisecond})
	if !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), "another portd has "+path+" open") {
		t.Errorf("opened twice: %v", err)
	}
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("that took %v", took)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := mustOpen(t, path).Close(); err != nil {
		t.Fatal(err)
	}
}

func TestNewFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "portd.db")
	// Several at once: all get the same store, one after the other.
	var mu sync.Mutex
	ids := map[string]bool{}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			s, err := Open(path, Options{Timeout: time.Minute})
			if err != nil {
				t.Error(err)
				return
			}
			defer s.Close()
			st, err := s.Load(t.Context())
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			ids[st.StoreID] = true
		})
	}
	wg.Wait()
	if len(ids) != 1 {
		t.Errorf("store ids %v, want one", ids)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode() != 0o600 {
		t.Errorf("the file is %v (%v)", info.Mode(), err)
	}
	if names := list(t, dir); len(names) != 1 {
		t.Errorf("beside the file there is: %v", names)
	}

	if _, err := Open(filepath.Join(dir, "none", "portd.db"), Options{}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("in a directory that is not there: %v", err)
	}
	if names := list(t, dir); len(names) != 1 {
		t.Errorf("beside the file there is: %v", names)
	}
}

// The megabyte of an edition is written when the edition is, and never again.
func TestEditionIsLeftAlone(t *testing.T) {
	s := mustOpen(t, filepath.Join(t.TempDir(), "portd.db"))
	defer s.Close()
	written := func(base registry.Revision, put ...registry.Record) int {
		t.Helper()
		before := writtenBytes(t)
		if err := s.Commit(t.Context(), base, []registry.Change{{Revision: base + 1, Put: put}}); err != nil {
			t.Fatal(err)
		}
		return writtenBytes(t) - before
	}
	const size = 1 << 20
	if n := written(0, &registry.Edition{Slot: registry.CurrentSlot, Origin: registry.Embedded, Blob: strings.Repeat("x", size)}); n < size {
		t.Errorf("an edition of %d bytes takes %d bytes of writing", size, n)
	}
	for base := registry.Revision(1); base < 20; base++ {
		if n := written(base, &registry.Reservation{ID: "rsv_1"}, &registry.OwnService{By: "uid:0"}); n > size/10 {
			t.Errorf("a small commit after it takes %d", n)
		}
	}
}

// writtenBytes is what this process has written so far (proc(5)).
func writtenBytes(t *testing.T) (n int) {
	t.Helper()
	text, err := os.ReadFile("/proc/self/io")
	if err != nil {
		t.Skipf("needs /proc/self/io: %v", err)
	}
	if _, err := fmt.Sscanf(string(text[bytes.Index(text, []byte("wchar:")):]), "wchar: %d", &n); err != nil {
		t.Fatal(err)
	}
	return n
}

func TestMigrate(t *testing.T) {
	path := filepath.Join(t.TempDir(), "portd.db")
	before := makeStore(t, path)[1]
	failed := errors.New("no")
	stepped := func(tx *bolt.Tx) error {
		_, err := tx.CreateBucket([]byte("new"))
		return err
	}
	if _, err := open(path, Options{}, append(migrations, stepped, func(*bolt.Tx) error { return failed })); !errors.Is(err, failed) {
		t.Fatalf("with a step that fails: %v", err)
	}
	// That left nothing behind, or else CreateBucket would fail now.
	s, err := open(path, Options{}, append(migrations, stepped, func(*bolt.Tx) error { return nil }))
	if err != nil {
		t.Fatal(err)
	}
	st, err := s.Load(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	reads := newest(migrations)
	before.Schema = reads + 2
	if diff := cmp.Diff(before, st, cmpopts.EquateComparable(netip.Addr{})); diff != "" {
		t.Errorf("after the migration (-want +got):\n%s", diff)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	var newer *SchemaError
	if _, err := Open(path, Options{}); !errors.As(err, &newer) || *newer != (SchemaError{Have: reads + 2, Reads: reads}) {
		t.Errorf("of a newer portd: %v", err)
	}
}

// testdata/schemaN.db.gz is what a portd of that schema wrote, and the journal beside it what one left that died: all that it had is there, and what it had not can be written.
func TestMigrateOlder(t *testing.T) {
	at := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	web := &registry.Reservation{
		ID: "rsv_1", Name: "web", Owner: "uid:1000", Lease: "lse_1", Created: at, CreateRevision: 1, Revision: 1,
		Assigned: []registry.Assigned{{Endpoint: registry.Endpoint{
			Netns: registry.HostNetns, Proto: registry.TCP, Addr: registry.AnyAddr, First: 8080, Last: 8080,
		}}},
	}
	state := func(s registry.LeaseSpec) *registry.State {
		return &registry.State{
			Schema: closed(newest(migrations)), Revision: 2, Oldest: 1, Boot: &registry.Boot{ID: "that one"},
			Reservations: []*registry.Reservation{web},
			Leases:       []*registry.Lease{{ID: "lse_1", Owner: "uid:1000", Spec: s, Created: at, CreateRevision: 1}},
		}
	}
	requests := []*registry.Request{{Caller: "uid:1000", Method: "Reserve", ID: "1", Time: at, Result: web, Revision: 1}}
	one := state(registry.LeaseSpec{Kind: registry.SessionLease})
	two := state(registry.LeaseSpec{Kind: registry.TTLLease, TTL: time.Minute})
	two.Editions = []*registry.Edition{{
		Slot: registry.CurrentSlot, Origin: registry.Imported, Date: "2026-02-13", Records: 1, Blob: "blob", By: "uid:0", Time: at,
	}}
	two.Services = []*registry.OwnService{{
		Entry: ianadb.Entry{Name: "myapp", Port: "4711", First: 4711, Last: 4711, Protocol: ianadb.TCP}, By: "uid:0", Time: at, Revision: 2,
	}}
	three := state(registry.LeaseSpec{Kind: registry.TTLLease, TTL: time.Minute})
	three.Editions, three.Services, three.Revision = two.Editions, two.Services, 3
	ended := &registry.Reservation{
		ID: "rsv_0", Name: "db", Owner: "uid:1000", Created: at, CreateRevision: 1, Revision: 1,
		Assigned: []registry.Assigned{{Endpoint: registry.Endpoint{
			Netns: registry.HostNetns, Proto: registry.UDP, Addr: registry.AnyAddr, First: 5353, Last: 5353,
		}}},
	}
	three.Formers = []*registry.Former{{Reservation: ended, Ended: at, Until: at.Add(time.Hour)}}
	three.Namespaces = []*registry.Namespace{{Name: "blue", Inode: 4026532000, Cookie: 17, BootID: "that one"}}
	four := *three // the last of it in the journal
	for _, c := range []struct {
		file   string
		want   *registry.State
		events []registry.EventType
	}{
		{"schema1.db.gz", one, []registry.EventType{registry.EventReserved, registry.EventLeaseCreated}},
		{"schema2.db.gz", two, []registry.EventType{registry.EventReserved, registry.EventLeaseCreated, registry.EventServiceAdded}},
		{"schema3.db.gz", three, []registry.EventType{
			registry.EventReserved, registry.EventLeaseCreated, registry.EventServiceAdded, registry.EventReleased,
		}},
		{"schema4.db.gz", &four, []registry.EventType{
			registry.EventReserved, registry.EventLeaseCreated, registry.EventServiceAdded, registry.EventReleased,
		}},
	} {
		t.Run(c.file, func(t *testing.T) { migrates(t, c.file, c.want, requests, c.events) })
	}
}

func unpack(t *testing.T, path string) []byte {
	t.Helper()
	packed, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer packed.Close()
	z, err := gzip.NewReader(packed)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func migrates(t *testing.T, file string, want *registry.State, wantRequests []*registry.Request, wantEvents []registry.EventType) {
	path := filepath.Join(t.TempDir(), "portd.db")
	write(t, path, unpack(t, filepath.Join("testdata", file)))
	journal := filepath.Join("testdata", strings.Replace(file, ".db.", ".db-journal.", 1))
	if _, err := os.Stat(journal); err == nil {
		write(t, path+"-journal", unpack(t, journal))
	}
	check := func(s *Store) {
		t.Helper()
		st, err := s.Load(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		want.StoreID = st.StoreID
		if diff := cmp.Diff(want, st, cmpopts.EquateComparable(netip.Addr{}), cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("after the migration (-want +got):\n%s", diff)
		}
		requests, err := s.Requests(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(wantRequests, requests, cmpopts.EquateComparable(netip.Addr{}), cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("requests after the migration (-want +got):\n%s", diff)
		}
	}
	s := mustOpen(t, path)
	check(s)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if refusedByOlder(t, path) {
		t.Error("a portd without journals does not open what needs none")
	}
	s = mustOpen(t, path)
	check(s)
	full := storetest.Full(1)
	want.Editions, want.Services = nil, append(want.Services, full.Put[5].(*registry.OwnService))
	want.Editions = append(want.Editions, full.Put[4].(*registry.Edition))
	want.Formers = append(want.Formers, full.Put[6].(*registry.Former))
	want.Namespaces = append(want.Namespaces, full.Put[7].(*registry.Namespace))
	last := want.Revision + 1
	if err := s.Commit(t.Context(), want.Revision, []registry.Change{{Revision: last, Put: full.Put[4:], Delete: []registry.Key{{Kind: registry.KindEdition, ID: registry.CurrentSlot}}}}); err != nil {
		t.Fatal(err)
	}
	want.Revision = last
	check(s)
	var events []registry.EventType
	for c, err := range s.Events(t.Context(), 1) {
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range c.Events {
			events = append(events, e.Type)
		}
	}
	if diff := cmp.Diff(wantEvents, events); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}
