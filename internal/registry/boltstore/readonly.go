package boltstore

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/registry"
	"github.com/portd/portd/internal/registry/boltstore/storepb"
)

// A ReadOnly is a registry.Store of what is whole in a file that may be damaged. Nothing is ever written to that: what is committed is
// in memory, and gone with it.
type ReadOnly struct {
	path   string
	file   *os.File // locked, so that nobody writes to it meanwhile
	damage []error

	mu       sync.Mutex
	state    registry.State
	requests []*registry.Request
	changes  []registry.Change // from state.Oldest to state.Revision, each
}

var _ registry.Store = (*ReadOnly)(nil)

// OpenReadOnly reads the file at path, and the journal beside it, and leaves out what is damaged, which Damage tells. The error is
// that of the system, ErrInUse, a *SchemaError, or ErrDamaged where nothing can be read at all. The caller closes it.
func OpenReadOnly(path string) (_ *ReadOnly, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close())
		}
	}()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB); err != nil {
		return nil, fmt.Errorf("%w: another portd has %s open", ErrInUse, path)
	}
	s := &ReadOnly{path: path, file: f}
	w, err := s.salvage()
	if err != nil {
		return nil, err
	}
	w.build()
	return s, nil
}

// salvage reads the file and its journal.
func (s *ReadOnly) salvage() (*salvage, error) {
	info, err := s.file.Stat()
	if err != nil {
		return nil, err
	}
	w := &salvage{ReadOnly: s, records: map[string]op{}, schema: newest(migrations)}
	if err := walk(s.file, info.Size(), w.take, w.wrong); err != nil {
		return nil, fmt.Errorf("%s: %w", s.path, err)
	}
	if w.schema > newest(migrations) {
		return nil, fmt.Errorf("%s: %w", s.path, &SchemaError{Have: w.schema, Reads: newest(migrations)})
	}
	w.count()
	w.journal(s.path)
	return w, nil
}

// Backup is that of a Store, of the files as they are: what was committed since, in memory, is not in it.
func (s *ReadOnly) Backup(ctx context.Context, w io.Writer) (BackupInfo, error) {
	all, err := (&ReadOnly{path: s.path, file: s.file}).salvage()
	switch {
	case err != nil:
		return BackupInfo{}, err
	case len(all.damage) > 0:
		if first := all.damage[0]; errors.Is(first, ErrDamaged) {
			return BackupInfo{}, fmt.Errorf("%s: %w", s.path, first)
		}
		return BackupInfo{}, fmt.Errorf("%s: %w: %w", s.path, ErrDamaged, all.damage[0])
	}
	m := all.meta
	h := &storepb.Backup{StoreId: m.GetStoreId(), Revision: m.GetRevision(), Oldest: m.GetOldest(), Schema: closed(all.schema)}
	keys := slices.Sorted(maps.Keys(all.records))
	return writeBackup(w, h, func(yield func(op) error) error {
		for _, bucket := range backupBuckets(h.GetSchema()) {
			from := string(bucket) + "\x00"
			if string(bucket) == string(bucketEvent) {
				from += string(eventKey(registry.Revision(h.GetOldest())))
			}
			first, _ := slices.BinarySearch(keys, from)
			for _, k := range keys[first:] {
				if !strings.HasPrefix(k, string(bucket)+"\x00") {
					break
				}
				if ctx.Err() != nil {
					return ctx.Err()
				}
				if err := yield(all.records[k]); err != nil {
					return err
				}
			}
		}
		return nil
	})
}

// Damage is what is missing for being damaged, a reason each; none where all is whole.
func (s *ReadOnly) Damage() []error { return s.damage }

// Close implements registry.Store.
func (s *ReadOnly) Close() error { return s.file.Close() }

// Load implements registry.Store.
func (s *ReadOnly) Load(ctx context.Context) (*registry.State, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.state
	return &st, ctx.Err()
}

// Requests implements registry.Store.
func (s *ReadOnly) Requests(context.Context) ([]*registry.Request, error) { return s.requests, nil }

// Commit implements registry.Store but for being durable. Load does not show it.
func (s *ReadOnly) Commit(ctx context.Context, base registry.Revision, changes []registry.Change) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	last := s.last()
	if base != last {
		return fmt.Errorf("%w: the store is at revision %d, not %d", registry.ErrConflict, last, base)
	}
	for _, c := range changes {
		s.changes = append(s.changes, registry.Change{Revision: c.Revision, Time: c.Time, Events: c.Events})
	}
	return nil
}

func (s *ReadOnly) last() registry.Revision {
	return s.state.Oldest + registry.Revision(len(s.changes)) - 1
}

// Events implements registry.Store.
func (s *ReadOnly) Events(ctx context.Context, from registry.Revision) iter.Seq2[registry.Change, error] {
	s.mu.Lock()
	all, oldest := slices.Clip(s.changes), s.state.Oldest
	s.mu.Unlock()
	return func(yield func(registry.Change, error) bool) {
		from := max(from, 1)
		if from < oldest {
			yield(registry.Change{}, &registry.CompactedError{Wanted: from, Oldest: oldest})
			return
		}
		for _, c := range all[min(int(from-oldest), len(all)):] {
			if ctx.Err() != nil {
				yield(registry.Change{}, ctx.Err())
				return
			}
			if !yield(c, nil) {
				return
			}
		}
	}
}

