package boltstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	bolt "go.etcd.io/bbolt"

	"github.com/portd/portd/internal/registry"
	"github.com/portd/portd/internal/registry/boltstore/storepb"
)

// sweepAtLeast is how many forgotten changes one transaction removes, if there are: that many fit in some tens of pages. Where it
// adds many it removes twice as many, so that the file does not grow as long as there is much to do.
const sweepAtLeast = 1000

// Commit implements registry.Store. It returns when the changes are on the disk. After an error none of them is in the
// store; where the disk does not allow that to be made sure, all calls are ErrUnavailable until one of them finds that it
// does. ctx counts until the writing begins.
func (s *Store) Commit(ctx context.Context, base registry.Revision, changes []registry.Change) error {
	b, err := encode(base, changes)
	if err != nil {
		return err
	}
	if err := s.Synced(); err != nil {
		return err
	}
	if t := s.trial.Load(); t != nil {
		return t.commit(ctx, s, b)
	}
	return s.commit(ctx, b)
}

func (s *Store) commit(ctx context.Context, b *batch) error {
	for {
		if err := s.lock(); err != nil {
			return err
		}
		err := s.write(ctx, b)
		s.writer.Unlock()
		switch {
		case errors.Is(err, errNoRoom):
			err = s.makeRoom(b)
		case errors.Is(err, errNoJournal):
			err = s.startJournal()
		case errors.Is(err, errTooLarge):
			return s.commitLarge(ctx, b)
		default:
			return err
		}
		if err != nil {
			return err
		}
	}
}

// What has to be done before a batch can be written.
var (
	errNoRoom    = errors.New("no room in the journal")
	errNoJournal = errors.New("no journal yet")
	errTooLarge  = errors.New("too large for the journal")
)

// write makes b durable in the journal, for whoever has writer.
func (s *Store) write(ctx context.Context, b *batch) error {
	switch {
	case s.rev != b.base:
		return s.conflict(b)
	case b.last == b.base:
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	case s.journal == nil && time.Now().Before(s.without):
		return errTooLarge
	case s.journal == nil:
		return errNoJournal
	case b.size() > s.journal.size/2:
		return errTooLarge
	}
	s.trusted = true
	tail := int64(0)
	if len(s.pending) > 0 {
		tail = s.pending[0].at
	}
	if b.at = s.journal.room(tail, b.size()); b.at == 0 {
		return errNoRoom
	}
	record := b.record()
	defer freeRecord(record)
	s.journal.seal(*record, b)
	if err := s.journal.write(*record, b.at); err != nil {
		return s.unavailable(err)
	}
	s.add(b)
	return nil
}

// add counts b as a part of the store, for whoever has writer.
func (s *Store) add(b *batch) {
	s.pending = append(s.pending, b)
	s.rev, s.oldest = b.last, max(s.oldest, b.oldest)
	s.waiting += b.size()
	if len(s.pending) == 1 {
		say(s.some)
	}
	if s.trusted && s.waiting >= s.journal.size/4 { // what was left is merged once all of it has been read
		say(s.many)
	}
}

func say(to chan struct{}) {
	select {
	case to <- struct{}{}:
	default: // it is said already
	}
}

// A batch is changes as they are written.
type batch struct {
	ops        []op
	base, last registry.Revision
	oldest     registry.Revision // forget what is before; 0: nothing

	length int   // of the ops in a journal
	at     int64 // in the journal
}

// size is what b takes of a journal.
func (b *batch) size() int64 { return blocks(int64(recordBytes + b.length)) }

// blocks is how many bytes of a journal so many take up.
func blocks(n int64) int64 { return (n + block - 1) / block * block }

var recordBuffers = sync.Pool{New: func() any { return new([]byte) }}

// record is b as a journal has it, but for the header. freeRecord takes it back.
func (b *batch) record() *[]byte {
	p := recordBuffers.Get().(*[]byte)
	r := append(slices.Grow((*p)[:0], int(b.size())), noRecord[:recordBytes]...)
	for _, o := range b.ops {
		r = appendOp(r, o)
	}
	*p = append(r, noRecord[:b.size()-int64(len(r))]...)
	return p
}

func freeRecord(p *[]byte) {
	if cap(*p) <= 1<<20 {
		recordBuffers.Put(p)
	}
}

