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

	// readers is held for reading while a transaction reads. Whoever has writer takes it to wait until none does.
	readers sync.RWMutex

	writer sync.Mutex // held to write, and to begin to read
	undo   []op       // takes back the last commit, where it failed and may be on the disk all the same; else nil
	broken error      // bbolt cannot go on; only Close is left
}

var _ registry.Store = (*Store)(nil)

// Close waits for calls that are under way and closes the file. Nothing may be called after it.
func (s *Store) Close() error {
	s.writer.Lock()
	defer s.writer.Unlock()
	if s.broken != nil {
		return abandon(s.file)
	}
	return errors.Join(s.takeBack(), s.db.Close())
}

// view reads in a transaction of its own.
func (s *Store) view(read func(*bolt.Tx) error) error {
	tx, err := s.begin()
	if err != nil {
		return err
	}
	defer s.readers.RUnlock()
	defer tx.Rollback()
	if err := guard(func() error { return read(tx) }); err != nil {
		return fmt.Errorf("%s: %w", s.path, err)
	}
	return nil
}

// begin waits for a commit that is under way: bbolt shows it before it is on the disk, and it may still fail. Whoever
// rolls the transaction back unlocks readers after that.
func (s *Store) begin() (*bolt.Tx, error) {
	s.writer.Lock()
	defer s.writer.Unlock()
	if err := s.takeBack(); err != nil {
		return nil, err
	}
	var tx *bolt.Tx
	s.readers.RLock()
	err := guard(func() (err error) {
		tx, err = s.db.Begin(false)
		return err
	})
	switch {
	case err == nil:
		return tx, nil
	case errors.Is(err, ErrDamaged):
		err = s.breakOff(err)
	default:
		err = s.unavailable(err)
	}
	s.readers.RUnlock()
	return nil, err
}

// peek reads what bbolt shows now, for whoever has writer. Where it fails bbolt is beyond use.
func (s *Store) peek(read func(*bolt.Tx) error) error {
	if err := guard(func() error { return s.db.View(read) }); err != nil {
		return s.breakOff(err)
	}
	return nil
}

// update writes in a transaction of its own, for whoever has writer. Where it panics bbolt is beyond use: one of its locks
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
	s.broken = s.unavailable(fmt.Errorf("must be opened again: %w", err))
	return s.broken
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
