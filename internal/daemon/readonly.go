package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/portd/portd/internal/paths"
	"github.com/portd/portd/internal/registry"
	"github.com/portd/portd/internal/registry/boltstore"
	"golang.org/x/sys/unix"
)

// whyReadOnly is why callers change nothing; empty: they do.
func (cfg Config) whyReadOnly() string {
	if !cfg.ReadOnly {
		return ""
	}
	return "portd was started with --read-only, to serve what is whole of its state"
}

// localPorts is where portd remembers what it has added to a sysctl, which read-only it does where the sockets are.
func (cfg Config) localPorts() string {
	if cfg.ReadOnly {
		return filepath.Join(filepath.Dir(cfg.Socket), "local-ports")
	}
	return filepath.Join(cfg.StateDir, "local-ports")
}

func (cfg Config) makeStateDir() error {
	if cfg.ReadOnly {
		if _, err := os.Stat(cfg.StateDir); err != nil {
			return cfg.advise(err)
		}
	}
	if err := makeDir(cfg.StateDir, 0o700); err != nil { // read-only it looks whose the directory is
		return fmt.Errorf("state directory: %w", err)
	}
	return nil
}

// openState opens the store, or reads what is whole of it. Who closes it is the caller.
func (d *daemon) openState(ctx context.Context) (registry.Store, error) {
	if !d.cfg.ReadOnly {
		err := d.openStore()
		if err == nil {
			d.store.loadEarly(ctx) // while others ask the kernel what was kept
		}
		return d.store, err
	}
	d.cfg.Args, d.cfg.Upgrade = nil, nil // a successor would have to open the store
	s, err := boltstore.OpenReadOnly(paths.Paths{State: d.cfg.StateDir}.Store())
	if err != nil {
		return nil, err
	}
	d.salvaged = s
	d.readOnly = []string{d.cfg.whyReadOnly()}
	for _, is := range s.Damage() {
		d.readOnly = append(d.readOnly, is.Error())
		d.cfg.Log.Error("a part of the state is damaged, and left out", "err", is)
	}
	d.cfg.Log.Warn("nothing can be changed: portd serves what is whole of its state", "damage", len(s.Damage()))
	return s, nil
}

// advise adds to what keeps portd from its state what can be done.
func (cfg Config) advise(err error) error {
	switch {
	case errors.Is(err, boltstore.ErrInUse):
		return fmt.Errorf("%w%s; stop that one first, or give this one a --state of its own", err, flockedBy(paths.Paths{State: cfg.StateDir}.Store()))
	case errors.Is(err, boltstore.ErrDamaged), errors.Is(err, boltstore.ErrForeign):
	case errors.Is(err, unix.EROFS) && !cfg.ReadOnly:
		return fmt.Errorf("%w; portd --read-only serves what is there, and holds its ports", err)
	case errors.Is(err, fs.ErrNotExist) && cfg.ReadOnly:
		return fmt.Errorf("there is no state in %s that --read-only could serve, and it makes none: %w; name the directory with --state, "+
			"or start portd without --read-only", cfg.StateDir, plain(err))
	case noRoom(err):
		return cfg.full(err)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("uid %d may not use the state in %s: %w; start portd as the user whose it is, or name another directory with --state",
			os.Geteuid(), cfg.StateDir, err)
	default:
		return err
	}
	newest := "there is no copy of portd's own that is whole"
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if file, info, err := boltstore.NewestCopy(ctx, paths.Paths{State: cfg.StateDir}.Store()); err == nil {
		newest = fmt.Sprintf("portd --restore-newest goes back to %s, as of %s: %d reservations at revision %d",
			file, info.Time.UTC().Format("2006-01-02 15:04:05 MST"), info.Reservations, info.Revision)
	}
	whole := "portd --read-only serves what is whole of it, and holds its ports; "
	if cfg.ReadOnly || errors.Is(err, boltstore.ErrForeign) {
		whole = ""
	}
	return fmt.Errorf("%w; nothing has been changed. What can be done: %s%s; portd --restore FILE goes back to a backup", err, whole, newest)
}
