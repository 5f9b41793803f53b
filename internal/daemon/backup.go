package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/paths"
	"github.com/portd/portd/internal/registry"
	"github.com/portd/portd/internal/registry/boltstore"
	"github.com/portd/portd/internal/rpc"
)

// backups is the state as the doors copy it out and in.
type backups struct {
	*daemon
	one sync.Mutex // one restore at a time
}

var _ rpc.Backups = (*backups)(nil)

// backups is how the API copies the state.
func (d *daemon) backups() rpc.Backups { return &backups{daemon: d} }

func (b *backups) path() string { return paths.Paths{State: b.cfg.StateDir}.Store() }

func (b *backups) Backup(ctx context.Context, w io.Writer) (info registry.BackupInfo, err error) {
	if b.salvaged != nil {
		info, err = b.salvaged.Backup(ctx, w)
	} else {
		info, err = b.store.Backup(ctx, w)
	}
	if errors.Is(err, boltstore.ErrDamaged) {
		b.cfg.Log.Error("the state cannot be copied as a whole", "err", err)
		err = &registry.UnsupportedError{What: "copy the state", Why: "a part of it is damaged, and a backup is whole or it is none: " + err.Error()}
	}
	return info, err
}

func (b *backups) Check(ctx context.Context, from io.Reader) (registry.BackupInfo, error) {
	info, err := boltstore.CheckBackup(ctx, from)
	return info, badBackup(err)
}

// Restore makes a store of the backup and has another portd take over, which opens that one. Where it does not come to that, the store
// that this one closed is put back before it is opened again (putBack).
func (b *backups) Restore(ctx context.Context, from io.Reader) (done rpc.Restored, err error) {
	switch {
	case b.cfg.ReadOnly:
		return done, &registry.UnsupportedError{What: "restore the state", Why: "this portd is read-only (--read-only): stop it, and portd --restore FILE"}
	case b.cfg.Args == nil:
		return done, &registry.UnsupportedError{What: "restore the state", Why: "this portd cannot start another one: stop it, and portd --restore FILE"}
	}
	b.one.Lock()
	defer b.one.Unlock()
	path := b.path()
	done.Before = boltstore.BeforeRestore(path)
	// Not for the successor of an upgrade that is under way, which would take it unasked.
	if done.Backup, done.StoreID, err = boltstore.RestoreIf(ctx, path, from, b.beginUpgrade); err != nil {
		return done, badBackup(err)
	}
	b.restoring.Store(true)
	defer b.restoring.Store(false)
	b.cfg.Log.Info("the state is to be restored", "revision", done.Backup.Revision, "reservations", done.Backup.Reservations, "of", done.Backup.StoreID, "as", done.StoreID)
	if _, err := b.upgradeBegun(""); err != nil {
		return done, errors.Join(err, boltstore.Withdraw(path))
	}
	return done, nil
}

// putBack is called before the store is opened again that was closed for another portd.
func (d *daemon) putBack(path string) error {
	if d.store == nil || !d.restoring.Load() {
		return nil
	}
	return boltstore.PutBack(path)
}

// Spool is in memory where the disk is full, for to copy the state to another one is what helps then, and where nothing is to be written to it.
func (b *backups) Spool() (*os.File, error) {
	fd, err := -1, error(unix.EROFS)
	if !b.cfg.ReadOnly {
		fd, err = unix.Open(b.cfg.StateDir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	}
	if err == nil {
		var disk unix.Statfs_t
		if err := unix.Fstatfs(fd, &disk); err == nil && int64(disk.Bavail)*disk.Bsize > spoolRoom {
			return os.NewFile(uintptr(fd), "backup"), nil
		}
		_ = unix.Close(fd)
	}
	if fd, err = unix.MemfdCreate("backup", unix.MFD_CLOEXEC); err != nil {
		return nil, fmt.Errorf("memfd_create: %w", err)
	}
	return os.NewFile(uintptr(fd), "backup"), nil
}

// spoolRoom is how much must be free for a backup to be made on the disk, in bytes.
const spoolRoom = 512 << 20

// badBackup is what is wrong with a backup, as the API says it.
func badBackup(err error) error {
	var newer *boltstore.SchemaError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &newer):
		return &registry.UnsupportedError{What: "restore the backup", Why: err.Error(), Code: "NEWER_SCHEMA"}
	case errors.Is(err, boltstore.ErrForeign):
		return &registry.InvalidError{Field: "data", Reason: err.Error(), Code: "NO_BACKUP"}
	case errors.Is(err, boltstore.ErrDamaged):
		return &registry.InvalidError{Field: "data", Reason: err.Error(), Code: "DAMAGED_BACKUP"}
	}
	return err
}
