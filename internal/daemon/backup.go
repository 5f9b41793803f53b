package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
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

// backups is how the API copies the state; nil where there is none that is whole.
func (d *daemon) backups() rpc.Backups {
	if d.store == nil {
		return nil
	}
	return &backups{daemon: d}
}

func (b *backups) path() string { return paths.Paths{State: b.cfg.StateDir}.Store() }

func (b *backups) Backup(ctx context.Context, w io.Writer) (registry.BackupInfo, error) {
	return b.store.Backup(ctx, w)
}

func (b *backups) Check(ctx context.Context, from io.Reader) (registry.BackupInfo, error) {
	info, err := boltstore.CheckBackup(ctx, from)
	return info, badBackup(err)
}

// Restore makes a store of the backup and has another portd take over, which opens that one. Where it does not come to that, the store
// that this one closed is put back before it is opened again (putBack).
func (b *backups) Restore(ctx context.Context, from io.Reader) (done rpc.Restored, err error) {
	if b.cfg.Args == nil {
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

// Spool is in memory where the disk is full: to copy the state to another one is what helps then.
func (b *backups) Spool() (*os.File, error) {
	fd, err := unix.Open(b.cfg.StateDir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
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

// Newest in the place of a file's name is the newest whole copy that portd has made by itself.
const Newest = ""

// Restore puts a backup in the place of the state while no portd runs, and says what is there then. The file "-" is in.
func Restore(ctx context.Context, cfg Config, file string, in io.Reader) (said string, err error) {
	if err := cfg.settle(); err != nil {
		return "", err
	}
	if err := cfg.makeDirs(); err != nil {
		return "", err
	}
	if err := cfg.own(); err != nil {
		return "", err
	}
	locked, err := lock(paths.Lock(cfg.Socket))
	if err != nil {
		return "", fmt.Errorf("%w; while it runs: portctl restore FILE", err)
	}
	defer locked.Close()
	path := paths.Paths{State: cfg.StateDir}.Store()
	if file == Newest {
		if file, _, err = boltstore.NewestCopy(ctx, path); err != nil {
			return "", err
		}
	}
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return "", err
		}
		defer f.Close()
		in = f
	}
	info, id, err := boltstore.Restore(ctx, path, in)
	if err != nil {
		return "", fmt.Errorf("%s: %w; nothing is changed", file, err)
	}
	s, err := boltstore.Open(path, boltstore.Options{})
	if err != nil {
		return "", errors.Join(err, boltstore.PutBack(path))
	}
	if err := s.Close(); err != nil {
		return "", err
	}
	said = fmt.Sprintf("restored from %s, of %s: %d reservations as of revision %d, as %s", file, info.Time.UTC().Format("2006-01-02 15:04:05 MST"),
		info.Reservations, info.Revision, id)
	if _, err := os.Stat(boltstore.BeforeRestore(path)); err == nil {
		said += "; what was before is " + boltstore.BeforeRestore(path)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return said, err
	}
	return said, nil
}

// own refuses the state of another user, whose portd could not open what was made here.
func (cfg Config) own() error {
	var st unix.Stat_t
	if err := unix.Stat(cfg.StateDir, &st); err != nil {
		return fmt.Errorf("state directory: %w", err)
	}
	if int(st.Uid) != os.Geteuid() {
		return fmt.Errorf("the state directory %s is %s's: restore it as that user", cfg.StateDir, registry.UserName(st.Uid))
	}
	return nil
}
