package daemon

import (
	"context"
	"fmt"
	"io"
	"iter"
	"sync"

	"github.com/portd/portd/internal/registry"
	"github.com/portd/portd/internal/registry/boltstore"
)

// A store is a registry.Store that can be closed under its users, for another process to have the file, and opened again. While it is
// closed every call is ErrUnavailable.
type store struct {
	open func() (*boltstore.Store, error)

	mu   sync.RWMutex // held for reading by calls, but not while a caller looks at what they yield
	now  *boltstore.Store
	lost bool // it could not be opened again: each call tries to

	early *registry.State // what the next Load is to say, where nothing has changed it; nil: it has to look
}

var _ registry.Store = (*store)(nil)

var errStoreClosed = fmt.Errorf("%w: another portd is about to take over; ask again", registry.ErrUnavailable)

func openStore(open func() (*boltstore.Store, error)) (*store, error) {
	now, err := open()
	if err != nil {
		return nil, err
	}
	return &store{open: open, now: now}, nil
}

// use calls f with the store that is open.
func (s *store) use(f func(*boltstore.Store) error) error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.now == nil && s.lost {
		s.mu.RUnlock()
		err := s.reopen()
		s.mu.RLock()
		if err != nil {
			return fmt.Errorf("%w: the store cannot be opened again: %w", registry.ErrUnavailable, err)
		}
	}
	if s.now == nil {
		return errStoreClosed
	}
	return f(s.now)
}

// loadEarly has the next Load answer from what is there now. Where it cannot, that one says why.
func (s *store) loadEarly(ctx context.Context) {
	if st, err := s.Load(ctx); err == nil {
		s.early = st
	}
}

// Load loads as the store does. It is called by one at a time, before anybody commits.
func (s *store) Load(ctx context.Context) (st *registry.State, err error) {
	if st, s.early = s.early, nil; st != nil {
		return st, nil
	}
	err = s.use(func(b *boltstore.Store) error {
		st, err = b.Load(ctx)
		return err
	})
	return st, err
}

func (s *store) Requests(ctx context.Context) (all []*registry.Request, err error) {
	err = s.use(func(b *boltstore.Store) error {
		all, err = b.Requests(ctx)
		return err
	})
	return all, err
}

// Synced is boltstore's.
func (s *store) Synced() error {
	return s.use((*boltstore.Store).Synced)
}

func (s *store) Commit(ctx context.Context, base registry.Revision, changes []registry.Change) error {
	return s.use(func(b *boltstore.Store) error { return b.Commit(ctx, base, changes) })
}

// Backup writes a backup of what is in the store.
func (s *store) Backup(ctx context.Context, w io.Writer) (info boltstore.BackupInfo, err error) {
	err = s.use(func(b *boltstore.Store) error {
		info, err = b.Backup(ctx, w)
		return err
	})
	return info, err
}

// Settle brings the file to this portd's own schema for good, and says which that is.
func (s *store) Settle() (schema uint32, err error) {
	err = s.use(func(b *boltstore.Store) error {
		if err := b.Settle(); err != nil {
			return err
		}
		schema = b.Schema()
		return nil
	})
	return schema, err
}

// Events reads as the store does. It ends with ErrUnavailable when that is closed meanwhile.
func (s *store) Events(ctx context.Context, from registry.Revision) iter.Seq2[registry.Change, error] {
	return func(yield func(registry.Change, error) bool) {
		s.mu.RLock()
		defer s.mu.RUnlock()
		began := s.now
		if began == nil {
			s.show(yield, registry.Change{}, errStoreClosed)
			return
		}
		for ch, err := range began.Events(ctx, from) {
			if !s.show(yield, ch, err) {
				return
			}
			if s.now != began {
				s.show(yield, registry.Change{}, errStoreClosed)
				return
			}
		}
	}
}

// show calls yield without the lock.
func (s *store) show(yield func(registry.Change, error) bool, ch registry.Change, err error) bool {
	s.mu.RUnlock()
	defer s.mu.RLock()
	return yield(ch, err)
}

// Close closes the store, which reopen opens again. It may be called again.
func (s *store) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lost = false
	if s.now == nil {
		return nil
	}
	err := s.now.Close()
	s.now = nil
	return err
}

// reopen opens the store, unless it is open. Where it cannot, calls try that again.
func (s *store) reopen() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.now != nil {
		return nil
	}
	now, err := s.open()
	s.lost = err != nil
	if err == nil {
		s.now = now
	}
	return err
}
