package boltstore

import (
	"errors"
	"time"

	bolt "go.etcd.io/bbolt"

	"github.com/portd/portd/internal/registry"
	"github.com/portd/portd/internal/registry/boltstore/storepb"
)

// keepUp puts into the file what is in the journal, when it is much or has been there for a while, until stop is closed. Where
// that fails, the journal keeps it: it is tried again, and who finds no room in the journal meanwhile is told.
func (s *Store) keepUp() {
	if s.opt.Delay < 0 {
		<-s.stop
		return
	}
	for {
		select {
		case <-s.some:
		case <-s.stop:
			return
		}
		late := time.NewTimer(s.opt.Delay)
		select {
		case <-s.many:
		case <-late.C:
		case <-s.stop:
			return
		}
		late.Stop()
		s.writer.Lock()
		trusted := s.trusted
		s.writer.Unlock()
		if !trusted || s.Synced() != nil || s.checkpoint() != nil {
			select {
			case <-time.After(s.opt.Delay):
			case <-s.stop:
				return
			}
		}
		s.writer.Lock()
		if len(s.pending) > 0 {
			say(s.some)
		}
		s.writer.Unlock()
	}
}

// checkpoint puts into the file what is in the journal now. Who commits does not wait for it.
func (s *Store) checkpoint() error {
	s.base.Lock()
	defer s.base.Unlock()
	s.writer.Lock()
	err := s.takeBack()
	pending := s.pending
	s.writer.Unlock()
	if err != nil {
		return err
	}
	if err := s.merge(pending); err != nil {
		return err
	}
	s.writer.Lock()
	defer s.writer.Unlock()
	s.merged(pending)
	return nil
}

// makeRoom waits until there is room for b.
func (s *Store) makeRoom(b *batch) error {
	s.base.Lock() // as long as a checkpoint is under way
	s.writer.Lock()
	there := len(s.pending) == 0 || s.journal.room(s.pending[0].at, b.size()) != 0
	s.writer.Unlock()
	s.base.Unlock()
	if there {
		return nil
	}
	return s.checkpoint()
}

// merge writes into the file what is pending, or a first part of it, for whoever has base. Then it is on the disk there.
func (s *Store) merge(pending []*batch) error {
	if len(pending) == 0 {
		return s.whole()
	}
	if err := s.settled(); err != nil {
		return err
	}
	var at registry.Revision
	var size int64 // more than the journal's, where a merge failed after it grew
	if err := s.peek(func(tx *bolt.Tx) error {
		m, err := readMeta(tx)
		at, size = registry.Revision(m.GetRevision()), m.GetJournalSize()
		return err
	}); err != nil {
		return err
	}
	for len(pending) > 0 && pending[0].last <= at { // a merge that failed at its end has brought it there
		pending = pending[1:]
	}
	size = s.grow(size, 4*waiting(pending))
	_, err := s.transact(pending, sized(size))
	if err == nil {
		s.grown = size
	}
	return err
}

// grow makes room for so many bytes in a journal of which the file says that its size is from, if it may have them, and returns what
// its size is once the file says so.
func (s *Store) grow(from, want int64) int64 {
	if s.journal == nil {
		return 0
	}
	to := from
	free, known := freeOn(s.file)
	for to < want && 2*to <= s.opt.Journal && (!known || 2*to-from <= free/4) { // the rest is the file's, and others'
		to *= 2
	}
	if from == to || s.journal.grow(from, to) != nil {
		return from // which will do
	}
	return to
}

func sized(size int64) func(*bolt.Tx, *storepb.Meta) error {
	return func(_ *bolt.Tx, m *storepb.Meta) error {
		m.JournalSize = size
		return nil
	}
}

func waiting(pending []*batch) (bytes int64) {
	for _, b := range pending {
		bytes += b.size()
	}
	return bytes
}

