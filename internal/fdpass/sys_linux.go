package fdpass

import (
	"encoding/binary"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The calls below are RawSyscall: with MSG_DONTWAIT they do not sleep, so the scheduler need not hear of them. The structures hold
// ordinary pointers, which keep what they point to alive and in place for as long as the call lasts.

func (s *Sender) aim(payload []byte) {
	s.iov.Base = unsafe.SliceData(payload)
	s.iov.SetLen(len(payload))
	s.msg.Iov = &s.iov
	s.msg.SetIovlen(1)
}

func (s *Sender) sendmsg(fd, fds int) (int, unix.Errno) {
	s.msg.Control = nil
	s.msg.SetControllen(0)
	if fds > 0 {
		s.msg.Control = (*byte)(unsafe.Pointer(&s.ctrl))
		s.msg.SetControllen(unix.CmsgLen(4 * fds))
	}
	n, _, errno := unix.RawSyscall(unix.SYS_SENDMSG, uintptr(fd), uintptr(unsafe.Pointer(&s.msg)),
		unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
	return int(n), errno
}

func (r *Receiver) aim(payload []byte) {
	r.iov.Base = unsafe.SliceData(payload)
	r.iov.SetLen(len(payload))
	r.msg.Iov = &r.iov
	r.msg.SetIovlen(1)
	r.msg.Control = (*byte)(unsafe.Pointer(&r.ctrl))
}

func (r *Receiver) recvmsg(fd, flags int) (int, unix.Errno) {
	r.msg.SetControllen(int(unsafe.Sizeof(r.ctrl))) // the kernel puts the length in use here
	n, _, errno := unix.RawSyscall(unix.SYS_RECVMSG, uintptr(fd), uintptr(unsafe.Pointer(&r.msg)),
		unix.MSG_DONTWAIT|unix.MSG_CMSG_CLOEXEC|uintptr(flags))
	return int(n), errno
}

// rights collects the descriptors of the message that was received last.
func (r *Receiver) rights() []int {
	rest := unsafe.Slice((*byte)(unsafe.Pointer(&r.ctrl)), unsafe.Sizeof(r.ctrl))[:r.msg.Controllen]
	n := 0
	for len(rest) >= unix.SizeofCmsghdr {
		head, data, after, err := unix.ParseOneSocketControlMessage(rest)
		if err != nil {
			break // the kernel wrote it, so this is where it ran out of room
		}
		rest = after
		if head.Level != unix.SOL_SOCKET {
			continue
		}
		for ; len(data) >= 4; data = data[4:] {
			fd := int(int32(binary.NativeEndian.Uint32(data)))
			switch {
			case head.Type == unix.SCM_RIGHTS && n < MaxFDs:
				r.fds[n] = fd
				n++
			case head.Type == unix.SCM_PIDFD && fd >= 0:
				// Nobody here asked for it. Left open, one a message, it would fill our table.
				_ = unix.Close(fd)
			}
		}
	}
	return r.fds[:n:n]
}
