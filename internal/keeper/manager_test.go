package keeper_test

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/fdpass"
	"github.com/portd/portd/internal/fdstore"
	"github.com/portd/portd/internal/keeper"
	"github.com/portd/portd/internal/nstest"
)

// Orphans of the daemon are the keeper's, which waits for them.
func TestReapsOrphans(t *testing.T) {
	t.Parallel()
	p := start(t)
	p.ask(t, "orphan")
	daemon := p.daemonPID(t)
	eventually(t, "no zombies are left", func() bool {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", p.Process.Pid))
		if errors.Is(err, os.ErrNotExist) {
			t.Skip("the kernel does not list children (CONFIG_PROC_CHILDREN)")
		}
		return strings.TrimSpace(string(text)) == strconv.Itoa(daemon)
	})
}

// The first process of a container is told by the kernel of orphans that are not the daemon's too, and gets only signals that it asks for.
func TestFirstProcess(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("a pid namespace takes root")
	}
	unshare, err := exec.LookPath("unshare")
	if err != nil {
		t.Skip("there is no unshare(1)")
	}
	p := prepare(t)
	p.Args = []string{unshare, "--pid", "--fork", "--kill-child", "--mount-proc", p.Path}
	p.Path = unshare
	if out, err := exec.Command(unshare, "--pid", "--fork", "--mount-proc", "true").CombinedOutput(); err != nil {
		t.Skipf("no pid namespace can be had: %s", out)
	}
	p.begin(t)
	p.ask(t, "put s. 5")
	want := p.ask(t, "items")
	if err := unix.Kill(p.theDaemon(t), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if got := p.ask(t, "items"); got != want {
		t.Errorf("the daemon has %s, want %s", got, want)
	}
	p.ask(t, "orphan")
	first := p.theKeeper(t)
	eventually(t, "no zombies are left", func() bool {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", first))
		return err == nil && len(strings.Fields(string(text))) == 1
	})
	if err := unix.Kill(first, unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if code := p.ends(t); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

// theDaemon is the keeper's one child, by the pid that it has here.
func (p *portd) theDaemon(t *testing.T) int {
	t.Helper()
	first := p.theKeeper(t)
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", first))
	if err != nil {
		t.Skip("the kernel does not list children (CONFIG_PROC_CHILDREN)")
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

// What a service manager passes goes by way of the keeper, and what the daemon says to it too.
func TestServiceManager(t *testing.T) {
	nstest.Descriptors(t)
	p := prepare(t)
	notify, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(p.dir, "notify"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer notify.Close()
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(p.dir, "sock"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	file, err := ln.File()
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	p.ExtraFiles = []*os.File{file}
	p.Args = []string{"sh", "-c", `LISTEN_PID=$$ exec "$@"`, "sh", p.Path}
	p.Path = "/bin/sh"
	p.Env = append(p.Env, "LISTEN_FDS=1", "LISTEN_FDNAMES=listen", "NOTIFY_SOCKET="+notify.LocalAddr().String())
	p.begin(t)
	if err := notify.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	hears := func(want string) {
		t.Helper()
		text := make([]byte, 4096)
		n, err := notify.Read(text)
		if err != nil || string(text[:n]) != want {
			t.Errorf("heard %q, %v; want %q", text[:n], err, want)
		}
	}
	hears("READY=1")
	if got := p.ask(t, "items"); !strings.HasPrefix(got, "listen=") {
		t.Errorf("the daemon has %s", got)
	}
	if err := unix.Kill(p.daemonPID(t), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	p.daemonPID(t)
	hears("READY=1")
	if err := p.Process.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	hears("STOPPING=1")
	if code := p.ends(t); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

// With an FD store there is no keeper.
func TestWanted(t *testing.T) {
	for _, tt := range []struct {
		notify, store, keeper string
		want                  bool
	}{
		{"", "", "", true},
		{"/run/systemd/notify", "", "", true},
		{"/run/systemd/notify", "0", "", true},
		{"/run/systemd/notify", "512", "", false},
		{"", "512", "", true},
		{"", "", "3", false},
	} {
		t.Setenv("NOTIFY_SOCKET", tt.notify)
		t.Setenv("FDSTORE", tt.store)
		t.Setenv(keeper.EnvKeeper, tt.keeper)
		if got := keeper.Wanted(); got != tt.want {
			t.Errorf("%+v: %v", tt, got)
		}
	}
}

// Where nobody keeps anything a daemon starts all the same.
func TestConnectWithout(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	t.Setenv(keeper.EnvKeeper, "")
	s, items, err := keeper.Connect(slog.New(slog.DiscardHandler))
	if err != nil || items != nil || s.Kept() {
		t.Errorf("%v, %v, %v", items, err, s.Kept())
	}
	for _, wrong := range []string{"x", "0", "999"} {
		t.Setenv(keeper.EnvKeeper, wrong)
		if _, _, err := keeper.Connect(slog.New(slog.DiscardHandler)); err == nil {
			t.Errorf("%s=%s is taken", keeper.EnvKeeper, wrong)
		}
	}
}

// A keeper that does not give everything is told to let go of the rest, which would be in the way of what is made anew.
func TestConnectToHalf(t *testing.T) {
	nstest.Descriptors(t)
	ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(ends[1])
	if err := fdstore.GiveItems(ends[1], []fdstore.Item{{Name: "s.1", FD: 0}}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Send(ends[1], []byte("FDNAME=:"), 0); err != nil {
		t.Fatal(err)
	}
	t.Setenv(keeper.EnvKeeper, strconv.Itoa(ends[0]))
	s, items, err := keeper.Connect(slog.New(slog.DiscardHandler))
	if err != nil || len(items) != 1 {
		t.Fatalf("%v, %v", items, err)
	}
	defer s.Close()
	defer unix.Close(items[0].FD)
	for _, want := range []string{"RESET=1", "FDSTORE=1\nFDNAME=s.1\nFDPOLL=0", "RESET=0"} {
		buf := make([]byte, 4096)
		var r fdpass.Receiver
		n, fds, err := r.Recv(ends[1], buf)
		for _, fd := range fds {
			_ = unix.Close(fd)
		}
		if err != nil || string(buf[:n]) != want {
			t.Errorf("the daemon says %q, %v; want %q", buf[:n], err, want)
		}
	}
}
