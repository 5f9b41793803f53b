package handoff_test

import (
	"fmt"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A load makes short connections, so many at a time: connect, 64 bytes there, 64 bytes back, end of file, close. It is one thread on
// raw system calls, so that what is measured is the server.
type load struct {
	epoll int
	to    unix.RawSockaddrInet4
	slots []struct {
		fd  int
		got int
	}
	buf       [64]byte
	latencies []time.Duration
	starts    []time.Time
}

func newLoad(t testing.TB, port uint16, atATime int) *load {
	t.Helper()
	l := &load{to: unix.RawSockaddrInet4{Family: unix.AF_INET, Addr: [4]byte{127, 0, 0, 1}}}
	p := (*[2]byte)(unsafe.Pointer(&l.to.Port))
	p[0], p[1] = byte(port>>8), byte(port)
	l.slots = make([]struct{ fd, got int }, atATime)
	l.starts = make([]time.Time, atATime)
	var err error
	if l.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(l.epoll) })
	return l
}

// run makes connections for as long as d and returns their number and how long they took in all.
func (l *load) run(d time.Duration) (n int, took time.Duration, err error) {
	start := time.Now()
	open := 0
	l.latencies = l.latencies[:0]
	for i := range l.slots {
		if err := l.connect(i); err != nil {
			return n, 0, err
		}
		open++
	}
	var events [64]unix.EpollEvent
	for open > 0 {
		got, err := unix.EpollWait(l.epoll, events[:], 10_000)
		if err == unix.EINTR {
			continue
		}
		if err != nil || got == 0 {
			return n, 0, fmt.Errorf("%d of %d connections hang: %w", open, len(l.slots), err)
		}
		late := time.Since(start) > d
		for _, e := range events[:got] {
			i := int(e.Fd)
			done, err := l.step(i)
			if err != nil {
				return n, 0, err
			}
			if !done {
				continue
			}
			n++
			l.latencies = append(l.latencies, time.Since(l.starts[i]))
			if late {
				open--
			} else if err := l.connect(i); err != nil {
				return n, 0, err
			}
		}
	}
	return n, time.Since(start), nil
}

func (l *load) connect(i int) error {
	l.starts[i] = time.Now()
	fd, _, errno := unix.RawSyscall(unix.SYS_SOCKET, unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if errno != 0 {
		return errno
	}
	l.slots[i].fd, l.slots[i].got = int(fd), 0
	// A reset at the end leaves no TIME_WAIT, of which there would be more than there are ports.
	linger := unix.Linger{Onoff: 1}
	_, _, _ = unix.RawSyscall6(unix.SYS_SETSOCKOPT, fd, unix.SOL_SOCKET, unix.SO_LINGER, uintptr(unsafe.Pointer(&linger)), unsafe.Sizeof(linger), 0)
	_, _, errno = unix.RawSyscall(unix.SYS_CONNECT, fd, uintptr(unsafe.Pointer(&l.to)), unsafe.Sizeof(l.to))
	if errno != 0 && errno != unix.EINPROGRESS {
		return fmt.Errorf("connect: %w", errno)
	}
	// The handshake over loopback is mostly done when connect returns, so the request goes out at once.
	_, _, errno = unix.RawSyscall(unix.SYS_WRITE, fd, uintptr(unsafe.Pointer(&l.buf)), 64)
	if errno == unix.EAGAIN { // not this time: the kernel put it off
		if _, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}, 5000); err != nil && err != unix.EINTR {
			return fmt.Errorf("poll: %w", err)
		}
		_, _, errno = unix.RawSyscall(unix.SYS_WRITE, fd, uintptr(unsafe.Pointer(&l.buf)), 64)
	}
	if errno != 0 {
		return fmt.Errorf("write: %w", errno)
	}
	e := unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(i)}
	_, _, errno = unix.RawSyscall6(unix.SYS_EPOLL_CTL, uintptr(l.epoll), unix.EPOLL_CTL_ADD, fd, uintptr(unsafe.Pointer(&e)), 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}

func (l *load) step(i int) (done bool, err error) {
	s := &l.slots[i]
	for {
		n, _, errno := unix.RawSyscall(unix.SYS_READ, uintptr(s.fd), uintptr(unsafe.Pointer(&l.buf)), 64)
		switch {
		case errno == unix.EAGAIN:
			return false, nil
		case errno != 0:
			return false, fmt.Errorf("read: %w", errno)
		case n > 0:
			s.got += int(n)
		case s.got != 64:
			return false, fmt.Errorf("%d of 64 bytes came back", s.got)
		default:
			_, _, _ = syscall.RawSyscall(unix.SYS_CLOSE, uintptr(s.fd), 0, 0)
			return true, nil
		}
	}
}
