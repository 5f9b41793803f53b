package handoff_test

import (
	"testing"

	"github.com/portd/portd/internal/handoff"
	"github.com/portd/portd/internal/nstest"
	"golang.org/x/sys/unix"
)

// The kernel wakes who waits for room while it still counts a byte of the message that it is freeing (sock_wfree), and not again after
// that: whoever looks then must not see a message, else a worker that has taken its last one is never told that it is drained.
func TestWhatIsBeingFreedDoesNotWait(t *testing.T) {
	nstest.Descriptors(t)
	ours, theirs, err := handoff.QueuePair()
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(ours)
	// Many to be woken make that moment long enough to be met.
	crowd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(crowd)
	for range 200 {
		fd, err := unix.FcntlInt(uintptr(ours), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		if err := unix.EpollCtl(crowd, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLOUT | unix.EPOLLET}); err != nil {
			t.Fatal(err)
		}
	}
	sent, taken := make(chan struct{}), make(chan error)
	go func() {
		defer close(taken)
		defer unix.Close(theirs)
		buf := make([]byte, handoff.FrameSize)
		for range sent {
			_, _, err := unix.Recvfrom(theirs, buf, unix.MSG_DONTWAIT)
			taken <- err
		}
	}()
	defer func() {
		close(sent)
		<-taken
	}()
	for i := range 10_000 {
		if err := unix.Send(ours, make([]byte, handoff.FrameSize), 0); err != nil {
			t.Fatal(err)
		}
		if !handoff.Waiting(ours) {
			t.Fatal("a message that was sent does not wait")
		}
		sent <- struct{}{}
		for !handoff.Writable(ours) {
		}
		waits := handoff.Waiting(ours)
		if err := <-taken; err != nil {
			t.Fatal(err)
		}
		if waits {
			t.Fatalf("%d messages were taken, and the last one waits all the same", i+1)
		}
	}
}