// merged is called with what has been merged, by whoever has base and writer.
func (s *Store) merged(pending []*batch) {
	if len(pending) == 0 {
		return
	}
	s.pending = s.pending[len(pending):]
	if len(s.pending) == 0 {
		s.pending = nil // and with it all that was before
	}
	s.waiting -= waiting(pending)
	s.journal.size = s.grown
}

// transact writes pending, and what edit changes, in one transaction of bbolt, for whoever has base. When it returns without an
// error that is on the disk. Where it failed it may be there too, or only may be.
func (s *Store) transact(pending []*batch, edit func(*bolt.Tx, *storepb.Meta) error) (maybe bool, err error) {
	if err := s.settled(); err != nil {
		return false, err
	}
	id := 0
	err = s.update(func(tx *bolt.Tx) error {
		id = tx.ID()
		return apply(tx, pending, edit, nil)
	})
	if err == nil || s.whole() != nil {
		return true, err
	}
	shown := false
	if err := s.peek(func(tx *bolt.Tx) error {
		shown = tx.ID() == id
		return nil
	}); err != nil {
		return true, err
	}
	if shown {
		s.unsettled = true
		if s.settled() == nil {
			return true, nil
		}
	}
	return shown, s.unavailable(err)
}

// settled makes sure that what bbolt shows is on the disk, for whoever has base.
func (s *Store) settled() error {
	if err := s.whole(); err != nil || !s.unsettled {
		return err
	}
	// bbolt believes now that nobody needs the pages that were replaced. Readers may still be in them.
	s.readers.Lock()
	defer s.readers.Unlock()
	if err := s.settle(); err != nil {
		return s.unavailable(err)
	}
	s.unsettled = false
	return nil
}

// startJournal makes a journal where there is none. Where that cannot be, commits do without for a while.
func (s *Store) startJournal() error {
	s.base.Lock()
	defer s.base.Unlock()
	s.writer.Lock()
	defer s.writer.Unlock()
	if s.journal != nil {
		return nil
	}
	if err := s.takeBack(); err != nil {
		return err
	}
	if err := s.settled(); err != nil {
		return err
	}
	if s.half == nil {
		j, err := createJournal(journalPath(s.path), s.id)
		if err != nil {
			s.doWithout(err)
			return nil
		}
		maybe, err := s.transact(nil, func(tx *bolt.Tx, m *storepb.Meta) error {
			m.Journal, m.JournalSize = j.id[:], j.size
			return putSchema(tx, s.schema)
		})
		if err != nil {
			if maybe { // the file that may be on the disk wants this journal and no other
				s.half = j
				return err
			}
			// It may have taken the room that the transaction needed. One that stays has nothing, and the next one replaces it.
			s.doWithout(err)
			return errors.Join(j.file.Close(), removeIfThere(j.path))
		}
		s.half = j
	}
	s.journal, s.half = s.half, nil
	if s.cannot {
		s.cannot = false
		s.opt.Log.Info("there is a journal again", "file", s.journal.path)
	}
	return nil
}

// doWithout puts off the next try to make a journal. It is said once.
func (s *Store) doWithout(why error) {
	s.without = time.Now().Add(time.Minute)
	if s.cannot {
		return
	}
	s.cannot = true
	s.opt.Log.Warn("the journal cannot be made: until it can, each change goes into the state's file at once, which takes longer",
		"file", journalPath(s.path), "err", why)
}

// endJournal leaves a file that needs no journal, for whoever has base and writer.
func (s *Store) endJournal() error {
	err := s.takeBack()
	if err == nil {
		err = s.settled()
	}
	if err != nil || s.journal == nil {
		return err
	}
	if err := s.erase(); err != nil {
		return err
	}
	if err := s.merge(s.pending); err != nil {
		return err
	}
	s.merged(s.pending)
	if _, err := s.transact(nil, func(tx *bolt.Tx, m *storepb.Meta) error {
		m.Journal, m.JournalSize = nil, 0
		return putSchema(tx, closed(s.schema))
	}); err != nil {
		return err
	}
	return removeIfThere(s.journal.path)
}
