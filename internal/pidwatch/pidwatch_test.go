package pidwatch_test

import (
	"errors"
	"fmt"
	"log/slog"
	"math"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/pidwatch"
	"github.com/portd/portd/internal/registry"
)

const patience = 20 * time.Second

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func newWatcher(t *testing.T) *pidwatch.Watcher {
	t.Helper()
	w, err := pidwatch.New(slog.New(slog.NewTextHandler(os.Stderr, nil)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	})
	return w
}

// sleeper is a process that runs until end is called, which returns when it is reaped.
func sleeper(t *testing.T) (pid int32, cmd *exec.Cmd, end func()) {
	t.Helper()
	cmd = exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	end = sync.OnceFunc(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	t.Cleanup(end)
	return int32(cmd.Process.Pid), cmd, end
}

func find(t *testing.T, w *pidwatch.Watcher, pid int32) int64 {
	t.Helper()
	start, uid, err := w.Find(me(), pid)
	if err != nil {
		t.Fatal(err)
	}
	if start <= 0 || uid != uint32(os.Getuid()) {
		t.Errorf("process %d started at %d and is of uid %d, want %d", pid, start, uid, os.Getuid())
	}
	return start
}

func me() registry.Caller { return registry.Caller{UID: uint32(os.Getuid()), PID: int32(os.Getpid())} }

func wantGone(t *testing.T, gone <-chan struct{}) {
	t.Helper()
	select {
	case <-gone:
	case <-time.After(patience):
		t.Fatal("nobody told that it has ended")
	}
}

func TestWatch(t *testing.T) {
	pid, cmd, end := sleeper(t)
	other, _, _ := sleeper(t)
	w := newWatcher(t) // and closed before they end
	start := find(t, w, pid)
	gone := make(chan struct{}, 3)
	tell := func() { gone <- struct{}{} }
	for range 2 {
		if _, err := w.Watch(pid, start, tell); err != nil {
			t.Fatal(err)
		}
	}
	stop, err := w.Watch(pid, start, func() { t.Error("told of what it stopped waiting for") })
	if err != nil {
		t.Fatal(err)
	}
	stop()
	stop()
	if _, err := w.Watch(other, find(t, w, other), func() { t.Error("told of a process that runs") }); err != nil {
		t.Fatal(err)
	}
	// A process that was killed and not reaped is gone, though its number is not free yet.
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	wantGone(t, gone)
	wantGone(t, gone)
	if _, err := w.Watch(pid, start, tell); !errors.Is(err, registry.ErrNotFound) {
		t.Errorf("watching what has ended: got %v, want ErrNotFound", err)
	}
	end()
	if _, _, err := w.Find(me(), pid); !errors.Is(err, registry.ErrNotFound) {
		t.Errorf("finding what is reaped: got %v, want ErrNotFound", err)
	}
}

// The number alone is not the process.
func TestAnotherWithTheNumber(t *testing.T) {
	w := newWatcher(t)
	pid, _, _ := sleeper(t)
	start := find(t, w, pid)
	if _, err := w.Watch(pid, start-1, func() {}); !errors.Is(err, registry.ErrNotFound) {
		t.Errorf("one that started before: got %v, want ErrNotFound", err)
	}
	if _, err := w.Watch(pid, start, func() {}); err != nil {
		t.Error(err)
	}
}

func TestFindRefuses(t *testing.T) {
	w := newWatcher(t)
	for _, pid := range []int32{math.MaxInt32, -1, 0} {
		if _, _, err := w.Find(me(), pid); !errors.Is(err, registry.ErrNotFound) {
			t.Errorf("pid %d: got %v, want ErrNotFound", pid, err)
		}
	}
	hidden := me()
	hidden.PID = 0 // as the kernel says it of a caller whose pid namespace is not ours or below it
	if _, _, err := w.Find(hidden, int32(os.Getpid())); !errors.Is(err, registry.ErrUnsupported) {
		t.Errorf("a caller that cannot be seen: got %v, want ErrUnsupported", err)
	}
}

// Where no descriptor is left that is said, and harms nothing.
func TestOutOfDescriptors(t *testing.T) {
	pid, _, _ := sleeper(t)
	w := newWatcher(t)
	start := find(t, w, pid)
	var whole unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &whole); err != nil {
		t.Fatal(err)
	}
	none := whole
	none.Cur = 3
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &none); err != nil {
		t.Fatal(err)
	}
	_, err := w.Watch(pid, start, func() {})
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &whole); err != nil {
		t.Fatal(err)
	}
	if !errors.Is(err, registry.ErrExhausted) {
		t.Errorf("got %v, want ErrExhausted", err)
	}
	if _, err := w.Watch(pid, start, func() {}); err != nil {
		t.Errorf("when there are some again: %v", err)
	}
}

// A caller in a container has numbers of its own.
func TestOtherPidNamespace(t *testing.T) {
	w := newWatcher(t)
	cmd := exec.Command("unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child", "sh", "-c", "echo in; sleep 1000")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Skipf("needs unshare(1): %v", err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	if n, err := out.Read(make([]byte, 10)); n == 0 {
		t.Skipf("may not make a pid namespace: %v", err)
	}
	children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", cmd.Process.Pid))
	if err != nil {
		t.Skipf("cannot see who is in it: %v", err)
	}
	inside := me()
	if _, err := fmt.Sscan(string(children), &inside.PID); err != nil {
		t.Fatal(err)
	}
	if _, _, err := w.Find(inside, int32(os.Getpid())); !errors.Is(err, registry.ErrUnsupported) {
		t.Errorf("got %v, want ErrUnsupported", err)
	}
}

// Many processes need no more goroutines than one, and those that nobody waits for any more no descriptors.
func TestManyAtOnce(t *testing.T) {
	w := newWatcher(t)
	const many = 100
	before, files := runtime.NumGoroutine(), descriptors(t)
	var ends []func()
	gone := make(chan struct{}, many)
	for range many {
		pid, _, end := sleeper(t)
		ends = append(ends, end)
		if _, err := w.Watch(pid, find(t, w, pid), func() { gone <- struct{}{} }); err != nil {
			t.Fatal(err)
		}
	}
	if n := runtime.NumGoroutine() - before; n > many/2 {
		t.Errorf("%d goroutines for %d processes", n, many)
	}
	for _, end := range ends {
		end()
	}
	for range many {
		wantGone(t, gone)
	}
	if n := descriptors(t); n > files {
		t.Errorf("%d descriptors are open, %d were before", n, files)
	}
}

func descriptors(t *testing.T) int {
	t.Helper()
	all, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(all)
}

// TestCommand asks for the name of a process, of another that has started at another time, and of one that has ended.
func TestCommand(t *testing.T) {
	t.Parallel()
	w := newWatcher(t)
	pid, _, end := sleeper(t)
	start := find(t, w, pid)
	if got := w.Command(pid, start); got != "sleep" {
		t.Errorf("it is called %q, want sleep", got)
	}
	if got := w.Command(pid, start+1); got != "" {
		t.Errorf("another that has had its number is called %q", got)
	}
	end()
	if got := w.Command(pid, start); got != "" {
		t.Errorf("after its end it is called %q", got)
	}
}
