package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/paths"
	"github.com/portd/portd/internal/registry"
	"github.com/portd/portd/internal/registry/boltstore"
)

// Newest in the place of a file's name is the newest whole copy that portd has made by itself.
const Newest = ""

// Restore puts a backup in the place of the state while no portd runs, and says what is there then. The file "-" is in. After an error
// the state is what it was, where there was one.
func Restore(ctx context.Context, cfg Config, file string, in io.Reader) (said string, err error) {
	if err := cfg.settle(); err != nil {
		return "", err
	}
	if err := cfg.own(); err != nil {
		return "", err
	}
	path := paths.Paths{State: cfg.StateDir}.Store()
	if file == Newest {
		file, _, err = boltstore.NewestCopy(ctx, path)
		if errors.Is(err, fs.ErrNotExist) {
			return "", fmt.Errorf("%w; nothing is changed; portd --restore FILE goes back to a backup", err)
		} else if err != nil {
			return "", err
		}
	}
	unlock, err := cfg.alone(file)
	if err != nil {
		return "", err
	}
	defer unlock()
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return "", err
		}
		defer f.Close()
		in = f
	}
	_, err = os.Lstat(path)
	replaces := err == nil
	if err := makeDir(cfg.StateDir, 0o700); err != nil {
		return "", fmt.Errorf("state directory: %w", err)
	}
	info, id, err := boltstore.Restore(ctx, path, in)
	if err != nil {
		return "", fmt.Errorf("%w; nothing is changed", cfg.restoring(file, err))
	}
	s, err := boltstore.Open(path, boltstore.Options{})
	switch {
	case errors.Is(err, boltstore.ErrInUse): // by one that began meanwhile, and may have it
		return "", errors.Join(cfg.inUse(file), boltstore.Withdraw(path))
	case err != nil && replaces:
		return "", errors.Join(cfg.restoring(file, err), boltstore.PutBack(path))
	case err != nil:
		return "", cfg.restoring(file, err)
	}
	if err := s.Close(); err != nil {
		return "", err
	}
	said = fmt.Sprintf("restored from %s, of %s: %d reservations as of revision %d, as %s", file, info.Time.UTC().Format("2006-01-02 15:04:05 MST"),
		info.Reservations, info.Revision, id)
	if replaces {
		said += "; what was before is " + boltstore.BeforeRestore(path)
	}
	return said, nil
}

// restoring is why a file was not restored, which it names once.
func (cfg Config) restoring(file string, err error) error {
	if noRoom(err) {
		return cfg.full(err)
	}
	if path := (*fs.PathError)(nil); errors.As(err, &path) {
		return path
	}
	return fmt.Errorf("%s: %w", file, err)
}

// alone makes sure that no portd runs that would go on with what is replaced, until unlock is called.
func (cfg Config) alone(file string) (unlock func(), err error) {
	locked, err := lock(paths.Lock(cfg.Socket))
	switch running := (*runningError)(nil); {
	case errors.As(err, &running):
		return nil, fmt.Errorf("a portd runs%s: restore it while it does, by portctl --socket %s restore %s; nothing is changed", running.by, cfg.Socket, file)
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, fs.ErrPermission): // there are no sockets of a portd of this user's
		unlock = func() {}
	case err != nil:
		return nil, err
	default:
		unlock = func() { _ = locked.Close() }
	}
	if flockedBy(paths.Paths{State: cfg.StateDir}.Store()) != "" {
		unlock()
		return nil, cfg.inUse(file)
	}
	return unlock, nil
}

func (cfg Config) inUse(file string) error {
	return fmt.Errorf("another portd%s has the state in %s open: restore it while that runs, by portctl restore %s with its --socket; nothing is changed",
		flockedBy(paths.Paths{State: cfg.StateDir}.Store()), cfg.StateDir, file)
}

// own refuses the state of another user, whose portd could not open what was made here.
func (cfg Config) own() error {
	var st unix.Stat_t
	switch err := unix.Stat(cfg.StateDir, &st); {
	case errors.Is(err, unix.ENOENT):
		return nil
	case err != nil:
		return fmt.Errorf("state directory: %w", &fs.PathError{Op: "stat", Path: cfg.StateDir, Err: err})
	}
	if int(st.Uid) != os.Geteuid() {
		return fmt.Errorf("the state in %s belongs to %s: run this as that user; nothing is changed", cfg.StateDir, registry.UserName(st.Uid))
	}
	return nil
}
