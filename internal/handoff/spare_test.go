package handoff_test

import (
	"errors"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/client"
	"github.com/portd/portd/internal/fdpass"
	"github.com/portd/portd/internal/handoff"
	"github.com/portd/portd/internal/nstest"
	"github.com/portd/portd/internal/wire"
)

// Who comes when too many are attaching is told so, also where it has said what it wants before.
func TestTurnedDown(t *testing.T) {
	h := newHost(t)
	res := h.listen("127.0.0.1")
	for range handoff.MaxKnocking {
		h.dial()
	}
	until(t, "one more is refused", func() bool {
		_, err := client.Attach(t.Context(), client.AttachConfig{Socket: h.socket, Wishes: []client.Wish{{Reference: res.ID}}})
		if err != nil && !errors.Is(err, client.ErrExhausted) {
			t.Fatal(err)
		}
		return err != nil
	})
}

// A worker that comes when portd has no descriptors left waits for a moment, and is then told which limit it is.
func TestOutOfDescriptorsAtAnAttach(t *testing.T) {
	nstest.Descriptors(t)
	h := newHost(t)
	defer h.stop()
	res := h.listen("127.0.0.1")
	h.attach(wire.Attach{Wishes: []wire.Wish{connections(res.ID)}}) // Serve is there
	var was unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
		t.Fatal(err)
	}
	short, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(short)
	last, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	taken := []int{last}
	defer func() {
		for _, fd := range taken {
			unix.Close(fd)
		}
	}()
	// No lower than what is open, for a limit is one of numbers.
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: uint64(last) + 64, Max: was.Max}); err != nil {
		t.Fatal(err)
	}
	for err == nil {
		if last, err = unix.Eventfd(0, unix.EFD_CLOEXEC); err == nil {
			taken = append(taken, last)
		}
	}
	err = unix.Connect(short, &unix.SockaddrUnix{Name: h.socket})
	if err == nil {
		_, err = unix.Write(short, attachMessage(res.ID))
	}
	var in fdpass.Receiver
	buf, n := make([]byte, wire.MaxMessage), 0
	if err == nil {
		_, _ = unix.Poll([]unix.PollFd{{Fd: int32(short), Events: unix.POLLIN}}, 10_000)
		n, _, err = in.Recv(short, buf)
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
		t.Fatal(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	m, err := wire.Parse(buf[:n])
	if err != nil {
		t.Fatal(err)
	}
	r, err := wire.DecodeRefused(m)
	if err != nil || r.Code != wire.CodeExhausted || !strings.Contains(r.Text, "RLIMIT_NOFILE") {
		t.Errorf("it is told %+v, %v; want the limit's name", r, err)
	}
	h.attach(wire.Attach{Wishes: []wire.Wish{connections(res.ID)}})
}
