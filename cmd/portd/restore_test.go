package main

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/client"
	"github.com/portd/portd/internal/nstest"
	pb "github.com/portd/portd/proto/portd/v1"
)

// A state that is damaged comes back from the newest copy that is whole, or from a backup. What cannot be restored, or not now, or not by this user, is
// said with the next step, and changes nothing.
func TestRestore(t *testing.T) {
	nstest.Need(t)
	p := prepare(t)
	path := filepath.Join(p.State, "portd.db")
	p.says(t, 1, "portd: there is no copy of "+path+" that portd has made by itself; nothing is changed", "--restore-newest")

	one, two := filepath.Join(p.Daemon.Dir, "one"), filepath.Join(p.Daemon.Dir, "two")
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "portd is ready", func() bool { return strings.Contains(p.log.String(), `"msg":"ready"`) })
	p.reserve(t, "web")
	p.backup(t, one)
	p.reserve(t, "db")
	p.backup(t, two)
	p.says(t, 1, "restore it while it does, by portctl --socket "+p.Socket+" restore "+one+"; nothing is changed", "--restore", one)
	p.says(t, 1, "with its --socket; nothing is changed", "--restore", one, "--socket", filepath.Join(p.Daemon.Dir, "run2", "portd.sock"))
	if now := p.status(t).GetReservations(); now != 2 {
		t.Errorf("%d reservations, want 2", now)
	}
	p.stop(t)

	file, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	copy(file[2*os.Getpagesize():], bytes.Repeat([]byte("x"), 4*os.Getpagesize()))
	older, newer := path+".copy-20260101T000000.000Z", path+".copy-20260102T000000.000Z"
	for to, b := range map[string][]byte{path: file, older: read(t, one), newer: read(t, two)[:1000]} {
		if err := os.WriteFile(to, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	p.says(t, 1, "portd --restore-newest goes back to "+older+", as of ", "--no-keeper")
	p.says(t, 1, newer+": damaged: it is cut off: it should have ", "--restore", newer)
	if os.Geteuid() == 0 {
		cmd := p.command("--restore-newest")
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		out, err := cmd.CombinedOutput()
		var exit *exec.ExitError
		switch {
		case err != nil && !errors.As(err, &exit):
			t.Logf("not tried as another user: %v", err)
		case err == nil || !strings.Contains(string(out), "belongs to "):
			t.Errorf("another user: %v: %s", err, out)
		}
	}
	if got := read(t, path); !bytes.Equal(got, file) {
		t.Error("the state is changed")
	}
	p.says(t, 0, "restored from "+older+", ", "--restore-newest")
	if got := read(t, path+"-before-restore"); !bytes.Equal(got, file) {
		t.Error("what was there is not kept")
	}

	again := p.again(t)
	if now := again.status(t).GetReservations(); now != 1 {
		t.Errorf("%d reservations, want 1", now)
	}
	again.stop(t)
	if err := os.Truncate(older, 1000); err != nil {
		t.Fatal(err)
	}
	p.says(t, 1, "portd: no copy of "+path+" is whole: "+newer+": damaged: ", "--restore-newest")
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// command is another portd, in the same places where the arguments say nothing else.
func (p *portd) command(args ...string) *exec.Cmd {
	cmd := exec.Command(p.Path, append([]string{"--socket", p.Socket, "--state", p.State, "--policy", p.Policy}, args...)...)
	cmd.Env = append(os.Environ(), envMain+"=1")
	return cmd
}

// says makes sure of how another portd ends and what it says.
func (p *portd) says(t *testing.T, code int, want string, args ...string) {
	t.Helper()
	cmd := p.command(args...)
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState == nil {
		t.Fatal(err)
	}
	if cmd.ProcessState.ExitCode() != code || !strings.Contains(string(out), want) {
		t.Errorf("portd %q ends with %d and says %q, want %d and %q", args, cmd.ProcessState.ExitCode(), out, code, want)
	}
}

// again is one that is started anew.
func (p *portd) again(t *testing.T) *portd {
	t.Helper()
	next := &portd{Daemon: p.Daemon, log: &lines{}}
	next.Cmd = p.command("--no-keeper")
	next.Stderr = next.log
	if err := next.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = next.Process.Kill(); _ = next.Wait() })
	eventually(t, "portd is ready", func() bool { return strings.Contains(next.log.String(), `"msg":"ready"`) })
	return next
}

func (p *portd) stop(t *testing.T) {
	t.Helper()
	if err := p.Process.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if code := p.ends(t); code != 0 {
		t.Errorf("it ends with %d", code)
	}
}

func (p *portd) reserve(t *testing.T, name string) {
	t.Helper()
	ep, err := client.ParseSpec("tcp/any")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Client(t).Reservations.Reserve(t.Context(), &pb.ReserveRequest{Name: name, Spec: &pb.ReservationSpec{Endpoints: []*pb.EndpointSpec{ep}}}); err != nil {
		t.Fatal(err)
	}
}

func (p *portd) backup(t *testing.T, file string) {
	t.Helper()
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := p.Client(t).Backup(t.Context(), f); err != nil {
		t.Fatal(err)
	}
}
