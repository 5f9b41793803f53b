package nstest

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

// Descriptors fails t if it ends with descriptors that were not open when Descriptors was called, and names them. Call it first,
// so that it looks after every other Cleanup; not in a test that runs in parallel with others, whose descriptors it would
// count. Closing that is still in flight has five seconds.
func Descriptors(t testing.TB) {
	t.Helper()
	descriptors(t, 5*time.Second)
}

func descriptors(t testing.TB, patience time.Duration) {
	t.Helper()
	// The first descriptor that can be polled makes Go open its epoll set, for good: let that be before the count.
	if r, w, err := os.Pipe(); err == nil {
		_ = r.Close()
		_ = w.Close()
	}
	before, err := openDescriptors()
	if err != nil {
		t.Fatalf("list descriptors: %v", err)
	}
	t.Cleanup(func() {
		t.Helper()
		for deadline := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
			after, err := openDescriptors()
			if err != nil {
				t.Errorf("list descriptors: %v", err)
				return
			}
			leaked := surplus(before, after)
			if len(leaked) == 0 {
				return
			}
			if time.Now().After(deadline) {
				t.Errorf("%d descriptors left open: %s", len(leaked), strings.Join(leaked, ", "))
				return
			}
		}
	})
}

// openDescriptors maps what is open, as readlink spells it (socket:[4711]), to the descriptors that refer to it.
func openDescriptors() (map[string][]string, error) {
	const dir = "/proc/self/fd"
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	open := make(map[string][]string, len(entries))
	for _, e := range entries {
		to, err := os.Readlink(dir + "/" + e.Name())
		// ReadDir's own descriptor is in the list and gone by now.
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		open[to] = append(open[to], e.Name())
	}
	return open, nil
}

// surplus names what after has more of than before. It counts by name, since all pidfds are called the same.
func surplus(before, after map[string][]string) []string {
	var more []string
	for to, fds := range after {
		for _, fd := range fds[min(len(fds), len(before[to])):] {
			more = append(more, fmt.Sprintf("%s %s", fd, to))
		}
	}
	slices.Sort(more)
	return more
}
