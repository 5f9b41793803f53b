package sockdiag_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/portd/portd/internal/nstest"
	"github.com/portd/portd/internal/sockdiag"
	"golang.org/x/sys/unix"
)

// holder starts a process that goes by the name comm and has fd open until the test ends; it returns its pid.
func holder(t *testing.T, fd int, comm string, attr *syscall.SysProcAttr, env ...string) int {
	t.Helper()
	dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	file := os.NewFile(uintptr(dup), "socket")
	defer file.Close()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(append(os.Environ(), "SOCKDIAG_COMM="+comm), env...)
	cmd.ExtraFiles = []*os.File{file}
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = attr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		stdin.Close()
		_ = cmd.Wait()
	})
	if line, err := bufio.NewReader(stdout).ReadString('\n'); line != "ready\n" {
		t.Fatalf("holder says %q, %v", line, err)
	}
	return cmd.Process.Pid
}

func inode(t *testing.T, fd int) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		t.Fatal(err)
	}
	return st.Ino
}

func self(t *testing.T) sockdiag.Process {
	t.Helper()
	comm, err := os.ReadFile("/proc/self/comm")
	if err != nil {
		t.Fatal(err)
	}
	uid := uint32(os.Geteuid())
	return sockdiag.Process{PID: os.Getpid(), UID: uid, Viewer: uid, Command: string(comm[:len(comm)-1])}
}

// noPlace leaves out where the processes are, which is where the tests are run.
var noPlace = cmpopts.IgnoreFields(sockdiag.Process{}, "Cgroup", "Container", "Unit")

func TestOwners(t *testing.T) {
	nstest.Descriptors(t)
	shared, alone := open(t, stream, 0, v4), open(t, datagram, 0, v4)
	uid := uint32(os.Geteuid())
	// A name that would move a terminal's cursor, and bytes that are no UTF-8.
	pid := holder(t, shared, "a\x1b[2J\xff\nb ü", nil)
	got, _, err := sockdiag.Owners(t.Context(), inode(t, shared), inode(t, alone), 0)
	if err != nil {
		t.Fatal(err)
	}
	me := self(t)
	want := map[uint64][]sockdiag.Process{
		inode(t, shared): {me, {PID: pid, UID: uid, Viewer: uid, Command: "a?[2J??b ü"}},
		inode(t, alone):  {me},
	}
	if pid < me.PID { // pids wrap around
		want[inode(t, shared)] = []sockdiag.Process{want[inode(t, shared)][1], me}
	}
	if diff := cmp.Diff(want, got, noPlace); diff != "" {
		t.Error(diff)
	}
}

// The process that keeps portd's descriptors open is not named beside portd. Anybody may call himself so, and is named where he alone
// has a socket.
func TestOwnersWithATableHolder(t *testing.T) {
	shared, passed := open(t, stream, 0, v4), open(t, stream, 0, v4)
	holder(t, shared, "portd-holder", nil)
	pid := holder(t, passed, "portd-holder", nil)
	ours, theirs := inode(t, shared), inode(t, passed)
	if fd, err := unix.Open(os.DevNull, unix.O_CLOEXEC, 0); err != nil || unix.Dup3(fd, passed, unix.O_CLOEXEC) != nil || unix.Close(fd) != nil {
		t.Fatal("cannot put another file in its place", err)
	}
	got, _, err := sockdiag.Owners(t.Context(), ours, theirs)
	if err != nil {
		t.Fatal(err)
	}
	uid := uint32(os.Geteuid())
	want := map[uint64][]sockdiag.Process{
		ours:   {self(t)},
		theirs: {{PID: pid, UID: uid, Viewer: uid, Command: "portd-holder"}},
	}
	if diff := cmp.Diff(want, got, noPlace); diff != "" {
		t.Error(diff)
	}
}

func TestOwnersOfOtherUsers(t *testing.T) {
	fd := open(t, stream, 0, v4)
	other := holder(t, fd, "other", nstest.As(t, 65533, 65533))
	dropped := holder(t, fd, "dropped", nil, "SOCKDIAG_DROP=1")
	got, _, err := sockdiag.Owners(t.Context(), inode(t, fd))
	if err != nil {
		t.Fatal(err)
	}
	processes := map[int]sockdiag.Process{}
	for _, p := range got[inode(t, fd)] {
		processes[p.PID] = p
	}
	want := map[int]sockdiag.Process{
		os.Getpid(): self(t),
		other:       {PID: other, UID: 65533, Viewer: 65533, Command: "other"},
		dropped:     {PID: dropped, UID: 65533, Viewer: 0, Command: "dropped"},
	}
	if diff := cmp.Diff(want, processes, noPlace); diff != "" {
		t.Error(diff)
	}
}

