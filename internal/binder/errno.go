package binder

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/registry"
	"github.com/portd/portd/internal/shortage"
)

// What an errno means to the one who asked. It is told by the step that failed, for the same errno says different things
// of socket(2), setsockopt(2) and bind(2).

// noCapability is an UnsupportedError for what portd itself may not do, whoever asks.
func noCapability(what, why string) error {
	return &registry.UnsupportedError{What: what, Why: why, Code: "MISSING_CAPABILITY"}
}

func (r *recipe) socketError(err error) error {
	proto := r.ep.Proto.String()
	if r.opt.MPTCP {
		proto = "mptcp"
	}
	switch {
	case errors.Is(err, unix.EAFNOSUPPORT):
		return &registry.UnsupportedError{What: "ipv6", Why: fmt.Sprintf("this kernel has no IPv6 (%v)", err)}
	case errors.Is(err, unix.EPROTONOSUPPORT), errors.Is(err, unix.ESOCKTNOSUPPORT):
		return &registry.UnsupportedError{What: proto, Why: fmt.Sprintf("this kernel has no %s (%v)", strings.ToUpper(proto), err)}
	case errors.Is(err, unix.ENOPROTOOPT) && r.opt.MPTCP:
		return &registry.UnsupportedError{What: proto, Why: "it is turned off here (net.mptcp.enabled = 0)"}
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return &registry.UnsupportedError{What: proto, Why: fmt.Sprintf("this host's rules do not let portd make such sockets (%v)", err)}
	}
	return fmt.Errorf("make a socket: %w", ranOut(err))
}

func (r *recipe) deviceError(err error) error {
	switch {
	case errors.Is(err, unix.ENODEV):
		return &registry.InvalidError{Field: "device", Reason: fmt.Sprintf("this host has no device %q", r.ep.Device)}
	case errors.Is(err, unix.EPERM):
		return noCapability("device "+r.ep.Device, "this kernel lets portd bind to a device only with CAP_NET_RAW (SO_BINDTODEVICE, socket(7))")
	}
	return fmt.Errorf("bind to device %s: %w", r.ep.Device, err)
}

func (r *recipe) transparentError(err error) error {
	if errors.Is(err, unix.EPERM) {
		return noCapability("transparent binding", "portd may not without CAP_NET_ADMIN (IP_TRANSPARENT, ip(7))")
	}
	return fmt.Errorf("set IP_TRANSPARENT: %w", err)
}

// bindError is for all that is not EADDRINUSE, which is taken.
func (r *recipe) bindError(port uint16, err error) error {
	switch {
	case errors.Is(err, unix.EADDRINUSE):
		return &registry.TakenError{Want: r.ep.At(port)}
	case errors.Is(err, unix.EACCES) && port < firstUnprivileged():
		return noCapability(fmt.Sprintf("port %d", port), fmt.Sprintf(
			"portd may not bind ports below %d (net.ipv4.ip_unprivileged_port_start) without CAP_NET_BIND_SERVICE", firstUnprivileged()))
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return &registry.UnsupportedError{
			What: fmt.Sprintf("port %d", port),
			Why:  fmt.Sprintf("this host's rules do not let portd bind it (%v): a security module, or a program attached to its cgroup", err),
		}
	case errors.Is(err, unix.EADDRNOTAVAIL):
		return invalidAddr("%v is no address of this host; freebind holds one that is still to come", r.ep.Addr)
	case errors.Is(err, unix.ENODEV):
		return &registry.InvalidError{Field: "device", Reason: fmt.Sprintf("the device of %v is gone", r.ep)}
	}
	return ranOut(err)
}

// ranOut is ErrExhausted with the limit and how to lift it, where err says that one was reached.
func ranOut(err error) error {
	if why := shortage.Of(err); why != nil {
		return exhausted(why)
	}
	return err
}

func exhausted(why error) error { return fmt.Errorf("%w: %w", registry.ErrExhausted, why) }

// openFiles spells RLIMIT_NOFILE and how to lift it.
func openFiles() string { return shortage.Descriptors() }
