package boltstore

import (
	"cmp"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/registry"
	"github.com/portd/portd/internal/registry/boltstore/storepb"
)

// Options of Open. The zero Options are good.
type Options struct {
	// Timeout is how long to wait for another process to close the file; 0 means a second.
	Timeout time.Duration
	// Journal is how large the journal beside the file may become, in bytes; 0 means 8 MiB.
	Journal int64
	// Delay is how long changes may be in the journal alone; 0 means a second, and less until the journal is full.
	Delay time.Duration
	// Copies is how often the store is copied, where it has changed; 0: never.
	Copies time.Duration
	// Trial leaves a file of an older schema such that the portd that wrote it reads it, until Settle.
	Trial bool
	// Log is told of what nobody has asked for; nil: silent.
	Log *slog.Logger
}

// Open opens the file at path, and makes it, readable by nobody else, where there is none; its directory must exist. A
// file that is in use, is not portd's, is damaged where Open looks, or is of a newer portd is left as it is, with
// ErrInUse, ErrForeign, ErrDamaged or a *SchemaError. The caller closes the Store.
func Open(path string, opt Options) (*Store, error) {
	return open(path, opt, migrations)
}

func open(path string, opt Options, steps []migration) (*Store, error) {
	opt.Timeout = cmp.Or(opt.Timeout, time.Second)
	opt.Journal = max(cmp.Or(opt.Journal, defaultSize), firstSize)
	opt.Delay = cmp.Or(opt.Delay, time.Second)
	if opt.Log == nil {
		opt.Log = slog.New(slog.DiscardHandler)
	}
	switch err := adopt(path); {
	case errors.Is(err, fs.ErrPermission): // to be in the directory at all
		return nil, err
	case err != nil:
		return nil, fmt.Errorf("take what was restored: %w", err)
	}
	switch info, err := os.Stat(path); {
	case errors.Is(err, fs.ErrNotExist):
		if err := create(path, closed(newest(steps))); err != nil {
			return nil, fmt.Errorf("make %s: %w", path, err)
		}
	case err != nil:
		return nil, err
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("%w: %s is not a regular file", ErrForeign, path)
	case info.Size() == 0:
		// bbolt would take it for a new file. portd never leaves one behind, so it may be what is left of something.
		return nil, fmt.Errorf("%w: %s is empty; remove it to start without state", ErrForeign, path)
	}

	// Looked at first without the right to write: bbolt writes already when it opens a file that other programs keep in
	// another way.
	if err := inspect(path, opt, newest(steps)); err != nil {
		return nil, err
	}
	s := &Store{
		path: path, schema: newest(steps), opt: opt,
		some: make(chan struct{}, 1), many: make(chan struct{}, 1), stop: make(chan struct{}), stopped: make(chan struct{}),
	}
	var err error
	if s.db, s.file, err = openBolt(path, opt, false); err != nil {
		return nil, err
	}
	if err := s.start(steps); err != nil {
		if s.journal != nil {
			s.journal.file.Close()
		}
		if s.whole() != nil {
			return nil, errors.Join(err, abandon(s.file))
		}
		return nil, errors.Join(err, s.db.Close())
	}
	if err := tidy(path); err != nil {
		opt.Log.Warn("what a portd that died has left cannot be removed", "file", path, "err", err)
	}
	go func() {
		defer close(s.stopped)
		var keepers sync.WaitGroup
		keepers.Go(s.keepUp)
		keepers.Go(s.keepCopies)
		keepers.Wait()
	}()
	return s, nil
}

// start makes a Store of an open file. It changes nothing where it refuses the file or its journal.
func (s *Store) start(steps []migration) error {
	var have uint32
	var m *storepb.Meta
	err := s.peek(func(tx *bolt.Tx) (err error) {
		have, m, err = look(tx, s.file, s.schema)
		return err
	})
	if err != nil {
		return err
	}
	s.id, s.rev, s.oldest = m.GetStoreId(), registry.Revision(m.GetRevision()), registry.Revision(m.GetOldest())
	if id := m.GetJournal(); len(id) == len(journalID{}) {
		var found []*batch
		s.grown = m.GetJournalSize()
		s.journal, found, err = openJournal(journalPath(s.path), s.id, journalID(id), s.grown, s.rev, os.O_RDWR)
		if err != nil {
			return err
		}
		for _, b := range found {
			s.add(b)
		}
	} else if err := checkLeftover(journalPath(s.path), s.id, s.rev); err != nil {
		return err
	}
	switch {
	case have >= closed(s.schema):
		return nil
	case s.opt.Trial:
		s.schema = have
		s.trial.Store(&trial{steps: steps, have: have})
		if s.journal == nil { // a portd that reads this schema may know no journals
			s.without = time.Now().AddDate(100, 0, 0)
		}
		return nil
	}
	if err := s.Synced(); err != nil {
		return err
	}
	return s.migrate(have, steps, nil)
}

// Synced makes sure that all that Load says is on the disk, of which a portd that died may have left some in memory; see settle. Open does
// not wait for that, for it takes as long as all the rest of it, and to read and to serve ports nobody need. What somebody is told before it
// could be gone after a power cut. Commit waits for it, and is ErrUnavailable like this where it fails; the next call tries again.
func (s *Store) Synced() error {
	s.syncing.Lock()
	defer s.syncing.Unlock()
	if s.synced {
		return nil
	}
	if err := s.settle(); err != nil {
		return s.unavailable(fmt.Errorf("sync: %w", err))
	}
	if s.journal != nil {
		if err := s.journal.settle(); err != nil {
			return s.unavailable(fmt.Errorf("sync the journal: %w", err))
		}
	}
	s.synced = true
	return nil
}

