package binder

import (
	"fmt"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/registry"
)

// A recipe is how the sockets of an endpoint are made; they differ in the port only.
// It goes by pointer: copies of it in every frame made the stack of each gRPC call grow.
type recipe struct {
	ep                   registry.Endpoint
	opt                  registry.BindOptions
	domain, kind, number int // as socket(2) takes them
	addr                 netip.Addr
	zone                 uint32 // the device of a link-local address
	limit                int    // the first descriptor number that is not for held sockets
	space                uint64 // the network namespace: see spaceOf; set while there are inherited sockets
}

// recipeFor is for endpoints that were validated; what only this host can know is judged here. Its errors are
// *InvalidError and *UnsupportedError. It, and open, are called in the endpoint's network namespace.
func (b *Binder) recipeFor(ep *registry.Endpoint, opt registry.BindOptions) (*recipe, error) {
	r := &recipe{ep: *ep, opt: opt, addr: ep.Addr, number: int(ep.Proto)}
	if ep.Dual() && !b.ipv6 {
		r.addr = netip.IPv4Unspecified()
	}
	r.domain = unix.AF_INET
	if r.addr.Is6() {
		r.domain = unix.AF_INET6
	}
	switch ep.Proto {
	case registry.TCP, registry.SCTP:
		r.kind = unix.SOCK_STREAM
	case registry.DCCP:
		r.kind = unix.SOCK_DCCP
	default:
		r.kind = unix.SOCK_DGRAM
	}
	if opt.MPTCP {
		if ep.Proto != registry.TCP {
			return r, &registry.InvalidError{Field: "mptcp", Reason: fmt.Sprintf("is for tcp only, not %v", ep.Proto)}
		}
		r.number = unix.IPPROTO_MPTCP
	}
	var err error
	if r.zone, err = zoneOf(*ep); err != nil {
		return r, err
	}
	if b.coming.Load() {
		if r.space, err = b.spaceHere(ep.Netns); err != nil {
			return r, err
		}
	}
	r.limit, err = b.descriptorLimit()
	return r, err
}

// zoneOf is the index of the device that a link-local address is on. The kernel takes the zone for the socket's device, over
// that of SO_BINDTODEVICE, and ignores it with any other address; neither is to pass unseen. A zone is a device's name, so
// that the same place has one spelling.
func zoneOf(ep registry.Endpoint) (uint32, error) {
	zone, local := ep.Addr.Zone(), ep.Addr.Is6() && ep.Addr.IsLinkLocalUnicast()
	switch {
	case zone == "" && local:
		return 0, invalidAddr("%v is link-local and needs its device as a zone, as in %v%%eth0", ep.Addr, ep.Addr)
	case zone == "":
		return 0, nil
	case !local:
		return 0, invalidAddr("%v has a zone, which is for link-local addresses only", ep.Addr)
	case ep.Device != "" && ep.Device != zone:
		return 0, &registry.InvalidError{Field: "device", Reason: fmt.Sprintf("%q is not the zone of %v", ep.Device, ep.Addr)}
	}
	ifi, err := net.InterfaceByName(zone)
	if err != nil {
		return 0, invalidAddr("%v: this host has no device %q", ep.Addr, zone)
	}
	return uint32(ifi.Index), nil
}

func invalidAddr(format string, args ...any) error {
	return &registry.InvalidError{Field: "address", Reason: fmt.Sprintf(format, args...)}
}

// open makes a socket with all set that bind(2) decides on: set later it would open the port to others (docs/KERNEL.md).
// SO_REUSEADDR is off, as it is in a new socket.
func (r *recipe) open(port uint16) (*socket, error) {
	fd, err := unix.Socket(r.domain, r.kind|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, r.number)
	if err != nil {
		return nil, r.socketError(err)
	}
	s := &socket{fd: fd, ep: r.ep.At(port)}
	if err := r.prepare(s); err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

func (r *recipe) prepare(s *socket) error {
	// Descriptors are given out lowest first, so the number says how many are open.
	if s.fd >= r.limit {
		return exhausted(fmt.Errorf("the last of %s are kept for connections and files", openFiles()))
	}
	if r.domain == unix.AF_INET6 {
		// Always said: net.ipv6.bindv6only would decide otherwise.
		if err := s.set(unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, btoi(!r.ep.Dual())); err != nil {
			return fmt.Errorf("set IPV6_V6ONLY: %w", err)
		}
	}
	if r.ep.Device != "" {
		if err := unix.BindToDevice(s.fd, r.ep.Device); err != nil {
			return r.deviceError(err)
		}
	}
	if r.opt.Freebind {
		if err := s.setIP(r.domain, unix.IP_FREEBIND, unix.IPV6_FREEBIND); err != nil {
			return fmt.Errorf("set IP_FREEBIND: %w", err)
		}
	}
	if r.opt.Transparent {
		if err := s.setIP(r.domain, unix.IP_TRANSPARENT, unix.IPV6_TRANSPARENT); err != nil {
			return r.transparentError(err)
		}
	}
	if !r.ep.Proto.Streams() {
		// Before bind, so that nothing ever queues.
		if err := s.dropAll(); err != nil {
			return fmt.Errorf("attach the filter that drops all: %w", err)
		}
	}
	return s.stat()
}

// bind returns the bare errno, for EADDRINUSE is not the end yet.
func (r *recipe) bind(s *socket) error {
	port := int(s.ep.First)
	if r.domain == unix.AF_INET {
		return unix.Bind(s.fd, &unix.SockaddrInet4{Port: port, Addr: r.addr.As4()})
	}
	return unix.Bind(s.fd, &unix.SockaddrInet6{Port: port, Addr: r.addr.As16(), ZoneId: r.zone})
}
