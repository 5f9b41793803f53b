package daemon_test

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/nstest"
	"github.com/portd/portd/internal/portdtest"
)

// A daemon that comes back after a death goes before everybody else until ports are served, and then is one among them again, with every
// thread, and so is the process that it has started meanwhile.
func TestHurriesBack(t *testing.T) {
	nstest.Descriptors(t)
	runtime.LockOSThread() // priorities are threads'
	was := nice(t, unix.Gettid())
	if err := unix.Setpriority(unix.PRIO_PROCESS, 0, was-1); err != nil {
		runtime.UnlockOSThread()
		t.Skip("this user may not raise priorities (CAP_SYS_NICE):", err)
	}
	if err := unix.Setpriority(unix.PRIO_PROCESS, 0, was); err != nil {
		t.Fatal(err)
	}
	runtime.UnlockOSThread()

	d := portdtest.New(t)
	step := filepath.Join(t.TempDir(), "step")
	k := startKept(t, d, self(t), envAct+"=daemon", envStep+"="+step)
	pid := k.pid(t, 0)
	if err := os.WriteFile(step, []byte("old hang unclaimed"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	stopped := 0
	waitFor(t, "daemon that is coming back", func() bool {
		for _, child := range children(k.Process.Pid) {
			stat, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", child))
			if child != pid && strings.Contains(string(stat), ") T ") {
				stopped = child
			}
		}
		return stopped != 0
	})
	for _, task := range tasks(t, stopped) {
		if got := nice(t, task); got != -20 {
			t.Errorf("thread %d of the daemon that is coming back has nice %d", task, got)
		}
	}
	if err := os.Remove(step); err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(stopped, unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if back := k.pid(t, pid); back != stopped {
		t.Fatalf("the daemon is %d, and %d came back", back, stopped)
	}
	for _, process := range append(children(stopped), stopped, k.Process.Pid) {
		for _, task := range tasks(t, process) {
			if got := nice(t, task); got != was {
				t.Errorf("thread %d of %d has nice %d, and %d was what it began with", task, process, got, was)
			}
		}
	}
}

func nice(t *testing.T, tid int) int {
	t.Helper()
	raw, err := unix.Getpriority(unix.PRIO_PROCESS, tid)
	if err != nil {
		t.Fatal(err)
	}
	return 20 - raw
}

func tasks(t *testing.T, pid int) (all []int) {
	t.Helper()
	dir, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, task := range dir {
		tid, _ := strconv.Atoi(task.Name())
		all = append(all, tid)
	}
	return all
}
