package fdbag_test

import (
	"errors"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/fdbag"
	"github.com/portd/portd/internal/fdpass"
	"github.com/portd/portd/internal/nstest"
)

const envAct = "FDBAG_TEST_ACT"

func TestMain(m *testing.M) {
	if act := os.Getenv(envAct); act != "" {
		os.Exit(perform(act))
	}
	nstest.Main(m)
}

// pipes are n descriptors of as many pipes: the ends to read from, with i bytes in the i-th.
func pipes(t *testing.T, n int) []int {
	t.Helper()
	fds := make([]int, n)
	for i := range fds {
		var p [2]int
		if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
			t.Fatal(err)
		}
		if _, err := unix.Write(p[1], make([]byte, i+1)); err != nil {
			t.Fatal(err)
		}
		_ = unix.Close(p[1])
		fds[i] = p[0]
	}
	return fds
}

// wantPipes reads the pipes empty and closes them.
func wantPipes(t *testing.T, fds []int, want int) {
	t.Helper()
	if len(fds) != want {
		t.Errorf("%d descriptors, want %d", len(fds), want)
	}
	buf := make([]byte, fdbag.Most+1)
	for i, fd := range fds {
		if n, err := unix.Read(fd, buf); n != i+1 || err != nil {
			t.Errorf("descriptor %d has %d bytes (%v), want %d", i, n, err, i+1)
		}
	}
	closeAll(fds)
}

func closeAll(fds []int) {
	for _, fd := range fds {
		_ = unix.Close(fd)
	}
}

func TestBag(t *testing.T) {
	for _, n := range []int{1, 2, fdbag.Most} {
		nstest.Descriptors(t)
		fds := pipes(t, n)
		bag, err := fdbag.Pack(fds, nil)
		if err != nil {
			t.Fatal(err)
		}
		closeAll(fds)
		if bag.Len() != n {
			t.Errorf("Len %d, want %d", bag.Len(), n)
		}
		first, err := bag.Open()
		if err != nil {
			t.Fatal(err)
		}
		closeAll(first)
		again, err := bag.Open() // all is still in it
		if err != nil {
			t.Fatal(err)
		}
		for _, fd := range again {
			if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
				t.Fatalf("flags %x (%v), want close-on-exec", flags, err)
			}
		}
		if err := bag.Close(); err != nil {
			t.Error(err)
		}
		wantPipes(t, again, n)
	}
	for _, n := range []int{0, fdbag.Most + 1} {
		if _, err := fdbag.Pack(make([]int, n), nil); !errors.Is(err, unix.EINVAL) {
			t.Errorf("pack %d: %v, want EINVAL", n, err)
		}
	}
	if _, err := fdbag.Pack([]int{-1}, nil); !errors.Is(err, unix.EBADF) {
		t.Errorf("pack what is not open: %v, want EBADF", err)
	}
}

// TestParkedPort: a port in a bag is as taken as before, and free as soon as the bag is closed.
func TestParkedPort(t *testing.T) {
	nstest.Need(t)
	nstest.Descriptors(t)
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}, Port: 4711}); err != nil {
		t.Fatal(err)
	}
	bag, err := fdbag.Pack([]int{fd}, nil)
	if err != nil {
		t.Fatal(err)
	}
	closeAll([]int{fd})
	if ln, err := net.Listen("tcp", "127.0.0.1:4711"); !errors.Is(err, unix.EADDRINUSE) {
		t.Errorf("listen on a parked port: %v, want EADDRINUSE", err)
		if err == nil {
			ln.Close()
		}
	}
	if err := bag.Close(); err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:4711")
	if err != nil {
		t.Fatalf("after the bag is closed: %v", err)
	}
	ln.Close()
}

// TestShort opens a bag with too few free numbers: it says so, leaves none open, and nothing is lost.
func TestShort(t *testing.T) { act(t, "short", nil) }

// TestFull packs as a user who may not have more descriptors in messages than he may have open.
func TestFull(t *testing.T) {
	if os.Geteuid() != 0 {
		act(t, "full", nil)
		return
	}
	act(t, "full", &syscall.Credential{Uid: 65534, Gid: 65534})
}

// act runs the test binary as another process, for what it does to its limits.
func act(t *testing.T, name string, as *syscall.Credential) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), envAct+"="+name)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: as}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}

func perform(act string) int {
	fail := func(text string, err error) int {
		os.Stderr.WriteString(text + ": " + errors.Join(err).Error())
		return 1
	}
	var p [2]int
	if err := unix.Pipe(p[:]); err != nil {
		return fail("pipe", err)
	}
	fds := make([]int, 100)
	for i := range fds {
		fds[i] = p[0]
	}
	limit := func(n uint64) error { return unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: n, Max: 1000}) }
	switch act {
	case "short":
		bag, err := fdbag.Pack(fds, nil)
		if err != nil {
			return fail("pack", err)
		}
		if err := limit(50); err != nil {
			return fail("limit", err)
		}
		for range 3 {
			if _, err := bag.Open(); !errors.Is(err, fdpass.ErrFDsTruncated) {
				return fail("open with 50 numbers", errors.Join(err, errors.New("want ErrFDsTruncated")))
			}
		}
		if err := limit(200); err != nil {
			return fail("limit", err)
		}
		if got, err := bag.Open(); len(got) != 100 {
			return fail("open with 200 numbers", errors.Join(err, errors.New("want 100 descriptors")))
		}
	case "full":
		if err := limit(150); err != nil {
			return fail("limit", err)
		}
		for range 10 {
			if _, err := fdbag.Pack(fds, nil); err == nil {
				continue
			} else if !errors.Is(err, fdbag.ErrFull) || !strings.Contains(err.Error(), "RLIMIT_NOFILE") {
				return fail("pack", err)
			}
			return 0
		}
		return fail("pack 1000", errors.New("it is never full"))
	}
	return 0
}

func BenchmarkBag(b *testing.B) {
	fds := make([]int, fdbag.Most)
	for i := range fds {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			b.Fatal(err)
		}
		fds[i] = fd
	}
	for b.Loop() { // into a bag and out again
		bag, err := fdbag.Pack(fds, nil)
		if err != nil {
			b.Fatal(err)
		}
		closeAll(fds)
		if fds, err = bag.Open(); err != nil {
			b.Fatal(err)
		}
		if err := bag.Close(); err != nil {
			b.Fatal(err)
		}
	}
	closeAll(fds)
}
