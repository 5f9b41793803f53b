// Package peercred tells who is at the other end of a unix socket.
//
// The kernel keeps the answers with the socket: they were settled when the other end called connect (for a socketpair,
// when it was made) and do not change when that process changes its identity or passes the socket on. See unix(7), socket(7).
package peercred

import (
	"fmt"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A Cred is the identity of a peer as seen from this process's user and pid namespaces.
type Cred struct {
	// UID and GID are the peer's effective ids, and what permission rests on. An id that this user namespace does not know appears
	// as the overflow id (65534 by default), which then stands for many users.
	UID, GID uint32
	// PID is for people to read: the number may belong to another process by now. 0 if the peer's pid namespace is not visible here.
	PID int32
}

// Of returns the credentials of conn's peer (SO_PEERCRED). A socket without a unix peer gives ENOTCONN, never a made-up identity.
func Of(conn syscall.Conn) (Cred, error) {
	return control(conn, "peer credentials", credOf)
}

// Groups returns the supplementary groups that conn's peer had (SO_PEERGROUPS, Linux 4.13), in no particular order.
func Groups(conn syscall.Conn) ([]uint32, error) {
	return control(conn, "peer groups", func(fd int) ([]uint32, error) {
		// A process may have 65,536 of them. The kernel says how much room it wants when there is too little.
		groups := make([]uint32, 32)
		for {
			size := uint32(len(groups) * 4)
			_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_PEERGROUPS,
				uintptr(unsafe.Pointer(unsafe.SliceData(groups))), uintptr(unsafe.Pointer(&size)), 0)
			switch {
			case errno == unix.ERANGE && int(size/4) > len(groups):
				groups = make([]uint32, size/4)
			case errno != 0:
				return nil, errno
			default:
				return groups[:size/4], nil
			}
		}
	})
}

func credOf(fd int) (Cred, error) {
	u, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return Cred{}, err
	}
	// What the kernel answers, without an error, for TCP sockets and for sockets that never had a peer.
	if u.Uid == ^uint32(0) {
		return Cred{}, unix.ENOTCONN
	}
	return Cred{UID: u.Uid, GID: u.Gid, PID: u.Pid}, nil
}

// control calls f with conn's descriptor, which stays conn's.
func control[T any](conn syscall.Conn, what string, f func(fd int) (T, error)) (v T, err error) {
	raw, err := conn.SyscallConn()
	if err == nil {
		if cerr := raw.Control(func(fd uintptr) { v, err = f(int(fd)) }); cerr != nil {
			err = cerr
		}
	}
	if err != nil {
		return v, fmt.Errorf("%s: %w", what, err)
	}
	return v, nil
}
