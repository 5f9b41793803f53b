// Package boltstore keeps what the registry decided in a bbolt file, and what it decided last in a journal beside it.
//
// The file is whole at every moment: bbolt writes changed pages beside the old ones, syncs them, and only then writes
// and syncs the one page that leads to them. A commit does not wait for that: it is durable when it is in the journal, from
// which many at a time go into the file. What bbolt leaves to its user, what to do when a sync fails and what a file is worth
// whose pages contradict each other, is dealt with here.
package boltstore

import (
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	bolt "go.etcd.io/bbolt"

	"github.com/portd/portd/internal/registry"
)

// What can be the matter with a file. It is then left as it is, always.
var (
	ErrInUse   = errors.New("in use")            // another process has it open
	ErrForeign = errors.New("not portd's state") // something else, or so damaged that it could be
	ErrDamaged = errors.New("damaged")           // portd made it, and a part of it cannot be right
)

// A Store is an open file. It is a registry.Store.
type Store struct {
	path   string
	schema uint32
	id     string
	opt    Options
	db     *bolt.DB
	file   *os.File // db's own; db closes it

	// readers is held for reading while a transaction reads. Who has base takes it to wait until none does.
	readers sync.RWMutex

	base      sync.Mutex // held to write with bbolt; taken before writer
	unsettled bool       // the state that bbolt shows may not be on the disk
	grown     int64      // what the file says of the journal's size

	writer      sync.Mutex // held to write to the journal, and to begin to read
	rev, oldest registry.Revision
	journal     *journal  // nil: there is none yet
	half        *journal  // there will be this one, as soon as the file on the disk knows it for certain
	without     time.Time // until when to do without
	cannot      bool      // make one, and that has been logged
	pending     []*batch  // in the journal, and not in the file for certain
	waiting     int64     // bytes of the journal that they take
	trusted     bool      // it has been read as a whole, or written to: otherwise it is left as it was found
	undo        []op      // takes back the last commit of bbolt, where it failed and may be on the disk all the same; else nil

	trial  atomic.Pointer[trial] // nil: the file is what this portd writes
	broken atomic.Pointer[error] // bbolt cannot go on; only Close is left

	syncing sync.Mutex // guards synced; taken before base
	synced  bool       // what was found is on the disk

	some, many chan struct{} // there is something pending; there is much
	stop       chan struct{} // closed once, by end
	end        sync.Once
	stopped    chan struct{}
}

var _ registry.Store = (*Store)(nil)

// Schema is the one that the file has, for who has opened it or has called Settle and does neither now.
func (s *Store) Schema() uint32 { return closed(s.schema) }

// Close waits for calls that are under way, puts into the file what is only in the journal, and closes it. Where that
// fails the journal stays, and who opens the file finds the rest in it. Nothing may be called after it, but Close.
func (s *Store) Close() (err error) {
	s.end.Do(func() { err = s.close() })
	return err
}

func (s *Store) close() error {
	close(s.stop)
	<-s.stopped
	unsynced := s.Synced()
	s.base.Lock()
	defer s.base.Unlock()
	s.writer.Lock()
	defer s.writer.Unlock()
	if s.journal == nil {
		s.journal, s.half = s.half, nil
	}
	if s.journal != nil {
		defer s.journal.file.Close() // what was written to it is synced, or was not answered
	}
	if s.whole() != nil {
		return abandon(s.file)
	}
	if unsynced != nil {
		return errors.Join(unsynced, s.db.Close())
	}
	if len(s.pending) > 0 && !s.trusted {
		return s.db.Close()
	}
	err := s.endJournal()
	if s.whole() != nil {
		return errors.Join(err, abandon(s.file))
	}
	return errors.Join(err, s.db.Close())
}

// lock locks writer once nothing is left of a commit that failed.
func (s *Store) lock() error {
	for {
		s.writer.Lock()
		if s.undo == nil {
			err := s.whole()
			if err == nil {
				err = s.erase()
			}
			if err != nil {
				s.writer.Unlock()
			}
			return err
		}
		s.writer.Unlock()
		if err := s.takeBackNow(); err != nil {
			return err
		}
	}
}

// whole says whether bbolt can go on.
func (s *Store) whole() error {
	if err := s.broken.Load(); err != nil {
		return *err
	}
	return nil
}

// erase removes from the journal a record that failed, for whoever has writer.
func (s *Store) erase() error {
	if s.journal == nil {
		return nil
	}
	if err := s.journal.erase(); err != nil {
		return s.unavailable(fmt.Errorf("the last change failed and is not taken back: %w", err))
	}
	return nil
}

// A view is what can be read at a moment: what bbolt shows, and what goes beyond that.
type view struct {
	tx          *bolt.Tx
	pending     []*batch // some of it may be in tx too
	rev, oldest registry.Revision
}

// view reads in a transaction of its own.
func (s *Store) view(read func(view) error) error {
	v, err := s.begin()
	if err != nil {
		return err
	}
	defer s.readers.RUnlock()
	defer v.tx.Rollback()
	if err := guard(func() error { return read(v) }); err != nil {
		return fmt.Errorf("%s: %w", s.path, err)
	}
	return nil
}

// begin waits for a commit that is under way. Whoever rolls the transaction back unlocks readers after that.
func (s *Store) begin() (v view, err error) {
	if err := s.lock(); err != nil {
		return v, err
	}
	defer s.writer.Unlock()
	v = view{pending: s.pending, rev: s.rev, oldest: s.oldest}
	s.readers.RLock()
	err = guard(func() (err error) {
		v.tx, err = s.db.Begin(false)
		return err
	})
	switch {
	case err == nil:
		return v, nil
	case errors.Is(err, ErrDamaged):
		err = s.breakOff(err)
	default:
		err = s.unavailable(err)
	}
	s.readers.RUnlock()
	return v, err
}

// peek reads what bbolt shows now, for whoever has base. Where it fails bbolt is beyond use.
func (s *Store) peek(read func(*bolt.Tx) error) error {
	if err := guard(func() error { return s.db.View(read) }); err != nil {
		return s.breakOff(err)
	}
	return nil
}

// update writes in a transaction of its own, for whoever has base. Where it panics bbolt is beyond use: one of its locks
// may be locked for good.
func (s *Store) update(write func(*bolt.Tx) error) error {
	returned := false
	err := guard(func() error {
		err := s.db.Update(write)
		returned = true
		return err
	})
	if !returned {
		return s.breakOff(err)
	}
	return err
}

// breakOff ends all use of the Store but Close.
func (s *Store) breakOff(err error) error {
	err = s.unavailable(fmt.Errorf("must be opened again: %w", err))
	s.broken.CompareAndSwap(nil, &err)
	return s.whole()
}

func (s *Store) unavailable(err error) error {
	return fmt.Errorf("%w: %s: %w", registry.ErrUnavailable, s.path, err)
}

// guard makes an error of a panic. bbolt panics where pages contradict each other, and it reads them through a mapping:
// a page that the disk does not give is a fault.
func guard(do func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%w: %v", ErrDamaged, p)
		}
	}()
	return do()
}
