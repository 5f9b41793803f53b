package starvation_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/client"
)

// memoryGroup makes a memory cgroup with a limit, of whichever version there is here.
func memoryGroup(t *testing.T, bytes int64) (dir string) {
	t.Helper()
	var err error
	for _, v := range []struct{ top, limit string }{
		{"/sys/fs/cgroup/memory", "memory.limit_in_bytes"},
		{"/sys/fs/cgroup", "memory.max"},
	} {
		dir = filepath.Join(v.top, fmt.Sprintf("portd-starvation-%d", os.Getpid()))
		if err = os.Mkdir(dir, 0o755); err != nil {
			continue
		}
		t.Cleanup(func() {
			eventually(t, "the cgroup is empty", func() bool { return !errors.Is(unix.Rmdir(dir), unix.EBUSY) })
		})
		if err = os.WriteFile(filepath.Join(dir, v.limit), fmt.Appendln(nil, bytes), 0); err == nil {
			return dir
		}
	}
	t.Skipf("needs a memory cgroup of its own: %v", err)
	return ""
}

// portd has little memory, and clients send requests that take a multiple of it together. None is needed for long: portd is not ended
// for it.
func TestLittleMemory(t *testing.T) {
	t.Parallel()
	group := memoryGroup(t, 128<<20)
	p := prepare(t, "/proc/self/exe", group)
	p.Env = append(p.Env, envAct+"=grouped")
	p.begin(t)
	const askers, rounds, size = 10, 2, 900 << 10
	asked := make(chan error)
	for range askers {
		c := p.Client(t)
		go func() {
			for range rounds {
				if _, err := reserve(within(t, 20*time.Second), c, strings.Repeat("x", size)); !errors.Is(err, client.ErrInvalid) {
					asked <- fmt.Errorf("a name of %d bytes: %.100v", size, err)
					return
				}
			}
			asked <- nil
		}()
	}
	for range askers {
		if err := <-asked; err != nil {
			t.Error(err)
		}
	}
	t.Logf("%d MB", p.memory(t)>>20)
	if st := p.status(t, p.Client(t)); int(st.GetPid()) != p.pid {
		t.Error("it has been started again")
	}
}
