package boltstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	bolt "go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/registry/boltstore/storepb"
)

// What lies beside a store's file for a restore:
//
//	portd.db-restoring       a store that is being made of a backup
//	portd.db-restored        the one that is whole: the next who opens the store takes it
//	portd.db-before-restore  the file that was replaced, with its journal where it had one
//	portd.db-withdrawn       one that was taken, and is given up for the one before it
//	portd.db-putting-back    the same, once nothing of it has a name that the one before gets
func restoringPath(path string) string { return path + "-restoring" }
func restoredPath(path string) string  { return path + "-restored" }
func withdrawnPath(path string) string { return path + "-withdrawn" }
func puttingPath(path string) string   { return path + "-putting-back" }

// BeforeRestore is where the store is that the last restore has replaced.
func BeforeRestore(path string) string { return path + "-before-restore" }

// restoreBatch is how many records go into one transaction: what is in it is in memory until it ends.
const restoreBatch = 10_000

// Restore makes a store of a backup, under a new id, and leaves it beside the one at path, which may be open or damaged and is
// not looked at. The next Open of path takes it, whichever process that is; Withdraw undoes that before. Nothing is left behind
// where the backup is not whole, with the errors of CheckBackup. One Restore of a path goes on at a time.
func Restore(ctx context.Context, path string, from io.Reader) (info BackupInfo, storeID string, err error) {
	return RestoreIf(ctx, path, from, func() error { return nil })
}

// RestoreIf is Restore that asks, when all of the store is made, whether it may be taken. Nothing is left behind after an error.
func RestoreIf(ctx context.Context, path string, from io.Reader, may func() error) (info BackupInfo, storeID string, err error) {
	in, err := openBackup(from)
	if err != nil {
		return info, "", err
	}
	at := restoringPath(path)
	if err := removeIfThere(at); err != nil {
		return info, "", err
	}
	f, err := os.OpenFile(at, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return info, "", err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, removeIfThere(at))
		}
	}()
	if err := f.Close(); err != nil {
		return info, "", err
	}
	storeID = newStoreID()
	if err := guard(func() error { return fill(ctx, at, storeID, in) }); err != nil {
		return info, "", err
	}
	if err := checkFile(at); err != nil {
		return info, "", fmt.Errorf("what was made of the backup: %w", err)
	}
	if err := may(); err != nil {
		return info, "", err
	}
	if err := os.Rename(at, restoredPath(path)); err != nil {
		return info, "", err
	}
	if err := syncDir(filepath.Dir(path)); err != nil {
		return info, "", errors.Join(err, removeIfThere(restoredPath(path)))
	}
	return in.info, storeID, nil
}

// fill makes a closed store of the newest schema at path, where there is an empty file.
func fill(ctx context.Context, path, storeID string, in *backupReader) error {
	db, err := bolt.Open(path, 0, &bolt.Options{Timeout: time.Second, FreelistType: bolt.FreelistMapType, NoSync: true})
	if err != nil {
		return err
	}
	defer db.Close() // it is nothing until it is synced
	h := in.header
	m := &storepb.Meta{StoreId: storeID, Revision: h.GetRevision(), Oldest: h.GetOldest(), Records: h.GetRecords()}
	if err := db.Update(func(tx *bolt.Tx) error { return makeBuckets(tx, h.GetSchema(), m) }); err != nil {
		return err
	}
	var held []op
	flush := func() error {
		err := db.Update(func(tx *bolt.Tx) error {
			for _, o := range held {
				b := tx.Bucket(o.bucket)
				b.FillPercent = 0.9 // keys come in order
				if err := b.Put(o.key, o.value); err != nil {
					return err
				}
			}
			return nil
		})
		held = held[:0]
		return err
	}
	if err := in.each(ctx, func(o op) error {
		held = append(held, op{bytes.Clone(o.bucket), bytes.Clone(o.key), bytes.Clone(o.value)})
		if len(held) == restoreBatch {
			return flush()
		}
		return nil
	}); err != nil {
		return err
	}
	if err := flush(); err != nil {
		return err
	}
	if err := db.Update(func(tx *bolt.Tx) error { return migrate(tx, migrations) }); err != nil {
		return err
	}
	if err := db.Sync(); err != nil {
		return err
	}
	return db.Close()
}

