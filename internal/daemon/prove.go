package daemon

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/portd/portd/internal/registry/boltstore"
)

// Before another program gets anything that matters it shows that it can: it is given a copy of the store, brings that to its own schema,
// and reads all of it.

const (
	proveFor   = 60 * time.Second
	backupName = "portd.backup"
	trialDirs  = "upgrade-*" // in the state directory
)

// Prove is the other side: it makes a store of the backup in dir, with the newest schema, reads it and binds nothing. It says in a
// sentence what is there.
func Prove(ctx context.Context, cfg Config, dir string) (said string, err error) {
	if _, err := Check(cfg); err != nil {
		return "", fmt.Errorf("policy file: %w", err)
	}
	f, err := os.Open(filepath.Join(dir, backupName))
	if err != nil {
		return "", err
	}
	defer f.Close()
	path := filepath.Join(dir, "portd.db")
	if _, _, err := boltstore.Restore(ctx, path, f); err != nil {
		return "", err
	}
	s, err := boltstore.Open(path, boltstore.Options{})
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	st, err := s.Load(ctx)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("portd %s%sschema %d, revision %d, %d reservations", cfg.Version, readsIt, st.Schema, st.Revision, len(st.Reservations)), nil
}

// readsIt is in what every release of portd says that has proved itself. Other programs end well too, and say nothing of the kind.
const readsIt = " reads it: "

// prove has the binary prove itself.
func (u *upgrade) prove() error {
	if info, err := os.Stat(u.out.Binary); err == nil && info.IsDir() { // execve(2) has EACCES for it
		return fmt.Errorf("%s is a directory", u.out.Binary)
	}
	dir, err := os.MkdirTemp(u.cfg.StateDir, trialDirs)
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	ctx, cancel := context.WithTimeout(u.stopping, proveFor)
	defer cancel()
	if err := u.copyStore(ctx, filepath.Join(dir, backupName)); err != nil {
		return fmt.Errorf("copy the store: %w", err)
	}
	cmd := exec.CommandContext(ctx, u.out.Binary)
	cmd.Args = append(slices.Clone(u.cfg.Args), "--prove", dir)
	cmd.Env = slices.DeleteFunc(os.Environ(), func(e string) bool { return strings.HasPrefix(e, "NOTIFY_SOCKET=") })
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	said := &limited{most: 4096}
	cmd.Stdout, cmd.Stderr = said, said
	cmd.WaitDelay = time.Second
	var started *fs.PathError
	switch err := cmd.Run(); {
	case u.stopping.Err() != nil:
		return errors.New("this portd is told to stop")
	case ctx.Err() != nil:
		return fmt.Errorf("%s has not proved itself within %v: %s", u.out.Binary, proveFor, said)
	case err != nil && strings.Contains(said.String(), "not defined: -prove"):
		return fmt.Errorf("%s is a portd from before there were upgrades: stop this one and start that one", u.out.Binary)
	case errors.As(err, &started):
		return fmt.Errorf("%s: %w", u.out.Binary, started.Err) // without the names of Go's functions
	case err != nil && said.Len() > 0:
		return fmt.Errorf("%s, tried on a copy of what is recorded, ended with %w and said: %s", u.out.Binary, err, said)
	case err != nil:
		return fmt.Errorf("%s, tried on a copy of what is recorded, ended with %w and said nothing", u.out.Binary, err)
	case !strings.Contains(said.String(), readsIt):
		return fmt.Errorf("%s is no portd: it does not say that it reads the store, but %q", u.out.Binary, said)
	}
	u.cfg.Log.Info("the other portd has proved itself", "binary", u.out.Binary, "said", said.String())
	return nil
}

func (u *upgrade) copyStore(ctx context.Context, path string) (err error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	_, err = u.store.Backup(ctx, f)
	return err
}

// removeTrials removes what a portd has left that died while another one proved itself. The caller has the lock.
func (cfg Config) removeTrials() {
	if cfg.ReadOnly {
		return
	}
	dirs, _ := filepath.Glob(filepath.Join(cfg.StateDir, trialDirs))
	for _, dir := range dirs {
		if err := os.RemoveAll(dir); err != nil {
			cfg.Log.Warn("the copy of the store that an upgrade has left cannot be removed", "err", err)
		}
	}
}

// limited keeps the beginning of what is written to it.
type limited struct {
	bytes.Buffer
	most int
}

func (l *limited) Write(p []byte) (int, error) {
	_, _ = l.Buffer.Write(p[:min(len(p), max(0, l.most-l.Len()))])
	return len(p), nil
}

func (l *limited) String() string { return strings.TrimSpace(l.Buffer.String()) }
