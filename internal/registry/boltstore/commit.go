package boltstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	bolt "go.etcd.io/bbolt"
	"google.golang.org/protobuf/proto"

	"github.com/portd/portd/internal/registry"
	"github.com/portd/portd/internal/registry/boltstore/storepb"
)

// sweepAtMost bounds the forgotten changes that one commit removes: that many fit in some tens of pages.
const sweepAtMost = 1000

// Commit implements registry.Store. It returns when the changes are on the disk. After an error none of them is in the
// store; where the disk does not allow that to be made sure, all calls are ErrUnavailable until one of them finds that it
// does. ctx counts until the writing begins.
func (s *Store) Commit(ctx context.Context, base registry.Revision, changes []registry.Change) error {
	b, err := encode(base, changes)
	if err != nil {
		return err
	}
	if len(changes) == 0 {
		return s.view(func(tx *bolt.Tx) error {
			_, err := metaAt(tx, base)
			return err
		})
	}
	s.writer.Lock()
	defer s.writer.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := s.takeBack(); err != nil {
		return err
	}
	return s.commit(base, b)
}

// A batch is changes as they are written.
type batch struct {
	ops    []op
	last   registry.Revision
	oldest registry.Revision // forget what is before; 0: nothing
}

func encode(base registry.Revision, changes []registry.Change) (*batch, error) {
	b := &batch{last: base, ops: make([]op, 0, 2*len(changes))}
	add := func(o op, err error) error {
		b.ops = append(b.ops, o)
		return err
	}
	for _, c := range changes {
		var to toStored
		b.last++
		if c.Revision != b.last {
			return nil, fmt.Errorf("commit on revision %d: a change has revision %d, not %d", base, c.Revision, b.last)
		}
		if err := add(to.putChange(c)); err != nil {
			return nil, fmt.Errorf("commit revision %d: %w", c.Revision, err)
		}
		for _, r := range c.Put {
			if err := add(to.putRecord(r)); err != nil {
				return nil, fmt.Errorf("commit revision %d: %w", c.Revision, err)
			}
		}
		for _, k := range c.Delete {
			if err := add(deleteRecord(k)); err != nil {
				return nil, fmt.Errorf("commit revision %d: %w", c.Revision, err)
			}
		}
		b.oldest = max(b.oldest, min(c.Compact, c.Revision+1))
	}
	return b, nil
}

// commit writes b in one transaction.
func (s *Store) commit(base registry.Revision, b *batch) error {
	var undo []op
	decided := false // by us: what fails after that is bbolt's
	err := s.update(func(tx *bolt.Tx) error {
		m, err := metaAt(tx, base)
		if err != nil {
			return err
		}
		if undo, err = b.write(tx, m); err != nil {
			return err
		}
		decided = true
		return nil
	})
	switch {
	case err == nil, s.broken != nil, errors.Is(err, registry.ErrConflict):
		return err
	case decided:
		return s.failed(base, undo, err)
	}
	return s.unavailable(err)
}

// metaAt is ErrConflict where the store is not at base.
func metaAt(tx *bolt.Tx, base registry.Revision) (*storepb.Meta, error) {
	m, err := readMeta(tx)
	if err != nil {
		return nil, err
	}
	if at := registry.Revision(m.GetRevision()); at != base {
		return nil, fmt.Errorf("%w: the store is at revision %d, not %d", registry.ErrConflict, at, base)
	}
	return m, nil
}

// write applies b and returns what takes it back.
func (b *batch) write(tx *bolt.Tx, m *storepb.Meta) (undo []op, err error) {
	// Only what earlier commits forgot, so that taking this one back need not bring anything back.
	if err := sweep(tx, registry.Revision(m.GetOldest())); err != nil {
		return nil, err
	}
	next := proto.CloneOf(m)
	next.Revision = int64(b.last)
	next.Oldest = max(next.Oldest, int64(b.oldest))
	undo = make([]op, 0, len(b.ops)+1)
	apply := func(o op) error {
		before := bytes.Clone(tx.Bucket(o.bucket).Get(o.key))
		undo = append(undo, op{o.bucket, o.key, before})
		if n, counted := next.Records[string(o.bucket)]; counted {
			switch {
			case before == nil && o.value != nil:
				n++
			case before != nil && o.value == nil:
				n--
			}
			next.Records[string(o.bucket)] = n
		}
		if err := o.apply(tx); err != nil {
			return fmt.Errorf("%s %q: %w", o.bucket, o.key, err)
		}
		return nil
	}
	tx.Bucket(bucketEvent).FillPercent = 0.9 // its keys only ever grow
	for _, o := range b.ops {
		if err := apply(o); err != nil {
			return nil, err
		}
	}
	last, err := put(bucketMeta, keyStore, next)
	if err != nil {
		return nil, err
	}
	if err := apply(last); err != nil {
		return nil, err
	}
	return undo, nil
}

// sweep removes forgotten changes.
func sweep(tx *bolt.Tx, oldest registry.Revision) error {
	b, end := tx.Bucket(bucketEvent), eventKey(oldest)
	var forgotten [][]byte // first collected: a cursor is lost when its bucket changes
	c := b.Cursor()
	for k, _ := c.First(); k != nil && bytes.Compare(k, end) < 0 && len(forgotten) < sweepAtMost; k, _ = c.Next() {
		forgotten = append(forgotten, k)
	}
	for _, k := range forgotten {
		if err := b.Delete(k); err != nil {
			return err
		}
	}
	return nil
}
