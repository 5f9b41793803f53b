package fdbag_test

import (
	"bytes"
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/fdbag"
	"github.com/portd/portd/internal/fdpass"
	"github.com/portd/portd/internal/nstest"
)

// TestPayload: what was packed beside descriptors comes back, with them and without, also from a duplicate of which nothing else is
// known.
func TestPayload(t *testing.T) {
	for _, size := range []int{0, 1, 4096, fdbag.MostPayload} {
		for _, n := range []int{1, fdbag.Most} {
			nstest.Descriptors(t)
			fds, payload := pipes(t, n), bytes.Repeat([]byte{7}, size)
			packed, err := fdbag.Pack(fds, payload)
			if err != nil {
				t.Fatalf("%d bytes beside %d descriptors: %v", size, n, err)
			}
			closeAll(fds)
			dup, err := unix.FcntlInt(uintptr(packed.FD()), unix.F_DUPFD_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			bag, err := fdbag.From(dup)
			if err != nil {
				t.Fatal(err)
			}
			if err := packed.Close(); err != nil {
				t.Error(err)
			}
			before := open(t)
			if got, err := bag.Payload(); err != nil || !bytes.Equal(got, payload) {
				t.Errorf("payload of %d bytes (%v), want %d", len(got), err, size)
			}
			if after := open(t); after != before {
				t.Errorf("to look at the payload opened %d descriptors", after-before)
			}
			if bag.Len() != n {
				t.Errorf("Len %d, want %d", bag.Len(), n)
			}
			got, err := bag.Open()
			if err != nil {
				t.Fatal(err)
			}
			if err := bag.Close(); err != nil {
				t.Error(err)
			}
			wantPipes(t, got, n)
		}
	}
	if _, err := fdbag.Pack([]int{0}, make([]byte, fdbag.MostPayload+1)); !errors.Is(err, unix.EMSGSIZE) {
		t.Errorf("pack too many bytes: %v, want EMSGSIZE", err)
	}
}

// open is how many descriptors this process has.
func open(t *testing.T) int {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(fds)
}

// FuzzFrom takes for a bag what another process sends.
func FuzzFrom(f *testing.F) {
	f.Add([]byte{1}, 1)
	f.Add([]byte{2, 'x'}, 1) // says that there are more than there are
	f.Add([]byte{0}, 0)
	f.Add([]byte{255}, 3)
	f.Add([]byte{}, 0)
	f.Add(make([]byte, fdbag.MostPayload+2), 1)
	f.Fuzz(func(t *testing.T, message []byte, n int) {
		if n < 0 || n > fdpass.MaxFDs || len(message) > 100<<10 {
			t.Skip()
		}
		nstest.Descriptors(t)
		ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(ends[0])
		if len(message) > 0 {
			var s fdpass.Sender
			if err := s.Send(ends[1], message, make([]int, n)); err != nil {
				t.Fatal(err)
			}
		}
		_ = unix.Close(ends[1])
		bag, err := fdbag.From(ends[0])
		if err != nil {
			return
		}
		if got, err := bag.Payload(); err != nil || !bytes.Equal(got, message[1:]) {
			t.Errorf("payload %q (%v) of %q", got, err, message)
		}
		fds, err := bag.Open()
		if err == nil && (len(fds) != n || len(fds) != bag.Len()) {
			t.Errorf("%d descriptors of %d, Len %d", len(fds), n, bag.Len())
		}
		closeAll(fds)
	})
}
