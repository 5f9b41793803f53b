package boltstore

import (
	"fmt"
	"slices"

	bolt "go.etcd.io/bbolt"

	"github.com/portd/portd/internal/registry"
)

// failed is what becomes of a commit past the journal that bbolt could not finish. Nearly always it failed before the meta page
// was written, for want of space, and is nowhere. Where the meta page was written and could not be synced, the commit can be
// read, by a later opener too, and may be on the disk or not. It was not answered as done, so it is taken back.
func (s *Store) failed(base registry.Revision, undo []op, cause error) error {
	var at registry.Revision
	err := s.peek(func(tx *bolt.Tx) error {
		m, err := readMeta(tx)
		at = registry.Revision(m.GetRevision())
		return err
	})
	switch {
	case err != nil: // bbolt could not map the file again after growing it, and says so each time
		return fmt.Errorf("%w; %w", s.unavailable(cause), err)
	case at == base:
		return s.unavailable(cause)
	}
	s.undo = undo
	if err := s.takeBack(); err != nil {
		return fmt.Errorf("%w; %w", s.unavailable(cause), err)
	}
	return s.unavailable(cause)
}

// takeBack undoes the failed commit, if there is one, for whoever has base and writer.
func (s *Store) takeBack() error {
	if err := s.whole(); err != nil || s.undo == nil {
		return err
	}
	// bbolt believes now that nobody needs the pages that the failed commit replaced. Readers may still be in them.
	s.readers.Lock()
	defer s.readers.Unlock()
	err := s.settle()
	if err == nil {
		err = s.update(func(tx *bolt.Tx) error {
			for _, o := range slices.Backward(s.undo) {
				if err := o.apply(tx); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err != nil {
		return s.unavailable(fmt.Errorf("the last change failed and is not taken back: %w", err))
	}
	s.undo = nil
	return nil
}

// takeBackNow is takeBack for whoever has neither.
func (s *Store) takeBackNow() error {
	s.base.Lock()
	defer s.base.Unlock()
	s.writer.Lock()
	defer s.writer.Unlock()
	return s.takeBack()
}

// settle makes sure that the state that can be read is on the disk. Without that, what is written next could go over
// pages of the state before it while the disk still leads to those: after a process that died, or a sync that failed,
// between writing the meta page and syncing it. A page whose sync failed counts as clean, so it is written once more.
func (s *Store) settle() error {
	page := make([]byte, s.db.Info().PageSize)
	var at int64
	if err := s.peek(func(tx *bolt.Tx) error {
		// Transactions write meta pages 0 and 1 in turn.
		at = int64(tx.ID()%2) * int64(len(page))
		return nil
	}); err != nil {
		return err
	}
	if _, err := s.file.ReadAt(page, at); err != nil {
		return err
	}
	if _, err := s.file.WriteAt(page, at); err != nil {
		return err
	}
	return datasync(s.file)
}
