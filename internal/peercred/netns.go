package peercred

import (
	"errors"
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"
)

// A NetNS names a network namespace by its cookie, which the kernel does not use twice before the next boot. Zero: unknown.
type NetNS uint64

// Differs reports whether both namespaces are known and not the same one. An unknown namespace differs from none.
func (ns NetNS) Differs(from NetNS) bool { return ns != 0 && from != 0 && ns != from }

// NetNSOf returns the network namespace that the peer connected from, for a conn that was accepted; it is unknown before Linux 5.14.
//
// The kernel makes the accepted end in the namespace of the socket that called connect, so SO_NETNS_COOKIE on our own end tells
// the peer's, whoever the peer is: no look into /proc, which another user's process refuses. It is the namespace in
// which the peer's socket was made; a peer that was given its socket by another process, or moved on after making it,
// is elsewhere itself.
func NetNSOf(conn syscall.Conn) (NetNS, error) {
	return control(conn, "peer network namespace", netnsOf)
}

// OwnNetNS returns the network namespace of the calling thread, unknown before Linux 5.14.
func OwnNetNS() (NetNS, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("own network namespace: %w", err)
	}
	defer unix.Close(fd)
	ns, err := netnsOf(fd)
	if err != nil {
		return 0, fmt.Errorf("own network namespace: %w", err)
	}
	return ns, nil
}

func netnsOf(fd int) (NetNS, error) {
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if errors.Is(err, unix.ENOPROTOOPT) {
		return 0, nil
	}
	return NetNS(cookie), err
}
