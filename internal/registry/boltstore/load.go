package boltstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	bolt "go.etcd.io/bbolt"

	"github.com/portd/portd/internal/registry"
	"github.com/portd/portd/internal/registry/boltstore/storepb"
)

// Load implements registry.Store. One record that cannot be read is an ErrDamaged for all, editions aside.
func (s *Store) Load(ctx context.Context) (*registry.State, error) {
	st := &registry.State{}
	err := s.whatIs(func(tx *bolt.Tx, schema uint32) error {
		st.Schema = closed(schema)
		return loadState(ctx, tx, st)
	})
	if err != nil {
		return nil, err
	}
	return st, nil
}

// Requests implements registry.Store, with errors like Load's.
func (s *Store) Requests(ctx context.Context) (all []*registry.Request, err error) {
	err = s.whatIs(func(tx *bolt.Tx, _ uint32) error {
		m, err := readMeta(tx)
		if err != nil {
			return err
		}
		all, err = load(ctx, tx, m, bucketRequest, (*fromStored).request)
		return err
	})
	if err != nil {
		return nil, err
	}
	s.writer.Lock()
	defer s.writer.Unlock()
	s.trusted = true // there is nothing else to be read that a change would be based on
	if len(s.pending) > 0 {
		say(s.many) // the next start would have to go through it too
	}
	return all, nil
}

// whatIs reads as if all that is pending were in the file.
func (s *Store) whatIs(read func(tx *bolt.Tx, schema uint32) error) error {
	if err := s.lock(); err != nil {
		return err
	}
	pending, schema := len(s.pending), s.schema
	s.writer.Unlock()
	if pending == 0 {
		return s.view(func(v view) error { return read(v.tx, schema) })
	}
	return s.ahead(func(tx *bolt.Tx) error { return read(tx, schema) })
}

// errNotMeant ends a transaction that nothing is to come of.
var errNotMeant = errors.New("it was never meant to be written")

// ahead reads as if all that is pending were in the file: in a transaction that writes that, and is then given up before it gets to the
// disk. So it can be done also while the disk is full, and before it is certain that the file is to be used.
func (s *Store) ahead(read func(*bolt.Tx) error) error {
	s.base.Lock()
	defer s.base.Unlock()
	s.writer.Lock()
	err := s.takeBack()
	pending := s.pending
	s.writer.Unlock()
	if err != nil {
		return err
	}
	err = s.update(func(tx *bolt.Tx) error {
		m, err := readMeta(tx)
		if err != nil {
			return err
		}
		for len(pending) > 0 && pending[0].last <= registry.Revision(m.GetRevision()) {
			pending = pending[1:]
		}
		if err := apply(tx, pending, nil, nil); err != nil {
			return err
		}
		if err := read(tx); err != nil {
			return err
		}
		return errNotMeant
	})
	if errors.Is(err, errNotMeant) {
		return nil
	}
	return fmt.Errorf("%s: %w", s.path, err)
}

// loadState reads everything but the schema and the requests.
func loadState(ctx context.Context, tx *bolt.Tx, st *registry.State) error {
	m, err := readMeta(tx)
	if err != nil {
		return err
	}
	st.StoreID = m.GetStoreId()
	st.Revision = registry.Revision(m.GetRevision())
	st.Oldest = registry.Revision(m.GetOldest())
	if err := checkEvents(tx, m); err != nil {
		return err
	}
	if st.Reservations, err = load(ctx, tx, m, bucketReservation, (*fromStored).reservation); err != nil {
		return err
	}
	if st.Leases, err = load(ctx, tx, m, bucketLease, (*fromStored).lease); err != nil {
		return err
	}
	if st.Editions, st.Damaged, err = loadEditions(tx, m); err != nil {
		return err
	}
	if st.Services, err = load(ctx, tx, m, bucketService, (*fromStored).service); err != nil {
		return err
	}
	if st.Formers, err = load(ctx, tx, m, bucketFormer, (*fromStored).former); err != nil {
		return err
	}
	if st.Namespaces, err = load(ctx, tx, m, bucketNamespace, (*fromStored).namespace); err != nil {
		return err
	}
	boots, err := load(ctx, tx, m, bucketBoot, (*fromStored).boot)
	if len(boots) > 0 {
		st.Boot = boots[0]
	}
	return err
}

// load reads all records of a bucket, and makes sure that they are all.
func load[T, M any, P message[M]](
	ctx context.Context, tx *bolt.Tx, m *storepb.Meta, bucket []byte, convert func(*fromStored, P) T,
) ([]T, error) {
	if tx.Bucket(bucket) == nil { // on trial: look has seen that the schema has none
		return nil, nil
	}
	var all []T
	err := tx.Bucket(bucket).ForEach(func(k, v []byte) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		r, err := decode(k, v, convert)
		if err != nil {
			return fmt.Errorf("%s %q: %w", bucket, k, err)
		}
		all = append(all, r)
		return nil
	})
	if want := m.GetRecords()[string(bucket)]; err == nil && int64(len(all)) != want {
		return nil, fmt.Errorf("%w: of %d records of kind %s there are %d", ErrDamaged, want, bucket, len(all))
	}
	return all, err
}

// loadEditions is load for editions, of which one that is damaged is left out: there are others to answer from.
func loadEditions(tx *bolt.Tx, m *storepb.Meta) (all []*registry.Edition, damaged []error, err error) {
	if tx.Bucket(bucketEdition) == nil {
		return nil, nil, nil
	}
	err = tx.Bucket(bucketEdition).ForEach(func(k, v []byte) error {
		switch e, err := decode(k, v, (*fromStored).edition); {
		case errors.Is(err, ErrDamaged):
			damaged = append(damaged, fmt.Errorf("%s %q: %w", bucketEdition, k, err))
		case err != nil:
			return err
		default:
			all = append(all, e)
		}
		return nil
	})
	if n, want := len(all)+len(damaged), m.GetRecords()[string(bucketEdition)]; err == nil && int64(n) != want {
		damaged = append(damaged, fmt.Errorf("%w: of %d records of kind %s there are %d", ErrDamaged, want, bucketEdition, n))
	}
	return all, damaged, err
}

// checkEvents makes sure that the changes from the oldest to the last have not lost an end.
func checkEvents(tx *bolt.Tx, m *storepb.Meta) error {
	oldest, last := registry.Revision(m.GetOldest()), registry.Revision(m.GetRevision())
	if oldest > last {
		return nil
	}
	// Not by Last, which goes round for ever where a transaction has emptied all of several pages.
	c := tx.Bucket(bucketEvent).Cursor()
	if k, _ := c.Seek(eventKey(last)); !bytes.Equal(k, eventKey(last)) {
		return fmt.Errorf("%w: revision %d, the last change, is missing", ErrDamaged, last)
	}
	if k, _ := c.Next(); k != nil {
		return fmt.Errorf("%w: a change is at %x, and the last one at revision %d", ErrDamaged, k, last)
	}
	if k, _ := c.Seek(eventKey(oldest)); !bytes.Equal(k, eventKey(oldest)) {
		return fmt.Errorf("%w: the oldest change is at %x, not at revision %d", ErrDamaged, k, oldest)
	}
	return nil
}
