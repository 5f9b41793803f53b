package client

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// The highest numbers tell how near the limit is, whatever is free below.
func TestNearTheLimit(t *testing.T) {
	var was unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
		t.Fatal(err)
	}
	const limit = 1024
	if was.Cur < limit {
		t.Skipf("needs %d descriptors", limit)
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: limit, Max: was.Max}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
			t.Error(err)
		}
	})
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	var open []int
	t.Cleanup(func() { closeEach(open) })
	fill := func(to int) {
		t.Helper()
		for {
			fd, err := unix.FcntlInt(null.Fd(), unix.F_DUPFD_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			open = append(open, fd)
			if fd >= to {
				return
			}
		}
	}
	near := func(what string, want bool) {
		t.Helper()
		if got := new(descriptors).scarce(); got != want {
			t.Errorf("%s: near the limit is %v", what, got)
		}
	}
	near("with few open", false)
	fill(limit / 2)
	near("with half of them open", false)
	fill(limit - plenty/2)
	near("with a few left", true)
	closeEach(open[:10]) // low ones, which are what the next connections get
	open = open[10:]
	near("with a few left at either end", true)
	closeEach(open)
	open = nil
	near("when they are closed", false)
}

func BenchmarkDescriptors(b *testing.B) {
	var d descriptors
	for b.Loop() {
		d.free()
	}
}
