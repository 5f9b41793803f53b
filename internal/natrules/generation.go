package natrules

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"
	"unsafe"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// patience is how long the kernel may take over an answer.
const patience = 5 * time.Second

// generations asks for the number of the last change of nftables' rules. It does so by two system calls, for it is asked by
// everybody who asks who has a port.
type generations struct {
	fd     int
	seq    uint32
	events int // where the kernel tells of changes, or -1
}

func openGenerations() (*generations, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, err
	}
	timeout := unix.NsecToTimeval(patience.Nanoseconds())
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return &generations{fd: fd, events: openEvents()}, nil
}

// openEvents has the kernel tell of changes. It is -1 for who may not hear of them: he may not ask either.
func openEvents() int {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_NETFILTER)
	if err != nil {
		return -1
	}
	// What a change was does not matter, only that there was one: a small buffer that overruns says so, too.
	err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 4096)
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1 << (unix.NFNLGRP_NFTABLES - 1)})
	}
	if err != nil {
		_ = unix.Close(fd)
		return -1
	}
	return fd
}

func (g *generations) close() {
	_ = unix.Close(g.fd)
	if g.events >= 0 {
		_ = unix.Close(g.events)
	}
}

// quiet says that no change has ended since it was last asked. The kernel tells of one before the one who made it is answered.
func (g *generations) quiet() bool {
	if g.events < 0 {
		return false
	}
	var b [1]byte
	for n := range 1000 {
		switch _, err := atOnce(unix.SYS_READ, g.events, b[:]); {
		case errors.Is(err, unix.EAGAIN):
			return n == 0
		case err != nil && !errors.Is(err, unix.ENOBUFS) && !errors.Is(err, unix.EINTR):
			return false
		}
	}
	return false
}

// atOnce is read(2), or pread(2) from the beginning, of what has something to say or an error right away. Go's scheduler, which
// would make ready for a call that takes its time, is spared the trouble: that takes longer.
func atOnce(call uintptr, fd int, b []byte) (n int, err error) {
	got, _, errno := unix.RawSyscall6(call, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)), 0, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(got), nil
}

// ask returns a number that is another one after every change. has is false where the kernel has no nftables.
func (g *generations) ask() (gen uint32, has bool, err error) {
	g.seq++
	m := request(unix.NFT_MSG_GETGEN, unix.AF_UNSPEC, 0, nil)
	m.Header.Sequence, m.Header.Length = g.seq, uint32(unix.NLMSG_HDRLEN+len(m.Data))
	req, err := m.MarshalBinary()
	if err != nil {
		return 0, false, err
	}
	if err := unix.Sendto(g.fd, req, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return 0, false, err
	}
	var b [1024]byte
	for {
		n, _, err := unix.Recvfrom(g.fd, b[:], 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return 0, false, err
		}
		if n >= unix.NLMSG_HDRLEN && binary.NativeEndian.Uint32(b[8:]) != g.seq {
			continue // of a question whose answer came too late
		}
		return parseGeneration(b[:n])
	}
}

func parseGeneration(b []byte) (gen uint32, has bool, err error) {
	const header = unix.NLMSG_HDRLEN + 4 // and struct nfgenmsg, or an error's number
	if len(b) < header {
		return 0, false, fmt.Errorf("an answer of %d bytes", len(b))
	}
	if binary.NativeEndian.Uint16(b[4:]) == unix.NLMSG_ERROR {
		switch errno := unix.Errno(-int32(binary.NativeEndian.Uint32(b[unix.NLMSG_HDRLEN:]))); errno {
		case unix.EINVAL, unix.EOPNOTSUPP, unix.EPROTONOSUPPORT:
			return 0, false, nil
		default:
			return 0, false, errno
		}
	}
	err = attributes(b[header:], func(kind uint16, ad *netlink.AttributeDecoder) error {
		if kind == unix.NFTA_GEN_ID {
			gen, has = ad.Uint32(), true
		}
		return nil
	})
	return gen, has, err
}
