// Package fdpass moves one message with its descriptors over a unix socket, and makes the page of memory that two ends share.
//
// A SEQPACKET ("unixpacket") socket keeps a message and its descriptors together; on a stream the descriptors come with the first
// byte of what they were sent with. The other end is not trusted: no call here blocks in the kernel, whatever it does to the
// file description that both may hold. See unix(7), sendmsg(2), recvmsg(2).
package fdpass

import (
	"errors"
	"fmt"
	"io"

	"golang.org/x/sys/unix"
)

// MaxFDs is how many descriptors one message can carry (SCM_MAX_FD in the kernel).
const MaxFDs = 253

// What Recv returns beside the part of a message that did arrive. Both can be true of one message: use errors.Is.
var (
	// ErrPayloadTruncated: the message was longer than the buffer, and the rest of its bytes is lost.
	ErrPayloadTruncated = errors.New("message is longer than the buffer")
	// ErrFDsTruncated: this process could not take all of the descriptors, for want of free numbers (RLIMIT_NOFILE); the kernel has
	// closed the surplus on our side. Who still holds them can send them again.
	ErrFDsTruncated = errors.New("descriptors of the message were lost")

	errBothTruncated = errors.Join(ErrPayloadTruncated, ErrFDsTruncated)
)

// A Sender sends messages without allocating. The zero value is ready; it is for one goroutine at a time.
type Sender struct {
	msg  unix.Msghdr
	iov  unix.Iovec
	ctrl struct {
		head unix.Cmsghdr
		fds  [MaxFDs]int32
	}
}

// Send sends payload, at least one byte, with fds over the socket fd. The fds stay the caller's, who may close them at once: the
// message holds duplicates.
//
// It never waits and retries EINTR. unix.EAGAIN: there is no room now, nothing was sent; wait until fd is writable. EMSGSIZE: the message can
// never fit into the send buffer. ETOOMANYREFS: this user has too many descriptors in flight. EPIPE: the other end is closed (at first
// ECONNRESET, if it left something unread). EINVAL: more than MaxFDs. On a stream, io.ErrShortWrite: a part went out, with all
// descriptors.
func (s *Sender) Send(fd int, payload []byte, fds []int) error {
	n, err := s.send(fd, payload, fds)
	if err == nil && n < len(payload) {
		return io.ErrShortWrite
	}
	return err
}

func (s *Sender) send(fd int, payload []byte, fds []int) (int, error) {
	if len(payload) == 0 {
		return 0, fmt.Errorf("empty message reads as an end of file: %w", unix.EINVAL)
	}
	if len(fds) > MaxFDs {
		return 0, fmt.Errorf("%d descriptors in one message, %d is the most: %w", len(fds), MaxFDs, unix.EINVAL)
	}
	s.aim(payload)
	if len(fds) > 0 {
		s.ctrl.head.Level, s.ctrl.head.Type = unix.SOL_SOCKET, unix.SCM_RIGHTS
		s.ctrl.head.SetLen(unix.CmsgLen(4 * len(fds)))
		for i, f := range fds {
			s.ctrl.fds[i] = int32(f)
		}
	}
	for {
		n, errno := s.sendmsg(fd, len(fds))
		if errno == unix.EINTR {
			continue
		}
		s.iov.Base = nil // payload is the caller's again
		if errno != 0 {
			return 0, errno
		}
		return n, nil
	}
}

// A Receiver receives messages without allocating. The zero value is ready; it is for one goroutine at a time.
type Receiver struct {
	msg unix.Msghdr
	iov unix.Iovec
	// Room for MaxFDs (1,032 bytes) and for what a holder of the same description can turn on behind our back: SO_PASSCRED,
	// SO_PASSPIDFD and SO_PASSSEC put their data first and would push descriptors out.
	ctrl [192]uint64
	fds  [MaxFDs]int
}

// Recv takes one message from the socket fd into payload, which must not be empty. The fds are the caller's to close, close-on-exec, and in a
// slice that the next Recv overwrites. With ErrPayloadTruncated or ErrFDsTruncated, n and fds are what did arrive.
//
// It never waits and retries EINTR. unix.EAGAIN: there is no message now; wait until fd is readable. io.EOF: the other end is closed and nothing
// is left, or (the kernel does not say which) it sent an empty message without descriptors, which Send refuses to do.
func (r *Receiver) Recv(fd int, payload []byte) (n int, fds []int, err error) {
	return r.recv(fd, payload, 0)
}

// Peek is Recv that leaves the message where it is. The fds are new ones all the same, and close-on-exec.
func (r *Receiver) Peek(fd int, payload []byte) (n int, fds []int, err error) {
	return r.recv(fd, payload, unix.MSG_PEEK)
}

func (r *Receiver) recv(fd int, payload []byte, flags int) (n int, fds []int, err error) {
	if len(payload) == 0 {
		return 0, nil, fmt.Errorf("empty buffer for a message: %w", unix.EINVAL)
	}
	r.aim(payload)
	for {
		var errno unix.Errno
		if n, errno = r.recvmsg(fd, flags); errno == unix.EINTR {
			continue
		}
		r.iov.Base = nil // payload is the caller's again
		if errno != 0 {
			return 0, nil, errno
		}
		break
	}
	fds = r.rights()
	switch r.msg.Flags & (unix.MSG_TRUNC | unix.MSG_CTRUNC) {
	case unix.MSG_TRUNC | unix.MSG_CTRUNC:
		return n, fds, errBothTruncated
	case unix.MSG_TRUNC:
		return n, fds, ErrPayloadTruncated
	case unix.MSG_CTRUNC:
		return n, fds, ErrFDsTruncated
	}
	if n == 0 && len(fds) == 0 {
		return 0, nil, io.EOF
	}
	return n, fds, nil
}
