package boltstore

import (
	"bytes"
	"context"
	"fmt"
	"iter"

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
	err := s.lock()
	if err == nil {
		last = s.rev
		s.writer.Unlock()
	}
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

// changes reads some of the changes from revision from to last; at least one. Those that are not in the file yet it reads from
// what is pending.
func (s *Store) changes(from, last registry.Revision) ([]registry.Change, error) {
	var chunk []registry.Change
	var compacted *registry.CompactedError
	err := s.view(func(v view) error {
		m, err := readMeta(v.tx)
		if err != nil {
			return err
		}
		if from < v.oldest {
			compacted = &registry.CompactedError{Wanted: from, Oldest: v.oldest}
			return nil
		}
		size := 0
		add := func(at registry.Revision, k, sealed []byte) error {
			if !bytes.Equal(k, eventKey(at)) {
				return fmt.Errorf("%w: revision %d is missing", ErrDamaged, at)
			}
			ch, err := decode(k, sealed, func(c *fromStored, m *storepb.Change) registry.Change { return c.change(at, m) })
			if err != nil {
				return fmt.Errorf("%s %d: %w", bucketEvent, at, err)
			}
			chunk = append(chunk, ch)
			size += len(sealed)
			return nil
		}
		more := func(at registry.Revision) bool { return at <= last && len(chunk) < chunkChanges && size < chunkBytes }
		at := from
		c := v.tx.Bucket(bucketEvent).Cursor()
		for k, sealed := c.Seek(eventKey(at)); at <= registry.Revision(m.GetRevision()) && more(at); at++ {
			if err := add(at, k, sealed); err != nil {
				return err
			}
			k, sealed = c.Next()
		}
		for _, b := range v.pending {
			for _, o := range b.ops {
				if !more(at) {
					return nil
				}
				if bytes.Equal(o.bucket, bucketEvent) && bytes.Equal(o.key, eventKey(at)) {
					if err := add(at, o.key, o.value); err != nil {
						return err
					}
					at++
				}
			}
		}
		if more(at) {
			return fmt.Errorf("%w: revision %d is missing", ErrDamaged, at)
		}
		return nil
	})
	if compacted != nil {
		return nil, compacted
	}
	return chunk, err
}
