// Package boltstore keeps what the registry decided in a bbolt file.
//
// The file is whole at every moment: bbolt writes changed pages beside the old ones, syncs them, and only then writes
// and syncs the one page that leads to them. What it leaves to its user, what to do when that last sync fails and what
// a file is worth whose pages contradict each other, is dealt with here.
package boltstore

import (
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"sync"

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
	db     *bolt.DB
	file   *os.File // db's own; db closes it

	// commits is held by whoever writes, so that two do not both believe to be next after a failure.
	commits sync.Mutex
	// mu is held for reading by whoever reads, and for writing only to take a failed commit back: bbolt believes then that
	// nobody needs the pages that such a commit replaced, while readers may still be in them.
	mu     sync.RWMutex
	undo   []op  // takes back the last commit, where it failed and may be on disk all the same; else nil
	broken error // bbolt cannot go on; only Close is left
}

var _ registry.Store = (*Store)(nil)

// Close waits for calls that are under way and closes the file. Nothing may be called after it.
func (s *Store) Close() error {
	s.commits.Lock()
	defer s.commits.Unlock()
	undone := s.takeBack()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.broken != nil {
		// A panic may have left bbolt's lock locked; closing the file is what lets others open it.
		return s.file.Close()
	}
	return errors.Join(undone, s.db.Close())
}

// view reads in a transaction of its own.
func (s *Store) view(read func(*bolt.Tx) error) error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	switch {
	case s.broken != nil:
		return s.broken
	case s.undo != nil:
		return fmt.Errorf("%w: %s: the last change failed and cannot be taken back yet", registry.ErrUnavailable, s.path)
	}
	return s.named(guard(func() error { return s.db.View(read) }))
}

// update writes in a transaction of its own. Where it panics bbolt is beyond use, and the Store is broken.
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
	s.mu.Lock()
	defer s.mu.Unlock()
	s.broken = fmt.Errorf("%w: %s must be opened again: %w", registry.ErrUnavailable, s.path, err)
	return s.broken
}

// named says which file err is about.
func (s *Store) named(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", s.path, err)
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