// A process in a real control group, as systemd and Docker would have made it.
func TestOwnersByControlGroup(t *testing.T) {
	const id = "3f2a91c0d5e7b8a64f10293847566c7d8e9fa0b1c2d3e4f5061728394a5b6c7d"
	fd := open(t, stream, 0, v4)
	for _, want := range []sockdiag.Process{
		{Cgroup: fmt.Sprintf("/portd%d.slice/portd-test.service", os.Getpid()), Unit: "portd-test.service"},
		{Cgroup: fmt.Sprintf("/portd%d.slice/docker-%s.scope", os.Getpid(), id), Unit: "docker-" + id + ".scope", Container: id},
	} {
		want.PID, want.UID, want.Viewer, want.Command = holder(t, fd, "grouped", nil), uint32(os.Geteuid()), uint32(os.Geteuid()), "grouped"
		group(t, want.PID, want.Cgroup)
		owners, _, err := sockdiag.Owners(t.Context(), inode(t, fd))
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Contains(owners[inode(t, fd)], want) {
			t.Errorf("owners are %+v, want %+v among them", owners[inode(t, fd)], want)
		}
	}
}

// group puts a process into a new control group until the test ends: a unified one, or one of systemd's hierarchy, where that
// is how the host has them.
func group(t *testing.T, pid int, path string) {
	t.Helper()
	for _, root := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified", "/sys/fs/cgroup/systemd"} {
		if _, err := os.Stat(filepath.Join(root, "cgroup.procs")); err != nil {
			continue
		}
		if err := os.MkdirAll(root+path, 0o755); err != nil {
			t.Skipf("needs to make a control group: %v", err)
		}
		t.Cleanup(func() {
			// A group that has a process is not removed.
			_ = os.WriteFile(root+"/cgroup.procs", []byte(strconv.Itoa(pid)), 0)
			for dir := path; dir != "/"; dir = filepath.Dir(dir) {
				if err := os.Remove(root + dir); err != nil && filepath.Dir(dir) != "/" {
					t.Errorf("remove the control group: %v", err)
				}
			}
		})
		if err := os.WriteFile(root+path+"/cgroup.procs", []byte(strconv.Itoa(pid)), 0); err != nil {
			t.Skipf("needs to put a process into a control group: %v", err)
		}
		return
	}
	t.Skip("needs control groups in /sys/fs/cgroup")
}

func TestOwnersSaysWhatIsHidden(t *testing.T) {
	var before, after []string
	var complete bool
	// Other users' processes come and go; look until nothing changed meanwhile.
	for range 100 {
		before = hidden(t)
		var err error
		if _, complete, err = sockdiag.Owners(t.Context()); err != nil {
			t.Fatal(err)
		}
		if after = hidden(t); slices.Equal(before, after) {
			break
		}
	}
	if complete != (len(before) == 0) {
		t.Errorf("complete = %v, hidden are %v", complete, before)
	}
}

// hidden lists the processes whose descriptors this process may not see.
func hidden(t *testing.T) (pids []string) {
	t.Helper()
	dirs, err := filepath.Glob("/proc/[0-9]*/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range dirs {
		entries, err := os.ReadDir(dir)
		if len(entries) > 0 {
			_, err = os.Readlink(filepath.Join(dir, entries[0].Name()))
		}
		if errors.Is(err, fs.ErrPermission) {
			pids = append(pids, dir)
		}
	}
	return pids
}

func TestOwnersErrors(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := sockdiag.Owners(ctx, 1); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// Processes and descriptors come and go while Owners looks.
func TestOwnersInACrowd(t *testing.T) {
	fd := open(t, stream, 0, v4)
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
			}
			_ = exec.Command("/proc/self/exe", "-test.run=^$").Run()
		}
	})
	wg.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
			}
			if dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 100+rand.IntN(50)); err == nil {
				unix.Close(dup)
			}
		}
	})
	for range 50 {
		got, _, err := sockdiag.Owners(t.Context(), inode(t, fd))
		if err != nil {
			t.Error(err)
		}
		// A child has it between fork and exec.
		found := false
		for _, p := range got[inode(t, fd)] {
			found = found || p.PID == os.Getpid()
		}
		if !found {
			t.Errorf("owners %v do not include us", got)
		}
	}
	close(done)
	wg.Wait()
}