func encode(base registry.Revision, changes []registry.Change) (*batch, error) {
	b := &batch{base: base, last: base, ops: make([]op, 0, 2*len(changes))}
	add := func(o op, err error) error {
		b.ops = append(b.ops, o)
		b.length += o.size()
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

// commitLarge writes what the journal has no room for: all that is pending, and then b in a transaction of its own.
func (s *Store) commitLarge(ctx context.Context, b *batch) error {
	if err := s.checkpoint(); err != nil { // during which nobody else has to wait
		return err
	}
	s.base.Lock()
	defer s.base.Unlock()
	s.writer.Lock()
	defer s.writer.Unlock()
	err := errors.Join(s.takeBack(), s.erase())
	if err == nil {
		err = s.merge(s.pending)
	}
	if err == nil {
		s.merged(s.pending)
		err = s.settled()
	}
	switch {
	case err != nil:
		return err
	case s.rev != b.base:
		return s.conflict(b)
	case ctx.Err() != nil:
		return ctx.Err()
	}
	size := int64(0)
	if s.journal != nil {
		size = s.grow(s.journal.size, 2*b.size()) // the next one of its kind will find room there
	}
	var undo []op
	decided := false // by us: what fails after that is bbolt's
	err = s.update(func(tx *bolt.Tx) error {
		if err := apply(tx, []*batch{b}, sized(size), &undo); err != nil {
			return err
		}
		decided = true
		return nil
	})
	switch {
	case err == nil:
		s.rev, s.oldest = b.last, max(s.oldest, b.oldest)
		if s.journal != nil {
			s.journal.size = size
		}
		return nil
	case s.whole() != nil:
		return err
	case decided:
		return s.failed(b.base, undo, err)
	}
	return s.unavailable(err)
}

func (s *Store) conflict(b *batch) error {
	return fmt.Errorf("%w: the store is at revision %d, not %d", registry.ErrConflict, s.rev, b.base)
}

// apply writes batches, and what edit changes of the store's own record. Where undo is not nil it gets what takes that back.
func apply(tx *bolt.Tx, batches []*batch, edit func(*bolt.Tx, *storepb.Meta) error, undo *[]op) error {
	m, err := readMeta(tx)
	if err != nil {
		return err
	}
	// Only what earlier transactions forgot, so that taking this one back need not bring anything back.
	atMost := sweepAtLeast
	if n := len(batches); n > 0 {
		atMost = max(atMost, 2*int(batches[n-1].last-batches[0].base))
	}
	if err := sweep(tx, registry.Revision(m.GetOldest()), atMost); err != nil {
		return err
	}
	if edit != nil {
		if err := edit(tx, m); err != nil {
			return err
		}
	}
	tx.Bucket(bucketEvent).FillPercent = 0.9 // its keys only ever grow
	for _, b := range batches {
		if at := registry.Revision(m.GetRevision()); at != b.base {
			return fmt.Errorf("%w: it is at revision %d, not %d", ErrDamaged, at, b.base)
		}
		for _, o := range b.ops {
			if err := o.count(tx, m, undo); err != nil {
				return err
			}
		}
		m.Revision = int64(b.last)
		m.Oldest = max(m.Oldest, int64(b.oldest))
	}
	last, err := put(bucketMeta, keyStore, m)
	if err != nil {
		return err
	}
	return last.count(tx, m, undo)
}

// count applies o and counts the records that there are then.
func (o op) count(tx *bolt.Tx, m *storepb.Meta, undo *[]op) error {
	bucket := tx.Bucket(o.bucket)
	if bucket == nil {
		return fmt.Errorf("%w: it has no bucket %q", ErrDamaged, o.bucket)
	}
	n, counted := m.Records[string(o.bucket)]
	if counted || undo != nil {
		before := bucket.Get(o.key)
		switch {
		case before == nil && o.value != nil:
			n++
		case before != nil && o.value == nil:
			n--
		}
		if undo != nil {
			*undo = append(*undo, op{o.bucket, o.key, bytes.Clone(before)})
		}
	}
	if counted {
		m.Records[string(o.bucket)] = n
	}
	if err := o.apply(tx); err != nil {
		return fmt.Errorf("%s %q: %w", o.bucket, o.key, err)
	}
	return nil
}

// sweep removes forgotten changes, the oldest first.
func sweep(tx *bolt.Tx, oldest registry.Revision, atMost int) error {
	b, end := tx.Bucket(bucketEvent), eventKey(oldest)
	var forgotten [][]byte // first collected: a cursor is lost when its bucket changes
	c := b.Cursor()
	for k, _ := c.First(); k != nil && bytes.Compare(k, end) < 0 && len(forgotten) < atMost; k, _ = c.Next() {
		forgotten = append(forgotten, k)
	}
	for _, k := range forgotten {
		if err := b.Delete(k); err != nil {
			return err
		}
	}
	return nil
}
