package fdpass_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/portd/portd/internal/fdpass"
	"github.com/portd/portd/internal/nstest"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) {
	if act := os.Getenv("FDPASS_ACT"); act != "" {
		perform(act)
		return
	}
	os.Exit(m.Run())
}

// pair returns the two ends of a socket of kind; they block, as a duplicate's holder could make them at any time.
func pair(t testing.TB, kind int) (a, b int) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		unix.Close(fds[0])
		unix.Close(fds[1])
	})
	return fds[0], fds[1]
}

// half is one end of a pair whose other end has sent hello and is closed.
func half(t testing.TB) int {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fds[0]) })
	var s fdpass.Sender
	if err := s.Send(fds[1], []byte("hello"), nil); err != nil {
		t.Error(err)
	}
	unix.Close(fds[1])
	return fds[0]
}

// files returns n descriptors of n different files.
func files(t testing.TB, n int) []int {
	t.Helper()
	fds := make([]int, 0, n)
	t.Cleanup(func() { closeAll(fds) })
	for range n {
		fd, err := unix.MemfdCreate("fdpass-test", unix.MFD_CLOEXEC)
		if err != nil {
			t.Fatal(err)
		}
		fds = append(fds, fd)
	}
	return fds
}

func closeAll(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}

// inodes says which files fds are, and checks that no child would inherit them.
func inodes(t testing.TB, fds []int) []uint64 {
	t.Helper()
	var inos []uint64
	for _, fd := range fds {
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			t.Fatalf("descriptor %d: %v", fd, err)
		}
		if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
			t.Errorf("descriptor %d is not close-on-exec (%v)", fd, err)
		}
		inos = append(inos, st.Ino)
	}
	return inos
}

func TestSendRecv(t *testing.T) {
	nstest.Descriptors(t)
	kinds := map[string]int{"seqpacket": unix.SOCK_SEQPACKET, "stream": unix.SOCK_STREAM, "dgram": unix.SOCK_DGRAM}
	for name, kind := range kinds {
		for _, count := range []int{0, 1, 4, fdpass.MaxFDs} {
			t.Run(fmt.Sprint(name, " ", count), func(t *testing.T) {
				a, b := pair(t, kind)
				sent := files(t, count)
				var s fdpass.Sender
				if err := s.Send(a, []byte("hello"), sent); err != nil {
					t.Fatal(err)
				}
				var r fdpass.Receiver
				buf := make([]byte, 64)
				n, got, err := r.Recv(b, buf)
				defer closeAll(got)
				if err != nil || string(buf[:n]) != "hello" {
					t.Fatalf("received %q, %v", buf[:n], err)
				}
				if diff := cmp.Diff(inodes(t, sent), inodes(t, got)); diff != "" {
					t.Error(diff)
				}
			})
		}
	}
}

// A Sender and a Receiver are used again and again: nothing of a message may show up in the next.
func TestReuse(t *testing.T) {
	nstest.Descriptors(t)
	a, b := pair(t, unix.SOCK_SEQPACKET)
	sent := files(t, 5)
	var s fdpass.Sender
	var r fdpass.Receiver
	buf := make([]byte, 64)
	for _, count := range []int{5, 0, 2, 1, 0} {
		if err := s.Send(a, []byte(strings.Repeat("x", count+1)), sent[:count]); err != nil {
			t.Fatal(err)
		}
		n, got, err := r.Recv(b, buf)
		if err != nil || n != count+1 || len(got) != count {
			t.Errorf("received %d bytes and %d descriptors of %d, %v", n, len(got), count, err)
		}
		closeAll(got)
	}
}

func TestSendErrors(t *testing.T) {
	a, _ := pair(t, unix.SOCK_SEQPACKET)
	var s fdpass.Sender
	many := make([]int, fdpass.MaxFDs+1)
	err := s.Send(a, []byte("x"), many)
	if want := "254 descriptors in one message, 253 is the most: invalid argument"; !errors.Is(err, unix.EINVAL) || err.Error() != want {
		t.Errorf("254 descriptors: %v", err)
	}
	if err := s.Send(a, nil, nil); !errors.Is(err, unix.EINVAL) {
		t.Errorf("empty message: %v", err)
	}
	if err := s.Send(a, []byte("x"), []int{-1}); err != unix.EBADF {
		t.Errorf("no descriptor: %v", err)
	}
	if err := s.Send(a, make([]byte, 16<<20), nil); err != unix.EMSGSIZE {
		t.Errorf("message of 16 MiB: %v", err)
	}
	// a is a blocking socket: a full queue must not hold us all the same.
	for err = nil; err == nil; err = s.Send(a, make([]byte, 4096), nil) {
	}
	if err != unix.EAGAIN {
		t.Errorf("full queue: %v", err)
	}
	if err := s.Send(half(t), []byte("x"), nil); err != unix.EPIPE {
		t.Errorf("the other end is closed: %v", err)
	}
}

