package handoff

import (
	"fmt"
	"syscall"
	"time"
	"unsafe"

	"github.com/portd/portd/internal/fdpass"
	"github.com/portd/portd/internal/registry"
	"github.com/portd/portd/internal/wire"
	"golang.org/x/sys/unix"
)

// frameSize is what every frame is padded to, so that all count alike in their sender's buffer: the kernel counts the memory
// that a message takes, not its bytes. Eight connections with two IPv6 addresses each fit.
const frameSize = 1200

// perMessage is how many connections are accepted for one message. A kill between accept and send costs at most these, and what a
// worker that dies has just taken is at most these.
const perMessage = 4

// The calls below do not enter Go's scheduler: none of them blocks, and there are several per connection.

// accept on a socket that may block tells the scheduler, so that others go on meanwhile.
func accept(fd int, from *unix.RawSockaddrInet6, mayBlock bool) (int, syscall.Errno) {
	size := uint32(unix.SizeofSockaddrInet6)
	var n uintptr
	var errno syscall.Errno
	if mayBlock {
		n, _, errno = unix.Syscall6(unix.SYS_ACCEPT4, uintptr(fd), uintptr(unsafe.Pointer(from)), uintptr(unsafe.Pointer(&size)),
			unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0, 0)
	} else {
		n, _, errno = unix.RawSyscall6(unix.SYS_ACCEPT4, uintptr(fd), uintptr(unsafe.Pointer(from)), uintptr(unsafe.Pointer(&size)),
			unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0, 0)
	}
	if errno != 0 {
		return -1, errno
	}
	if size == 0 {
		from.Family = unix.AF_UNSPEC
	}
	return int(n), 0
}

// outgoing is the memory of one message.
type outgoing struct {
	sender  fdpass.Sender
	frame   [frameSize]byte
	message []byte // what of frame is written
	fds     [perMessage]int
	conns   [perMessage]wire.Connection
	at      [perMessage]*registry.Endpoint
	hands   [perMessage]uint32 // their places in the ledger
	from    unix.RawSockaddrInet6
	now     time.Time     // when the message was begun
	since   time.Duration // the same since the pool began
}

// begin notes when a message is begun: the time is asked for once.
func (o *outgoing) begin(origin time.Time) {
	o.now = time.Now()
	o.since = o.now.Sub(origin)
}

// send sends the frame, which lies in o.frame, padded, with the first n descriptors. They stay open here.
func (o *outgoing) send(fd int, frame []byte, n int) error {
	clear(o.frame[len(frame):]) // what another worker got is not this one's business
	return o.sender.Send(fd, o.frame[:], o.fds[:n])
}

// closeAll closes the first n descriptors, with one call where they are neighbours, as freshly accepted ones mostly are.
func (o *outgoing) closeAll(n int) {
	for i := 0; i < n; {
		j := i + 1
		for j < n && o.fds[j] == o.fds[j-1]+1 {
			j++
		}
		if j-i > 1 {
			if _, _, errno := unix.RawSyscall(unix.SYS_CLOSE_RANGE, uintptr(o.fds[i]), uintptr(o.fds[j-1]), 0); errno == 0 {
				i = j
				continue
			}
		}
		for ; i < j; i++ {
			closeRaw(o.fds[i])
		}
	}
}

func closeRaw(fd int) { _, _, _ = unix.RawSyscall(unix.SYS_CLOSE, uintptr(fd), 0, 0) }

// writable says whether a queue has room for one more message, by the kernel's own rule.
func writable(fd int) bool {
	poll := unix.PollFd{Fd: int32(fd), Events: unix.POLLOUT}
	n, _, _ := unix.RawSyscall(unix.SYS_POLL, uintptr(unsafe.Pointer(&poll)), 1, 0)
	return n == 1 && poll.Revents&unix.POLLOUT != 0
}

// queuePair makes a worker's queue with room for a number of frames, or as many as net.core.wmem_max lets be: ours to send, and the
// worker's to receive.
func queuePair(truesize, room int) (ours, theirs, granted int, err error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, -1, 0, fmt.Errorf("make a queue: %w", err)
	}
	// A unix socket polls writable while 4 × (what is queued + 1) ≤ sndbuf (unix_writable in the kernel), and the kernel
	// doubles what it is told here: with 4 × room × truesize − 2 that is until room frames are queued.
	err = unix.SetsockoptInt(pair[0], unix.SOL_SOCKET, unix.SO_SNDBUF, 2*room*truesize-1)
	size := 0
	if err == nil {
		size, err = unix.GetsockoptInt(pair[0], unix.SOL_SOCKET, unix.SO_SNDBUF)
	}
	if err == nil {
		// Nothing comes back on a queue; a worker that tries gets EPIPE and fills nobody's memory.
		err = unix.Shutdown(pair[0], unix.SHUT_RD)
	}
	if err != nil {
		_ = unix.Close(pair[0])
		_ = unix.Close(pair[1])
		return -1, -1, 0, fmt.Errorf("make a queue: %w", err)
	}
	return pair[0], pair[1], max(1, (size+2)/(4*truesize)), nil
}

// measureFrame asks the kernel what a padded frame counts for (2,304 bytes on amd64; it is the kernel's affair).
func measureFrame() (int, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(pair[0])
	defer unix.Close(pair[1])
	if err := unix.Send(pair[0], make([]byte, frameSize), 0); err != nil {
		return 0, err
	}
	size, err := unix.IoctlGetInt(pair[0], unix.SIOCOUTQ)
	if err != nil {
		return 0, err
	}
	if size < frameSize || size > 16*frameSize {
		return 0, fmt.Errorf("a message of %d bytes counts for %d", frameSize, size)
	}
	return size, nil
}

// waiting says whether anything lies in the queue that fd sends to.
func waiting(fd int) bool {
	n, err := unix.IoctlGetInt(fd, unix.SIOCOUTQ)
	return err != nil || n >= frameSize // the kernel still counts a byte of a message that it is just freeing
}

// peerAddr is the address that accept filled in. An IPv4 peer of a dual-stack listener comes as IPv4-mapped.
func peerAddr(from *unix.RawSockaddrInet6) (a wire.Addr) {
	switch from.Family {
	case unix.AF_INET:
		v4 := (*unix.RawSockaddrInet4)(unsafe.Pointer(from))
		a.Family, a.Port = wire.FamilyIPv4, ntohs(v4.Port)
		copy(a.IP[:4], v4.Addr[:])
	case unix.AF_INET6:
		a.Port = ntohs(from.Port)
		if [12]byte(from.Addr[:12]) == mapped {
			a.Family = wire.FamilyIPv4
			copy(a.IP[:4], from.Addr[12:])
			return a
		}
		a.Family, a.Scope, a.IP = wire.FamilyIPv6, from.Scope_id, from.Addr
	case unix.AF_UNIX:
		a.Family = wire.FamilyUnix // a client's socket has a name only where it asked for one, which nobody needs
	}
	return a
}

// localPort is the port that a connection came to, or 0.
func localPort(fd int) uint16 {
	sa, _ := unix.Getsockname(fd)
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return uint16(sa.Port)
	case *unix.SockaddrInet6:
		return uint16(sa.Port)
	}
	return 0
}

var mapped = [12]byte{10: 0xff, 11: 0xff}

func ntohs(v uint16) uint16 {
	b := (*[2]byte)(unsafe.Pointer(&v))
	return uint16(b[0])<<8 | uint16(b[1])
}