// Withdraw takes back what Restore has left for the next who opens the store. It leaves it where there is nothing else to open.
func Withdraw(path string) error {
	if _, err := os.Lstat(path); err != nil {
		return err
	}
	return errors.Join(removeIfThere(restoredPath(path)), syncDir(filepath.Dir(path)))
}

// adopt puts what was restored in the place of the file at path, and moves that aside. Wherever it is interrupted, the next
// one goes on; likewise where PutBack was.
func adopt(path string) error {
	if err := goOnPuttingBack(path); err != nil {
		return err
	}
	switch _, err := os.Lstat(restoredPath(path)); {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	}
	before := BeforeRestore(path)
	switch unlock, err := lockAlone(path); {
	case errors.Is(err, fs.ErrNotExist): // it has been moved, or there was none
	case err != nil:
		return err
	default:
		defer unlock()
		if err := removeIfThere(journalPath(before)); err != nil {
			return err
		}
		if err := os.Rename(path, before); err != nil {
			return err
		}
	}
	if err := os.Rename(journalPath(path), journalPath(before)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	// On the disk before the new file has the name: a journal of the old one beside it would be refused.
	if err := syncDir(filepath.Dir(path)); err != nil {
		return err
	}
	if err := os.Rename(restoredPath(path), path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

// dying is how long a file may stay locked whose process is dead.
const dying = 2 * time.Second

// PutBack undoes a Restore that another process has begun to take, or has taken, and closed again: the file from before has its
// place again, also where PutBack is interrupted and somebody opens the store. It is called once for a Restore, and is ErrInUse where somebody
// has opened what was restored.
func PutBack(path string) error {
	waits := true
	switch _, err := os.Lstat(restoredPath(path)); {
	case errors.Is(err, fs.ErrNotExist):
		waits = false
	case err != nil:
		return err
	}
	switch _, err := os.Lstat(path); {
	case waits && err == nil: // nobody has begun
		return Withdraw(path)
	case waits: // the file from before has been moved, and nothing was put in its place
		if err := takeBefore(path); err != nil {
			return err
		}
		return Withdraw(path)
	}
	if _, err := os.Lstat(BeforeRestore(path)); err != nil {
		return err
	}
	unlock, err := lockAlone(path)
	// A process that has just died has its lock until the one that shares its descriptors has ended, too.
	for until := time.Now().Add(dying); errors.Is(err, ErrInUse) && time.Now().Before(until); {
		time.Sleep(5 * time.Millisecond)
		unlock, err = lockAlone(path)
	}
	if err != nil {
		return err
	}
	err = os.Rename(path, withdrawnPath(path))
	unlock()
	if err != nil {
		return err
	}
	return goOnPuttingBack(path)
}

// goOnPuttingBack does what is left of a PutBack, if there is one. The withdrawn file's name says how far it has come: a file and its
// journal are two names, and a file is refused beside a journal that is not its own.
func goOnPuttingBack(path string) error {
	switch _, err := os.Lstat(withdrawnPath(path)); {
	case err == nil:
		if err := removeIfThere(journalPath(path)); err != nil { // that of the withdrawn one
			return err
		}
		if err := syncDir(filepath.Dir(path)); err != nil {
			return err
		}
		if err := os.Rename(withdrawnPath(path), puttingPath(path)); err != nil {
			return err
		}
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	switch _, err := os.Lstat(puttingPath(path)); {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	}
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		if err := takeBefore(path); err != nil {
			return err
		}
	} else if err != nil {
		return err
	}
	return errors.Join(removeIfThere(puttingPath(path)), syncDir(filepath.Dir(path)))
}

// takeBefore gives the file from before its name, where nothing has it. Its journal, which adopt moves last, comes first.
func takeBefore(path string) error {
	before := BeforeRestore(path)
	if err := os.Rename(journalPath(before), journalPath(path)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := syncDir(filepath.Dir(path)); err != nil {
		return err
	}
	if err := os.Rename(before, path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

// lockAlone locks a store's file as bbolt does, and fails with ErrInUse where somebody has it open.
func lockAlone(path string) (unlock func(), err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		defer f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("%w: another portd has %s open", ErrInUse, path)
		}
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return func() { _ = f.Close() }, nil
}
