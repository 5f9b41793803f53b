// Package portdtest runs a whole portd inside a test, reached as anybody reaches it: through its sockets.
package portdtest

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/client"
	"github.com/portd/portd/internal/daemon"
	"github.com/portd/portd/internal/paths"
)

// A Daemon is a portd in this process, with a directory of its own that every user may enter.
type Daemon struct {
	Dir    string // has the directories of the sockets and of the state
	Socket string // control socket
	State  string // state directory
	Policy string // policy file, empty at first; Reload has it read again

	log    *slog.Logger
	reload chan os.Signal
	cancel context.CancelFunc // nil while it is stopped
	ended  chan error
}

// New makes the directory and starts nothing: Restart does. The directory goes when the test ends.
func New(t testing.TB) *Daemon {
	t.Helper()
	// t.TempDir may be too long for a socket (unix(7): 107 bytes).
	dir, err := os.MkdirTemp("", "portd")
	if err != nil {
		t.Fatal(err)
	}
	d := &Daemon{
		Dir: dir, Socket: filepath.Join(dir, "run", "portd.sock"), State: filepath.Join(dir, "state"),
		Policy: filepath.Join(dir, "policy.yaml"), reload: make(chan os.Signal),
		log: slog.New(slog.NewTextHandler(t.Output(), nil)),
	}
	t.Cleanup(func() {
		d.Stop(t)
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	// Not the one of this host.
	if err := os.WriteFile(d.Policy, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	return d
}

// Start starts a portd and returns when it answers. It stops when the test ends, which fails if it does not stop cleanly.
func Start(t testing.TB) *Daemon {
	t.Helper()
	d := New(t)
	d.Restart(t)
	return d
}

// Restart stops it if it runs, and starts it with the same sockets and state.
func (d *Daemon) Restart(t testing.TB) {
	t.Helper()
	d.Stop(t)
	ctx, cancel := context.WithCancel(context.Background())
	ready, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		ended <- daemon.Run(ctx, daemon.Config{
			Socket: d.Socket, StateDir: d.State, Policy: d.Policy, Version: "test", Log: d.log,
			Ready: func() { close(ready) }, Reload: d.reload,
		})
	}()
	select {
	case <-ready:
		d.cancel, d.ended = cancel, ended
	case err := <-ended:
		cancel()
		t.Fatalf("portd did not start: %v", err)
	}
}

// Reload writes a policy file and has it read.
func (d *Daemon) Reload(t testing.TB, policy string) {
	t.Helper()
	// At one go: the second of the signals before may be obeyed only now.
	if err := os.WriteFile(d.Policy+".new", []byte(policy), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(d.Policy+".new", d.Policy); err != nil {
		t.Fatal(err)
	}
	d.Again()
}

// Again has the policy file read again, as SIGHUP does. It returns when that is done, however it went.
func (d *Daemon) Again() {
	d.reload <- unix.SIGHUP
	d.reload <- unix.SIGHUP // is taken when the first one has been obeyed
}

// Stop ends it as SIGTERM does and returns when everything is put away. It may be called again.
func (d *Daemon) Stop(t testing.TB) {
	t.Helper()
	if d.cancel == nil {
		return
	}
	d.cancel()
	d.cancel = nil
	if err := <-d.ended; err != nil {
		t.Errorf("portd ended: %v", err)
	}
}

// Client is a new client of it, which is closed when the test ends. It lives through restarts.
func (d *Daemon) Client(t testing.TB) *client.Client {
	t.Helper()
	c, err := client.Dial(t.Context(), client.Options{Socket: d.Socket})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// Handoff is the hand-off socket.
func (d *Daemon) Handoff() string { return paths.Handoff(d.Socket) }
