package daemon_test

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/fdpass"
	"github.com/portd/portd/internal/fdstore"
	"github.com/portd/portd/internal/nstest"
	"github.com/portd/portd/internal/portdtest"
)

// A manager is a service manager that keeps descriptors, as systemd does.
type manager struct {
	conn *net.UnixConn
	path string

	mu    sync.Mutex
	items map[string]*os.File
	said  []string // all but what is about descriptors
}

func newManager(t *testing.T, d *portdtest.Daemon) *manager {
	t.Helper()
	m := &manager{path: filepath.Join(d.Dir, "notify"), items: map[string]*os.File{}}
	var err error
	if m.conn, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Name: m.path, Net: "unixgram"}); err != nil {
		t.Fatal(err)
	}
	var hearing sync.WaitGroup
	hearing.Go(m.hear)
	t.Cleanup(func() {
		m.conn.Close()
		hearing.Wait()
		for _, f := range m.items {
			f.Close()
		}
	})
	return m
}

func (m *manager) hear() {
	for buf := make([]byte, 8192); ; {
		n, fds, err := fdpass.RecvConn(m.conn, buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		words, _ := fdstore.Parse(buf[:n])
		m.mu.Lock()
		if words.Store || words.Remove {
			if old := m.items[words.Name]; old != nil {
				old.Close()
				delete(m.items, words.Name)
			}
		} else if len(fds) == 0 {
			m.said = append(m.said, string(buf[:n]))
		}
		if words.Store && len(fds) == 1 {
			m.items[words.Name] = os.NewFile(uintptr(fds[0]), words.Name)
			fds = nil
		}
		m.mu.Unlock()
		for _, fd := range fds { // of a barrier
			unix.Close(fd)
		}
	}
}

// heard says whether it was told something like that.
func (m *manager) heard(word string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return strings.Contains(strings.Join(m.said, "\n"), word)
}

// start starts a portd with what is kept, and returns when it is ready.
func (m *manager) start(t *testing.T, d *portdtest.Daemon, does string) *exec.Cmd {
	t.Helper()
	log, err := os.CreateTemp(d.Dir, "log")
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command("sh", "-c", `LISTEN_PID=$$ exec "$@"`, "sh", self(t), "--no-keeper", "--socket", d.Socket, "--state", d.State, "--policy", d.Policy)
	cmd.Env = append(os.Environ(), envAct+"=daemon", envStep+"="+does, envVersion+"=new", "NOTIFY_SOCKET="+m.path, "FDSTORE=512")
	cmd.Stderr = log
	m.mu.Lock()
	m.said = nil
	var names []string
	for name, f := range m.items {
		names = append(names, name)
		cmd.ExtraFiles = append(cmd.ExtraFiles, f)
	}
	if len(names) > 0 {
		cmd.Env = append(cmd.Env, fmt.Sprintf("LISTEN_FDS=%d", len(names)), "LISTEN_FDNAMES="+strings.Join(names, ":"))
	}
	err = cmd.Start()
	m.mu.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(unix.SIGTERM)
		late := time.AfterFunc(20*time.Second, func() { _ = cmd.Process.Kill() })
		defer late.Stop()
		_ = cmd.Wait()
		if text, err := os.ReadFile(log.Name()); err == nil && t.Failed() {
			t.Logf("the log of portd:\n%s", text)
		}
	})
	waitFor(t, "portd", func() bool { return m.heard("READY=1") })
	return cmd
}

// The successor dies when a service manager may know it for the daemon already, and be about to start another one. So the old one does not go
// on: it ends, with all that it has kept, and the one that is started next has it.
func TestNotUpgradedUnderAManager(t *testing.T) {
	nstest.Need(t)
	d := portdtest.New(t)
	m := newManager(t, d)
	old := m.start(t, d, "new kill yours")
	c := d.Client(t)
	reserve(t, c, "web", "tcp/8080")
	before := inode(t, d.Socket)
	if _, err := upgrade(t, c, ""); err == nil {
		t.Error("the upgrade is told to be good")
	}
	if err := old.Wait(); err == nil || old.ProcessState.ExitCode() != 1 {
		t.Errorf("the old one ends with %v", err)
	}
	if m.heard("STOPPING=1") {
		t.Error("it says that it was to stop, and the service manager would let go of everything")
	}
	wantHeld(t, 8080)
	m.start(t, d, "")
	if get(t, c, "web"); inode(t, d.Socket) != before {
		t.Error("the control socket is another one")
	}
	wantHeld(t, 8080)
	releaseRef(t, c, "web")
	wantFree(t, 8080)
}
