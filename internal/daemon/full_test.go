package daemon_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/nstest"
	"github.com/portd/portd/internal/portdtest"
)

// onDisk is a portd that is about to be started with its state on a disk of its own, and once more when it has ended.
func onDisk(t *testing.T, size string) *kept {
	t.Helper()
	nstest.Need(t)
	d := portdtest.New(t)
	if err := os.Mkdir(d.State, 0o700); err != nil {
		t.Fatal(err)
	}
	if out, err := ownMounts(exec.Command("mount", "-t", "tmpfs", "tmpfs", d.State)).CombinedOutput(); err != nil {
		t.Skipf("needs to mount a small file system: %v: %s", err, out)
	}
	k := &kept{d: d, log: &buffer{}, Cmd: ownMounts(exec.Command("sh", "-c", `mount -t tmpfs -o mode=700,size=$0 tmpfs "$1" && shift && { "$@"; echo "ended: $?" >&2; exec "$@"; }`,
		size, d.State, binary(t), "--no-keeper", "--socket", d.Socket, "--state", d.State, "--policy", d.Policy))}
	k.Stderr = k.log
	if err := k.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = k.Process.Kill(); _ = k.Wait() })
	return k
}

// ownMounts has what a command mounts be there for that one alone.
func ownMounts(cmd *exec.Cmd) *exec.Cmd {
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	return cmd
}

// On a disk that is too small for a state a new portd says which disk that is, what it takes, and what to do. As much as it says is enough.
func TestTinyDisk(t *testing.T) {
	small := onDisk(t, "512k")
	if err := small.Wait(); err == nil {
		t.Error("it starts")
	}
	for _, want := range []string{"the disk at " + small.d.State, "of 512 KiB are free, and a new state takes 2.0 MiB", "another disk with --state", "ended: 1"} {
		if !strings.Contains(small.log.String(), want) {
			t.Errorf("it does not say %q: %s", want, small.log)
		}
	}
	if n := strings.Count(small.log.String(), "bring back the reservations"); n > 0 {
		t.Errorf("there were none to bring back: %s", small.log)
	}
	enough := onDisk(t, "2m")
	pid := enough.pid(t, 0)
	reserve(t, enough.d.Client(t), "web", "tcp/8080")
	if err := unix.Kill(pid, unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	enough.pid(t, pid)
	if now := enough.status(); now.GetReservations() != 1 {
		t.Errorf("after a stop: %v", now)
	}
}

// A disk that is full when portd stops has taken nothing from it: it ends well and says so, and what was answered is there at the next start.
func TestStopWhereNoRoomIsLeft(t *testing.T) {
	k := onDisk(t, "8m")
	pid := k.pid(t, 0)
	c := k.d.Client(t)
	reserve(t, c, "web", "tcp/8080")
	ballast, err := os.Create(fmt.Sprintf("/proc/%d/root%s", pid, filepath.Join(k.d.State, "ballast")))
	if err != nil {
		t.Fatal(err)
	}
	defer ballast.Close()
	for err == nil {
		_, err = ballast.Write(make([]byte, 4096))
	}
	for i := range 30 { // more than there is room for in pages of the file that are free
		reserve(t, c, fmt.Sprintf("more-%d-%s", i, strings.Repeat("x", 50)), fmt.Sprintf("tcp/%d", 8081+i))
	}
	if err := unix.Kill(pid, unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	k.pid(t, pid)
	if now := k.status(); now.GetReservations() != 31 {
		t.Errorf("after a stop: %v", now)
	}
	if log := k.log.String(); !strings.Contains(log, "ended: 0") || !strings.Contains(log, "the next start has them") || strings.Contains(log, "portd cannot go on") {
		t.Errorf("it says:\n%s", log)
	}
}