// A salvage is a ReadOnly that is being read.
type salvage struct {
	*ReadOnly
	schema  uint32
	meta    *storepb.Meta // nil: it cannot be read
	records map[string]op // by bucket and key
}

func (w *salvage) wrong(err error) error {
	w.damage = append(w.damage, err)
	return nil
}

func (w *salvage) take(bucket, key, value []byte) error {
	if string(bucket) == string(bucketMeta) {
		switch string(key) {
		case string(keySchema):
			if len(value) == 4 {
				w.schema = binary.BigEndian.Uint32(value)
			}
		case string(keyStore):
			m := &storepb.Meta{}
			if err := unseal(key, value, m); err != nil {
				return w.wrong(fmt.Errorf("%s %q: %w", bucket, key, err))
			}
			w.meta = m
		}
		return nil
	}
	o := op{slices.Clone(bucket), slices.Clone(key), slices.Clone(value)}
	if err := checkSealed(key, value); err != nil {
		return w.wrong(fmt.Errorf("%s %q: %w", bucket, key, err))
	}
	w.records[string(bucket)+"\x00"+string(key)] = o
	return nil
}

// count compares how many records there are with what the file says: one that is missing as a whole nobody would notice.
func (w *salvage) count() {
	counts := map[string]int64{}
	for k := range w.records {
		bucket, _, _ := strings.Cut(k, "\x00")
		counts[bucket]++
	}
	for _, name := range bucketsOfRecords(w.schema) {
		if n, want := counts[string(name)], w.meta.GetRecords()[string(name)]; n < want {
			_ = w.wrong(fmt.Errorf("%w: of %d records of kind %s there are %d", ErrDamaged, want, name, n))
		}
	}
}

// journal adds what is in the journal that the file names.
func (w *salvage) journal(path string) {
	if w.meta == nil {
		_ = w.wrong(fmt.Errorf("%w: what the file says of itself cannot be read, so that its journal is left out, if it has one", ErrDamaged))
		return
	}
	id := w.meta.GetJournal()
	if len(id) != len(journalID{}) {
		return
	}
	j, found, err := openJournal(journalPath(path), w.meta.GetStoreId(), journalID(id), w.meta.GetJournalSize(), registry.Revision(w.meta.GetRevision()), os.O_RDONLY)
	if err != nil {
		_ = w.wrong(fmt.Errorf("the last changes are missing: %w", err))
		return
	}
	j.file.Close()
	for _, b := range found {
		for _, o := range b.ops {
			k := string(o.bucket) + "\x00" + string(o.key)
			if o.value == nil {
				delete(w.records, k)
			} else {
				w.records[k] = o
			}
		}
		w.meta.Revision, w.meta.Oldest = int64(b.last), max(w.meta.GetOldest(), int64(b.oldest))
	}
}

// build makes the state of the records.
func (w *salvage) build() {
	st := &w.state
	st.Schema, st.StoreID = closed(w.schema), w.meta.GetStoreId()
	if st.StoreID == "" {
		st.StoreID = newStoreID() // nobody is to take it for the one that it was
	}
	st.Revision = registry.Revision(w.meta.GetRevision())
	changes := map[registry.Revision]registry.Change{}
	for _, k := range slices.Sorted(maps.Keys(w.records)) {
		o := w.records[k]
		var err error
		switch string(o.bucket) {
		case string(bucketReservation):
			err = salvaged(o, &st.Reservations, (*fromStored).reservation)
		case string(bucketLease):
			err = salvaged(o, &st.Leases, (*fromStored).lease)
		case string(bucketRequest):
			err = salvaged(o, &w.requests, (*fromStored).request)
		case string(bucketService):
			err = salvaged(o, &st.Services, (*fromStored).service)
		case string(bucketEdition):
			err = salvaged(o, &st.Editions, (*fromStored).edition)
		case string(bucketFormer):
			err = salvaged(o, &st.Formers, (*fromStored).former)
		case string(bucketNamespace):
			err = salvaged(o, &st.Namespaces, (*fromStored).namespace)
		case string(bucketBoot):
			st.Boot, err = decode(o.key, o.value, (*fromStored).boot)
		case string(bucketEvent):
			if len(o.key) == 8 {
				at := registry.Revision(binary.BigEndian.Uint64(o.key))
				changes[at], err = decode(o.key, o.value, func(c *fromStored, m *storepb.Change) registry.Change { return c.change(at, m) })
				st.Revision = max(st.Revision, at)
			}
		}
		if err != nil {
			_ = w.wrong(fmt.Errorf("%s %q: %w", o.bucket, o.key, err))
		}
	}
	for _, r := range st.Reservations { // a revision is never given twice
		st.Revision = max(st.Revision, r.Revision)
	}
	// What is kept of the history goes back to the first gap.
	st.Oldest = st.Revision + 1
	for at, ok := changes[st.Oldest-1]; ok && int64(st.Oldest) > max(w.meta.GetOldest(), 1); at, ok = changes[st.Oldest-1] {
		w.changes = append(w.changes, at)
		st.Oldest--
	}
	slices.Reverse(w.changes)
}

func salvaged[T, M any, P message[M]](o op, into *[]T, convert func(*fromStored, P) T) error {
	r, err := decode(o.key, o.value, convert)
	if err == nil {
		*into = append(*into, r)
	}
	return err
}
