package boltstore

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	bolt "go.etcd.io/bbolt"
)

// A trial is a newer portd at work on a file that stays what the older one reads, until it is settled who goes on. What the
// older schema has no place for is kept aside: it is not on the disk before that.
type trial struct {
	steps []migration
	have  uint32

	mu    sync.Mutex
	over  bool
	late  error // why Settle has failed; nil: nobody has called it
	aside []op
}

// commit writes what the older schema has a place for, and keeps the rest.
func (t *trial) commit(ctx context.Context, s *Store, b *batch) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.over {
		return s.commit(ctx, b)
	}
	places := map[string]bool{string(bucketEvent): true}
	for _, name := range bucketsOfRecords(t.have) {
		places[string(name)] = true
	}
	var rest []op
	fits := *b
	fits.ops, fits.length = nil, 0
	for _, o := range b.ops {
		if !places[string(o.bucket)] {
			rest = append(rest, o)
			continue
		}
		fits.ops = append(fits.ops, o)
		fits.length += o.size()
	}
	if len(rest) > 0 && t.late != nil { // it would be answered, and be nowhere when portd dies
		return s.unavailable(fmt.Errorf("what is changed has no place in schema %d, and the file could not be brought to the newest: %w", t.have, t.late))
	}
	if err := s.commit(ctx, &fits); err != nil {
		return err
	}
	t.aside = append(t.aside, rest...)
	return nil
}

// Settle ends a trial: the file is brought to the newest schema for good, after a copy was made of what it is, and has
// all from then on. It does nothing in a Store that is not on trial. After an error the trial goes on, what has no place in the older schema
// is refused from then on, and Settle can be called again.
func (s *Store) Settle() error {
	t := s.trial.Load()
	if t == nil {
		return nil
	}
	if err := s.Synced(); err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.over {
		return nil
	}
	s.base.Lock()
	defer s.base.Unlock()
	s.writer.Lock()
	defer s.writer.Unlock()
	if err := s.migrate(t.have, t.steps, t.aside); err != nil {
		t.late = err
		return err
	}
	t.over, t.aside = true, nil
	s.without = time.Time{}
	s.trial.Store(nil)
	return nil
}

// migrate brings the file from the schema that it has to the newest, for whoever has base and writer. Before that it is copied,
// closed, as the portd that wrote it takes it.
func (s *Store) migrate(have uint32, steps []migration, then []op) error {
	s.schema = have
	if err := s.endJournal(); err != nil {
		return err
	}
	if s.journal != nil {
		s.journal.file.Close()
		s.journal, s.grown = nil, 0
	}
	if err := s.keepOld(closed(have)); err != nil {
		return fmt.Errorf("copy it before it is migrated from schema %d: %w", have, err)
	}
	if err := s.settled(); err != nil {
		return err
	}
	to := newest(steps)
	if err := s.update(func(tx *bolt.Tx) error {
		if err := migrate(tx, steps); err != nil || len(then) == 0 {
			return err
		}
		m, err := readMeta(tx)
		if err != nil {
			return err
		}
		for _, o := range then {
			if err := o.count(tx, m, nil); err != nil {
				return err
			}
		}
		o, err := put(bucketMeta, keyStore, m)
		if err != nil {
			return err
		}
		return o.apply(tx)
	}); err != nil {
		s.unsettled = true // it may be in the file all the same
		return fmt.Errorf("%s: %w", s.path, err)
	}
	s.schema = to
	return nil
}

// keptOld is of how many schemas the copy from before the migration stays.
const keptOld = 2

const oldInfix = ".schema"

// oldPath is where the file is as it was before it was migrated from a schema: a portd of that time opens it.
func oldPath(path string, schema uint32) string { return fmt.Sprint(path, oldInfix, schema, ".bak") }

// keepOld copies the file, which nobody writes to meanwhile.
func (s *Store) keepOld(schema uint32) error {
	from, err := os.Open(s.path)
	if err != nil {
		return err
	}
	defer from.Close()
	to := oldPath(s.path, schema)
	if err := writeFile(to+".new", func(w io.Writer) (string, error) {
		_, err := io.Copy(w, from)
		return to, err
	}); err != nil {
		return err
	}
	old, err := filepath.Glob(globbed(s.path) + oldInfix + "*.bak")
	if err != nil {
		return err
	}
	number := func(path string) (n uint32) {
		_, _ = fmt.Sscanf(strings.TrimPrefix(path, s.path), oldInfix+"%d.bak", &n)
		return n
	}
	slices.SortFunc(old, func(a, b string) int { return cmp.Compare(number(b), number(a)) })
	for _, path := range old[min(keptOld, len(old)):] {
		if err := removeIfThere(path); err != nil {
			return err
		}
	}
	s.opt.Log.Info("the state was copied before it is migrated", "copy", to, "schema", schema)
	return nil
}
