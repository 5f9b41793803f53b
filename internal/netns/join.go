package netns

import (
	"errors"
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/peercred"
	"github.com/portd/portd/internal/registry"
)

// siocgskns is SIOCGSKNS (linux/sockios.h), since Linux 4.10: a descriptor of the namespace that a socket is in.
const siocgskns = 0x894c

// Join says in which namespace the peer of an accepted unix connection was when it connected, and keeps that until leave is
// called: registry.HostNetns for portd's own, registry.UnknownNetns where portd may not know.
//
// The accepted end is in the namespace of the socket that called connect, whoever that was, and the kernel gives a descriptor of
// it from there. So nothing rests on a pid, which may be another process's by now, nor on a look into /proc, which a process
// of another user refuses.
func (h *Host) Join(conn syscall.Conn) (name string, leave func(), err error) {
	nothing := func() {}
	cookie, err := peercred.NetNSOf(conn)
	if err != nil {
		return "", nothing, err
	}
	if !cookie.Differs(h.cookie) {
		return registry.HostNetns, nothing, nil
	}
	if k := h.byCookie(cookie); k != nil {
		return k.Name, func() { h.Drop(k.Name) }, nil
	}
	fd, err := namespaceOf(conn)
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOTTY) { // it takes CAP_NET_ADMIN there
		return registry.UnknownNetns, nothing, nil
	}
	if err != nil {
		return "", nothing, fmt.Errorf("network namespace of the peer: %w", err)
	}
	n, _, err := h.keep(fd, uint64(cookie), "")
	if err != nil {
		return "", nothing, err
	}
	if n.Name == registry.HostNetns {
		return n.Name, nothing, nil
	}
	return n.Name, func() { h.Drop(n.Name) }, nil
}

// byCookie keeps once more the namespace of a cookie, or is nil where it is not kept.
func (h *Host) byCookie(cookie peercred.NetNS) *kept {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, k := range h.kept {
		if k.Cookie == uint64(cookie) {
			k.uses++
			return k
		}
	}
	return nil
}

func namespaceOf(conn syscall.Conn) (fd int, err error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return -1, err
	}
	cerr := raw.Control(func(sock uintptr) {
		fd, err = unix.IoctlRetInt(int(sock), siocgskns) // close-on-exec, as all descriptors of namespaces (open_related_ns)
	})
	return fd, errors.Join(err, cerr)
}