func TestSendPartOnStream(t *testing.T) {
	nstest.Descriptors(t)
	a, b := pair(t, unix.SOCK_STREAM)
	var s fdpass.Sender
	if err := s.Send(a, make([]byte, 16<<20), files(t, 1)); err != io.ErrShortWrite {
		t.Errorf("16 MiB on a stream: %v", err)
	}
	var r fdpass.Receiver
	_, got, err := r.Recv(b, make([]byte, 1))
	if err != nil || len(got) != 1 {
		t.Errorf("first byte came with %d descriptors, %v", len(got), err)
	}
	closeAll(got)
}

func TestRecvErrors(t *testing.T) {
	_, b := pair(t, unix.SOCK_SEQPACKET)
	var r fdpass.Receiver
	buf := make([]byte, 8)
	if _, _, err := r.Recv(b, nil); !errors.Is(err, unix.EINVAL) {
		t.Errorf("no buffer: %v", err)
	}
	if _, _, err := r.Recv(b, buf); err != unix.EAGAIN {
		t.Errorf("nothing sent on a blocking socket: %v", err)
	}
	left := half(t)
	if n, _, err := r.Recv(left, buf); err != nil || string(buf[:n]) != "hello" {
		t.Errorf("what was sent before the other end closed: %q, %v", buf[:n], err)
	}
	if _, _, err := r.Recv(left, buf); err != io.EOF {
		t.Errorf("the other end is closed: %v", err)
	}
	if _, _, err := r.Recv(-1, buf); err != unix.EBADF {
		t.Errorf("no socket: %v", err)
	}
}

func TestPayloadTruncated(t *testing.T) {
	nstest.Descriptors(t)
	a, b := pair(t, unix.SOCK_SEQPACKET)
	sent := files(t, 3)
	var s fdpass.Sender
	if err := s.Send(a, []byte("hello"), sent); err != nil {
		t.Fatal(err)
	}
	var r fdpass.Receiver
	buf := make([]byte, 4)
	n, got, err := r.Recv(b, buf)
	defer closeAll(got)
	if !errors.Is(err, fdpass.ErrPayloadTruncated) || errors.Is(err, fdpass.ErrFDsTruncated) || string(buf[:n]) != "hell" {
		t.Errorf("received %q, %v", buf[:n], err)
	}
	if diff := cmp.Diff(inodes(t, sent), inodes(t, got)); diff != "" {
		t.Error(diff)
	}
}

// Whoever holds the same description can have the kernel add credentials and pidfds to every message.
func TestUninvitedControlData(t *testing.T) {
	nstest.Descriptors(t)
	a, b := pair(t, unix.SOCK_SEQPACKET)
	if err := unix.SetsockoptInt(b, unix.SOL_SOCKET, unix.SO_PASSCRED, 1); err != nil {
		t.Fatal(err)
	}
	if err := unix.SetsockoptInt(b, unix.SOL_SOCKET, unix.SO_PASSPIDFD, 1); err != nil {
		t.Logf("SO_PASSPIDFD: %v", err) // before Linux 6.5
	}
	sent := files(t, fdpass.MaxFDs)
	var s fdpass.Sender
	var r fdpass.Receiver
	buf := make([]byte, 8)
	for range 3 {
		if err := s.Send(a, []byte("hello"), sent); err != nil {
			t.Fatal(err)
		}
		n, got, err := r.Recv(b, buf)
		if err != nil || !bytes.Equal(buf[:n], []byte("hello")) {
			t.Fatalf("received %q, %v", buf[:n], err)
		}
		if diff := cmp.Diff(inodes(t, sent), inodes(t, got)); diff != "" {
			t.Error(diff)
		}
		closeAll(got)
	}
}

func TestNoAllocation(t *testing.T) {
	a, b := pair(t, unix.SOCK_SEQPACKET)
	sent := files(t, 4)
	var s fdpass.Sender
	var r fdpass.Receiver
	payload, buf := make([]byte, 200), make([]byte, 4096)
	allocs := testing.AllocsPerRun(100, func() {
		if err := s.Send(a, payload, sent); err != nil {
			t.Fatal(err)
		}
		n, got, err := r.Recv(b, buf)
		if err != nil || n != len(payload) || len(got) != len(sent) {
			t.Fatal(n, got, err)
		}
		closeAll(got)
		if _, _, err := r.Recv(b, buf); err != unix.EAGAIN {
			t.Fatal(err)
		}
	})
	if allocs != 0 {
		t.Errorf("%v allocations for a message", allocs)
	}
}

func BenchmarkMessage(b *testing.B) {
	for _, count := range []int{0, 1, 4, 8, fdpass.MaxFDs} {
		b.Run(fmt.Sprintf("fds=%d", count), func(b *testing.B) {
			x, y := pair(b, unix.SOCK_SEQPACKET)
			sent := files(b, count)
			var s fdpass.Sender
			var r fdpass.Receiver
			payload, buf := make([]byte, 256), make([]byte, 4096)
			b.ReportAllocs()
			for b.Loop() {
				if err := s.Send(x, payload, sent); err != nil {
					b.Fatal(err)
				}
				_, got, err := r.Recv(y, buf)
				if err != nil {
					b.Fatal(err)
				}
				closeAll(got)
			}
		})
	}
}
