package keeper_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// The file that the daemon was started from may be gone, or be one that does not work.
func TestBinary(t *testing.T) {
	t.Parallel()
	p := start(t)
	p.ask(t, "binary "+filepath.Join(p.dir, "gone"))
	pid := p.daemonPID(t)
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if p.daemonPID(t) == pid || !strings.Contains(p.log.String(), "the one that ran before is") {
		t.Error("the log does not say what was started")
	}
	p.write(t, "broken", "#!/bin/sh\nexit 6\n")
	if err := os.Chmod(filepath.Join(p.dir, "broken"), 0o700); err != nil {
		t.Fatal(err)
	}
	p.ask(t, "binary "+filepath.Join(p.dir, "broken"))
	if err := unix.Kill(p.daemonPID(t), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	p.daemonPID(t)
	if !strings.Contains(p.log.String(), "exit code 6") {
		t.Error("the other file was not tried")
	}
}

// The keeper becomes another program and goes on where it was.
func TestUpgrade(t *testing.T) {
	t.Parallel()
	p := start(t)
	p.ask(t, "put s. 50")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p.ask(t, "settle")
	before := descriptors(t, p.Process.Pid)
	for i := range 3 {
		p.ask(t, "upgrade-keeper "+self)
		eventually(t, "the log says so", func() bool { return strings.Count(p.log.String(), "another program now") == i+1 })
		p.ask(t, "put s. 1")
		p.ask(t, "settle")
		want := p.ask(t, "items")
		pid := p.daemonPID(t)
		if err := unix.Kill(pid, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if got := p.ask(t, "items"); got != want {
			t.Errorf("the daemon has %s, want %s", got, want)
		}
		if now := p.daemonPID(t); now == pid || parent(t, now) != p.Process.Pid {
			t.Errorf("the daemon is %d, child of %d; the keeper is %d", now, parent(t, now), p.Process.Pid)
		}
	}
	if after := descriptors(t, p.Process.Pid); after > before+3+2 { // the three things, and the file of the last daemon
		t.Errorf("the keeper has %d descriptors, had %d", after, before)
	}
	p.ask(t, "upgrade-keeper /nosuch/portd")
	p.ask(t, "settle")
	eventually(t, "the log says so", func() bool { return strings.Contains(p.log.String(), "the keeper stays what it is") })
	if err := p.Process.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if code := p.ends(t); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

func parent(t *testing.T, pid int) int {
	t.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	ppid, err := strconv.Atoi(fields[1])
	if err != nil {
		t.Fatal(err)
	}
	return ppid
}

// Another process takes the daemon's place, with the same keeper.
func TestSuccessor(t *testing.T) {
	t.Parallel()
	p := start(t)
	p.ask(t, "put s. 20")
	want := p.ask(t, "items")
	for range 3 {
		old := p.dial(t)
		pid, err := old.ask("succeed")
		if err != nil {
			t.Fatal(err)
		}
		eventually(t, "the successor answers", func() bool { return p.ask(t, "pid") == pid })
		if _, err := old.ask("leave"); err == nil {
			t.Error("the old one stays")
		}
		old.Close()
		eventually(t, "the old one has left", func() bool { return len(p.all(t)) == 2 })
		if got := p.ask(t, "items"); got != want {
			t.Errorf("the daemon has %s, want %s", got, want)
		}
		p.ask(t, "put x. 1")
		p.ask(t, "settle")
		want = p.ask(t, "items")
		if err := unix.Kill(p.daemonPID(t), unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if got := p.ask(t, "items"); got != want {
			t.Errorf("the daemon has %s, want %s", got, want)
		}
	}
	if !strings.Contains(p.log.String(), "another process is the daemon") {
		t.Error("the log does not say who is the daemon")
	}
	if strings.Contains(p.log.String(), "not known") {
		t.Error("how a successor ended is not known")
	}
	if err := p.Process.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if code := p.ends(t); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

// Who asks the old one to stop when it has given everything away means the new one.
func TestStopsInUpgrade(t *testing.T) {
	t.Parallel()
	p := start(t)
	p.write(t, "deaf", "")
	if err := p.Process.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the old one has heard it", func() bool {
		text, _ := os.ReadFile(filepath.Join(p.dir, "heard"))
		return len(text) > 0
	})
	if err := os.Remove(filepath.Join(p.dir, "deaf")); err != nil {
		t.Fatal(err)
	}
	if answer := p.ask(t, "succeed"); answer == "" {
		t.Error("no successor")
	}
	if code := p.ends(t); code != 0 {
		t.Errorf("exit code %d", code)
	}
	if left := p.all(t); len(left) != 0 {
		t.Errorf("%v are left over", left)
	}
}
