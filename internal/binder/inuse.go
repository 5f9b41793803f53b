package binder

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/registry"
	"github.com/portd/portd/internal/sockdiag"
)

// PortsInUse asks sock_diag(7). It is not asked about SCTP and DCCP: where the kernel has them, their sockets are not seen. Of
// TCP's, older kernels show only those that listen or are connected.
func (b *Binder) PortsInUse(ctx context.Context, netns string, p registry.Protocol, within registry.PortRange, found func(port uint16)) (seen bool, err error) {
	if p == registry.SCTP || p == registry.DCCP {
		return lacks(p), nil
	}
	err = b.in(netns, func() error {
		return sockdiag.Ports(ctx, sockdiag.Filter{
			Protocols: []sockdiag.Protocol{sockdiag.Protocol(p)}, First: within.First, Last: within.Last,
		}, found)
	})
	if err != nil {
		return false, fmt.Errorf("ports in use: %w", err)
	}
	return p != registry.TCP || b.boundShown, nil
}

// lacks says whether the kernel has no sockets of a protocol at all.
func lacks(p registry.Protocol) bool {
	typ := unix.SOCK_STREAM
	if p == registry.DCCP {
		typ = unix.SOCK_DCCP
	}
	fd, err := unix.Socket(unix.AF_INET, typ|unix.SOCK_CLOEXEC, int(p))
	if err == nil {
		unix.Close(fd)
	}
	return errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.ESOCKTNOSUPPORT)
}