// openBolt returns also the descriptor that the DB has and closes. Where it fails, nothing is left open.
func openBolt(path string, opt Options, readOnly bool) (*bolt.DB, *os.File, error) {
	var db *bolt.DB
	var file *os.File
	err := guard(func() (err error) {
		db, err = bolt.Open(path, 0, &bolt.Options{
			Timeout:  opt.Timeout,
			ReadOnly: readOnly,
			// Fast when many pages are free. The list of them is in the file (NoFreelistSync would collect it when opening,
			// with a goroutine of bbolt's in which a damaged page is the end of the process).
			FreelistType: bolt.FreelistMapType,
			NoStatistics: true,
			// O_CREATE is taken away: a file that vanished meanwhile is an error and not a new, empty one.
			OpenFile: func(name string, flag int, mode os.FileMode) (f *os.File, err error) {
				file, err = os.OpenFile(name, flag&^os.O_CREATE, mode)
				return file, err
			},
		})
		return err
	})
	switch {
	case err == nil:
		return db, file, nil
	case errors.Is(err, ErrDamaged): // it panicked
		return nil, nil, errors.Join(fmt.Errorf("%s: %w", path, err), abandon(file))
	case errors.Is(err, bolterrors.ErrTimeout):
		return nil, nil, fmt.Errorf("%w: another portd has %s open", ErrInUse, path)
	case errors.Is(err, bolterrors.ErrInvalid), errors.Is(err, bolterrors.ErrVersionMismatch):
		return nil, nil, fmt.Errorf("%w: %s, or its first pages are destroyed: %w", ErrForeign, path, err)
	case errors.As(err, new(*fs.PathError)): // which names it
		return nil, nil, err
	case isOS(err):
		return nil, nil, fmt.Errorf("open %s: %w", path, err)
	default:
		return nil, nil, fmt.Errorf("%s: %w: %w", path, ErrDamaged, err)
	}
}

// abandon closes the file of a DB that has panicked, whose Close might wait for ever for a lock that it left locked. The
// mapping stays, and would keep the file locked for others.
func abandon(file *os.File) error {
	return errors.Join(unix.Flock(int(file.Fd()), unix.LOCK_UN), file.Close())
}

// isOS says whether the system refused something, rather than bbolt what it read.
func isOS(err error) bool {
	var errno unix.Errno
	return errors.As(err, &errno)
}

// inspect says what is wrong with a file.
func inspect(path string, opt Options, reads uint32) error {
	db, file, err := openBolt(path, opt, true)
	if err != nil {
		return err
	}
	err = guard(func() error {
		return db.View(func(tx *bolt.Tx) error {
			_, _, err := look(tx, file, reads)
			return err
		})
	})
	if err == nil {
		err = checkFile(path) // what bbolt takes for granted
	}
	if err != nil {
		err = fmt.Errorf("%s: %w", path, err)
	}
	return errors.Join(err, db.Close())
}

// look says what a file is, if tx shows one that a portd which reads schemas up to that one can read.
func look(tx *bolt.Tx, file *os.File, reads uint32) (have uint32, m *storepb.Meta, err error) {
	info, err := file.Stat()
	if err != nil {
		return 0, nil, err
	}
	if info.Size() < tx.Size() {
		return 0, nil, fmt.Errorf("%w: cut off after %d of %d bytes", ErrDamaged, info.Size(), tx.Size())
	}
	if have, err = schemaOf(tx); err != nil {
		return 0, nil, err
	}
	switch {
	case have == 0:
		return 0, nil, fmt.Errorf("%w: there is no schema 0", ErrDamaged)
	case have > reads:
		return have, nil, &SchemaError{Have: have, Reads: reads}
	}
	for _, name := range append(bucketsOfRecords(have), bucketEvent) {
		if tx.Bucket(name) == nil {
			return have, nil, fmt.Errorf("%w: it has no bucket %q", ErrDamaged, name)
		}
	}
	m, err = readMeta(tx)
	return have, m, err
}

const newInfix = ".new-"

// create makes a new store in one step, as far as others can see: its file has another name until it is whole.
func create(path string, schema uint32) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+newInfix+"*") // mode 0600
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.Remove(f.Name())) }()
	if err := f.Close(); err != nil {
		return err
	}
	db, err := bolt.Open(f.Name(), 0, &bolt.Options{Timeout: time.Second})
	if err != nil {
		return err
	}
	err = db.Update(func(tx *bolt.Tx) error {
		m := &storepb.Meta{StoreId: newStoreID(), Oldest: 1, Records: map[string]int64{}}
		for _, name := range bucketsOfRecords(schema) {
			m.Records[string(name)] = 0
		}
		return makeBuckets(tx, schema, m)
	})
	if err := errors.Join(err, db.Close()); err != nil {
		return err
	}
	// Unlike a rename, a link replaces nothing. Where another portd was faster, its file is as good.
	if err := os.Link(f.Name(), path); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return syncDir(filepath.Dir(path))
}

// makeBuckets makes all of a new file but its records.
func makeBuckets(tx *bolt.Tx, schema uint32, m *storepb.Meta) error {
	for _, name := range append([][]byte{bucketMeta, bucketEvent}, bucketsOfRecords(schema)...) {
		if _, err := tx.CreateBucket(name); err != nil {
			return err
		}
	}
	if err := putSchema(tx, schema); err != nil {
		return err
	}
	o, err := put(bucketMeta, keyStore, m)
	if err != nil {
		return err
	}
	return o.apply(tx)
}

func newStoreID() string { return "sto_" + strings.ToLower(rand.Text()[:20]) }

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
