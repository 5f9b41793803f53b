package boltstore

import (
	"bytes"
	"context"
	"fmt"
	"iter"

	bolt "go.etcd.io/bbolt"

	"github.com/portd/portd/internal/registry"
	"github.com/portd/portd/internal/registry/boltstore/storepb"
)

// A chunk of changes is read in one transaction, of at most that many, or fewer where they are large.
const (
	chunkChanges = 256
	chunkBytes   = 1 << 20
)

// Events implements registry.Store. While the caller looks at a change no transaction is open, so it may take its time: it
// holds up nobody, and where what it has yet to read is compacted meanwhile it gets the *registry.CompactedError then.
func (s *Store) Events(ctx context.Context, from registry.Revision) iter.Seq2[registry.Change, error] {
	var last registry.Revision
	err := s.view(func(tx *bolt.Tx) error {
		m, err := readMeta(tx)
		last = registry.Revision(m.GetRevision())
		return err
	})
	return func(yield func(registry.Change, error) bool) {
		if err != nil {
			yield(registry.Change{}, err)
			return
		}
		for next := max(from, 1); next <= last; {
			chunk, err := s.changes(next, last)
			if err != nil {
				yield(registry.Change{}, err)
				return
			}
			for _, c := range chunk {
				if err := ctx.Err(); err != nil {
					yield(registry.Change{}, err)
					return
				}
				if !yield(c, nil) {
					return
				}
			}
			next += registry.Revision(len(chunk))
		}
	}
}

// changes reads some of the changes from revision from to last; at least one.
func (s *Store) changes(from, last registry.Revision) ([]registry.Change, error) {
	var chunk []registry.Change
	var compacted *registry.CompactedError
	err := s.view(func(tx *bolt.Tx) error {
		m, err := readMeta(tx)
		if err != nil {
			return err
		}
		if oldest := registry.Revision(m.GetOldest()); from < oldest {
			compacted = &registry.CompactedError{Wanted: from, Oldest: oldest}
			return nil
		}
		size := 0
		c := tx.Bucket(bucketEvent).Cursor()
		k, v := c.Seek(eventKey(from))
		for at := from; at <= last && len(chunk) < chunkChanges && size < chunkBytes; at++ {
			if !bytes.Equal(k, eventKey(at)) {
				return fmt.Errorf("%w: revision %d is missing", ErrDamaged, at)
			}
			ch, err := decode(k, v, func(c *fromStored, m *storepb.Change) registry.Change { return c.change(at, m) })
			if err != nil {
				return fmt.Errorf("%s %d: %w", bucketEvent, at, err)
			}
			chunk = append(chunk, ch)
			size += len(v)
			k, v = c.Next()
		}
		return nil
	})
	if compacted != nil {
		return nil, compacted
	}
	return chunk, err
}
