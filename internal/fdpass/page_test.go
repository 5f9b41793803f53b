package fdpass_test

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/portd/portd/internal/fdpass"
	"github.com/portd/portd/internal/nstest"
	"golang.org/x/sys/unix"
)

func TestSharedPage(t *testing.T) {
	nstest.Descriptors(t)
	for _, size := range []int{1, 64, 4096, 10000} {
		fd, ours, err := fdpass.SealedPage(size)
		if err != nil {
			t.Fatal(err)
		}
		theirs, err := fdpass.MapPage(fd, size)
		if err != nil {
			t.Fatal(err)
		}
		unix.Close(fd)
		ours[size-1] = 7
		if len(ours) != size || len(theirs) != size || theirs[size-1] != 7 {
			t.Errorf("size %d: mapped %d and %d, last byte %d", size, len(ours), len(theirs), theirs[size-1])
		}
		for _, mem := range [][]byte{ours, theirs} {
			if err := unix.Munmap(mem); err != nil {
				t.Error(err)
			}
		}
	}
}

func TestSharedPageKeepsItsSize(t *testing.T) {
	const size = 4096
	fd, mem, err := fdpass.SealedPage(size)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(mem)
	defer unix.Close(fd)
	// A second description, as another process could open it.
	again, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", fd), unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(again)
	for _, fd := range []int{fd, again} {
		for _, to := range []int64{0, size - 1, size + 1, 1 << 20} {
			if err := unix.Ftruncate(fd, to); err != unix.EPERM {
				t.Errorf("ftruncate to %d: %v", to, err)
			}
		}
		// Nor can the other end add a seal that takes our writing away.
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_FUTURE_WRITE); err != unix.EPERM {
			t.Errorf("another seal: %v", err)
		}
	}
	if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
		t.Errorf("not close-on-exec (%v)", err)
	}
	mem[0], mem[size-1] = 1, 1 // still there
	if _, _, err := fdpass.SealedPage(0); !errors.Is(err, unix.EINVAL) {
		t.Errorf("page of no size: %v", err)
	}
}

func TestMapPageRefuses(t *testing.T) {
	nstest.Descriptors(t)
	const size = 4096
	memfd := func(size int64, seals int) int {
		fd, err := unix.MemfdCreate("test", unix.MFD_ALLOW_SEALING|unix.MFD_CLOEXEC)
		if err != nil {
			t.Fatal(err)
		}
		if err := unix.Ftruncate(fd, size); err != nil {
			t.Fatal(err)
		}
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, seals); err != nil {
			t.Fatal(err)
		}
		return fd
	}
	const shut = unix.F_SEAL_SHRINK | unix.F_SEAL_GROW
	tests := []struct {
		name string
		fd   int
		want string
	}{
		{"no seals", memfd(size, 0), "not sealed"},
		{"may shrink", memfd(size, unix.F_SEAL_GROW), "not sealed"},
		{"may grow", memfd(size, unix.F_SEAL_SHRINK), "not sealed"},
		{"too small", memfd(size-1, shut), "it has 4095 bytes, want 4096"},
		{"too large", memfd(size+1, shut), "it has 4097 bytes, want 4096"},
		{"not writable", memfd(size, shut|unix.F_SEAL_WRITE), "operation not permitted"},
		{"none", -1, "bad file descriptor"},
		{"a file", regularFile(t, size), "seal"},
	}
	for _, tt := range tests {
		mem, err := fdpass.MapPage(tt.fd, size)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %d bytes, %v; want %q", tt.name, len(mem), err, tt.want)
		}
		if tt.fd >= 0 {
			unix.Close(tt.fd)
		}
	}
}

func regularFile(t *testing.T, size int64) int {
	t.Helper()
	path := t.TempDir() + "/page"
	if err := os.WriteFile(path, make([]byte, size), 0o600); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	return fd
}
