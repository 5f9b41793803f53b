package peercred

import (
	"context"
	"fmt"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A Process is a process being watched for its exit. The connection that it came from may outlive it in a child's hands; a Process
// tells at once. It must be closed.
type Process struct {
	file    *os.File
	exited  chan struct{} // closed by watch, before stopped
	stopped chan struct{} // closed when watch returns
}

// Open watches the process at the other end of conn; errors are those of [PIDFD]. The Process does not depend on conn afterwards.
func Open(conn syscall.Conn) (*Process, error) {
	pidfd, err := PIDFD(conn)
	if err != nil {
		return nil, err
	}
	return NewProcess(pidfd)
}

// NewProcess watches the process that pidfd refers to. It takes ownership of pidfd, also when it fails.
func NewProcess(pidfd int) (*Process, error) {
	// Nonblocking is what makes os.NewFile hand the descriptor to the netpoller: a parked goroutine waits, not a thread.
	if err := unix.SetNonblock(pidfd, true); err != nil {
		_ = unix.Close(pidfd)
		return nil, fmt.Errorf("watch process: %w", err)
	}
	file := os.NewFile(uintptr(pidfd), "pidfd")
	raw, err := file.SyscallConn()
	if err == nil {
		err = file.SetReadDeadline(time.Time{}) // fails if the netpoller did not take it
	}
	if err != nil {
		_ = file.Close()
		return nil, fmt.Errorf("watch process: %w", err)
	}
	p := &Process{file: file, exited: make(chan struct{}), stopped: make(chan struct{})}
	go p.watch(raw)
	return p, nil
}

// Done returns a channel that is closed when the process has exited, reaped or not. Close does not close it.
func (p *Process) Done() <-chan struct{} { return p.exited }

// Wait returns nil when the process has exited, else ctx's error, or os.ErrClosed after Close.
func (p *Process) Wait(ctx context.Context) error {
	select {
	case <-p.exited:
		return nil
	case <-p.stopped:
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case <-p.exited:
		return nil
	default:
		return os.ErrClosed
	}
}

// Close stops watching and returns when nothing is left of it. The process itself is not touched.
func (p *Process) Close() error {
	err := p.file.Close()
	<-p.stopped
	return err
}

func (p *Process) watch(raw syscall.RawConn) {
	defer close(p.stopped)
	gone := false
	// Read returns when its function says true, or with an error when the file is closed.
	_ = raw.Read(func(fd uintptr) bool {
		gone = hasExited(int(fd))
		return gone
	})
	if gone {
		close(p.exited)
	}
}

// hasExited asks again after every wake-up: the netpoller reports edges, and may report one too many.
func hasExited(pidfd int) bool {
	for {
		fds := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}
		n, err := unix.Poll(fds, 0)
		if err == unix.EINTR {
			continue
		}
		return n > 0 && fds[0].Revents&(unix.POLLIN|unix.POLLHUP) != 0
	}
}
