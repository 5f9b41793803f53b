package handoff_test

import (
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/handoff"
	"github.com/portd/portd/internal/registry"
)

// A program whose socket was adopted waits in accept, as it did before portd knew of it. It goes on so while a worker attaches and
// both take connections: it is never told EAGAIN, which it has no use for, and no client is kept waiting for it.
func TestAdoptedSocketBlocks(t *testing.T) {
	if err := handoff.NoRing(); err != nil {
		t.Skipf("needs io_uring with IORING_ACCEPT_DONTWAIT: %v", err)
	}
	h := newHost(t)
	res := h.listen("127.0.0.1")
	fd, err := unix.FcntlInt(uintptr(h.fds[keyOf(res)]), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.SetNonblock(fd, false); err != nil {
		t.Fatal(err)
	}
	h.Closing(keyOf(res))
	h.Listening(keyOf(res), []registry.Socket{{Endpoint: res.Assigned[0].Endpoint, FD: h.fds[keyOf(res)], Adopted: true}}, registry.ListenOptions{})

	var accepted atomic.Int64
	ended := make(chan error, 1)
	go func() {
		for {
			c, _, err := unix.Accept(fd)
			if err != nil {
				ended <- err
				return
			}
			accepted.Add(1)
			buf := make([]byte, 64)
			if n, err := unix.Read(c, buf); err == nil {
				_, _ = unix.Write(c, buf[:n])
			}
			unix.Close(c)
		}
	}()
	l := h.join(res)
	defer l.Close()
	go func() { _ = echo(l) }()
	for range 20 {
		if _, failures := askMany(t, addrOf(res), 50); failures() > 0 {
			t.Fatal("clients were not served")
		}
	}
	h.Closing(keyOf(res))
	if err := unix.Shutdown(fd, unix.SHUT_RD); err != nil { // ends its accept
		t.Fatal(err)
	}
	if err := <-ended; err != unix.EINVAL {
		t.Errorf("the program's accept, after %d connections: %v", accepted.Load(), err)
	}
	unix.Close(fd)
	t.Logf("of 1000 the program took %d", accepted.Load())
}
