package daemon_test

import (
	"context"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/portd/portd/internal/daemon"
	"github.com/portd/portd/internal/paths"
	"github.com/portd/portd/internal/portdtest"
	pb "github.com/portd/portd/proto/portd/v1"
)

func TestModes(t *testing.T) {
	clean(t)
	d := portdtest.Start(t)
	sockets, dir := fs.FileMode(0o600), fs.FileMode(0o700)
	if os.Geteuid() == 0 {
		sockets, dir = 0o666, 0o755
	}
	for path, want := range map[string]fs.FileMode{
		d.State:                             fs.ModeDir | 0o700,
		paths.Paths{State: d.State}.Store(): 0o600,
		paths.Paths{State: d.State}.Store() + "-journal": 0o600,
		filepath.Dir(d.Socket):                           fs.ModeDir | dir,
		d.Socket:                                         fs.ModeSocket | sockets,
		d.Handoff():                                      fs.ModeSocket | sockets,
		paths.Lock(d.Socket):                             0o600,
	} {
		st, err := os.Lstat(path)
		if err != nil || st.Mode() != want {
			t.Errorf("%s: %v, %v; want %v", path, st.Mode(), err, want)
		}
	}
	// Nothing else lies about, such as the sockets' first names.
	for dir, want := range map[string]int{d.State: 2, filepath.Dir(d.Socket): 3} {
		if entries, err := os.ReadDir(dir); err != nil || len(entries) != want {
			t.Errorf("%s: %v, %v", dir, entries, err)
		}
	}
}

// A second portd gives way to a living one, says so, and does it no harm.
func TestGivesWay(t *testing.T) {
	clean(t)
	d := portdtest.Start(t)
	pid := fmt.Sprintf("pid %d", os.Getpid())
	for name, tt := range map[string]struct {
		cfg  daemon.Config
		want []string
	}{
		"the same portd": {daemon.Config{Socket: d.Socket, StateDir: d.State}, []string{"already running", pid, "--socket"}},
		"another store":  {daemon.Config{Socket: d.Socket, StateDir: filepath.Join(d.Dir, "other")}, []string{"already running", pid}},
		"another name in the same directory": {
			daemon.Config{Socket: filepath.Join(filepath.Dir(d.Socket), "other.sock"), StateDir: filepath.Join(d.Dir, "third")},
			[]string{"already running", pid},
		},
		"another socket": {
			daemon.Config{Socket: filepath.Join(d.Dir, "other", "portd.sock"), StateDir: d.State},
			[]string{"another portd", paths.Paths{State: d.State}.Store(), "(" + pid + ")", "--state"},
		},
	} {
		err := daemon.Run(t.Context(), tt.cfg)
		for _, want := range tt.want {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %v; want %q in it", name, err, want)
			}
		}
	}
	if _, err := d.Client(t).Daemon.GetStatus(t.Context(), &pb.GetStatusRequest{}); err != nil {
		t.Error(err)
	}
	d.Restart(t) // the lock went with the daemon, not with its file
}

func TestRefusedPlaces(t *testing.T) {
	clean(t)
	other := os.Geteuid() + 1
	const long = "a-directory-of-a-name-that-is-rather-long/and-another-one-that-is-not-short-either/so-that-no-socket-fits-in"
	tests := []struct {
		name    string
		prepare func(t *testing.T, cfg *daemon.Config) error
		want    string
	}{
		{"a state directory that others may write to", func(_ *testing.T, cfg *daemon.Config) error {
			return mkdir(cfg.StateDir, 0o777)
		}, "written to by others"},
		{"a socket directory that its group may write to", func(_ *testing.T, cfg *daemon.Config) error {
			return mkdir(filepath.Dir(cfg.Socket), 0o775)
		}, "written to by others"},
		{"a state directory of somebody else", func(t *testing.T, cfg *daemon.Config) error {
			if err := mkdir(cfg.StateDir, 0o755); err != nil {
				return err
			}
			if err := os.Chown(cfg.StateDir, other, -1); err != nil {
				t.Skipf("needs the right to give files away: %v", err)
			}
			return nil
		}, fmt.Sprintf("belongs to uid %d", other)},
		{"a file where the socket is to be", func(_ *testing.T, cfg *daemon.Config) error {
			if err := mkdir(filepath.Dir(cfg.Socket), 0o755); err != nil {
				return err
			}
			return os.WriteFile(cfg.Socket, []byte("precious"), 0o600)
		}, "is not a socket"},
		{"a file where the state directory is to be", func(_ *testing.T, cfg *daemon.Config) error {
			return os.WriteFile(cfg.StateDir, nil, 0o600)
		}, "not a directory"},
		{"a lock that is a link", func(_ *testing.T, cfg *daemon.Config) error {
			if err := mkdir(filepath.Dir(cfg.Socket), 0o755); err != nil {
				return err
			}
			return os.Symlink("elsewhere", paths.Lock(cfg.Socket))
		}, "lock file"},
		{"a path that is too long for a socket", func(_ *testing.T, cfg *daemon.Config) error {
			cfg.Socket = filepath.Join(filepath.Dir(cfg.Socket), long, "portd.sock")
			return nil
		}, "107"},
		{"the name of the hand-off socket", func(_ *testing.T, cfg *daemon.Config) error {
			cfg.Socket = paths.Handoff(cfg.Socket)
			return nil
		}, "hand-off"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d := portdtest.New(t)
			cfg := daemon.Config{Socket: d.Socket, StateDir: d.State}
			if err := tt.prepare(t, &cfg); err != nil {
				t.Fatal(err)
			}
			ctx, stop := context.WithCancel(t.Context())
			cfg.Ready = stop // a portd that starts must not go on
			if err := daemon.Run(ctx, cfg); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v; want %q in it", err, tt.want)
			}
		})
	}
}

// What a dead portd left at the socket's place is replaced.
func TestDeadSocket(t *testing.T) {
	clean(t)
	d := portdtest.New(t)
	if err := mkdir(filepath.Dir(d.Socket), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{d.Socket, filepath.Join(filepath.Dir(d.Socket), ".portd")} {
		ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
		if err != nil {
			t.Fatal(err)
		}
		ln.SetUnlinkOnClose(false)
		ln.Close()
	}
	d.Restart(t)
	if _, err := d.Client(t).Daemon.GetStatus(t.Context(), &pb.GetStatusRequest{}); err != nil {
		t.Error(err)
	}
}

// mkdir makes a directory with this mode whatever the umask is.
func mkdir(path string, mode fs.FileMode) error {
	if err := os.Mkdir(path, mode); err != nil {
		return err
	}
	return os.Chmod(path, mode)
}
