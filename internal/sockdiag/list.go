package sockdiag

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"slices"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// A Filter says which sockets to list; the zero Filter says all. The kernel applies it, so what is left out costs next to nothing.
type Filter struct {
	// Protocols to list; none means TCP, UDP and UDPLite.
	Protocols []Protocol
	// First and Last are the local ports to list, both included. Last 0 means First alone, and both 0 every port.
	First, Last uint16
	// States to list; none means all of them.
	States []State
}

// List returns the sockets of the calling thread's network namespace that pass f, in no particular order. It needs no privilege.
//
// Sockets that come or go meanwhile may be in it or not. In a long answer (more than some twenty sockets, which the kernel gives in
// parts) even one that was there all the time can be missing, if another closed at the wrong moment between two parts; the answer
// for a single port has one part. What a call costs is mostly the kernel's walk over its tables, however few sockets
// there are or pass: a quarter of a millisecond for TCP with tables of the usual size, and a tenth of that for each family
// of UDP and UDP-Lite.
func List(ctx context.Context, f Filter) ([]Socket, error) {
	// Protocols are walked side by side: who asks for one port waits for little else.
	protocols := f.protocols()
	parts := make([][]Socket, len(protocols))
	var walks errgroup.Group
	for i, p := range protocols {
		d, err := newDumper() // here, for a thread that is in another network namespace
		if err != nil {
			_ = walks.Wait()
			return nil, fmt.Errorf("list sockets: %w", err)
		}
		walk := func() error {
			defer d.close()
			l := &lister{dumper: d, filter: f}
			return wrap(ctx, p, l.all(p, withInfo, func(m []byte) error {
				s, err := l.socket(p, m)
				parts[i] = append(parts[i], s)
				return err
			}))
		}
		if i < len(protocols)-1 {
			walks.Go(walk)
		} else if err := walk(); err != nil {
			_ = walks.Wait()
			return nil, err
		}
	}
	if err := walks.Wait(); err != nil {
		return nil, err
	}
	sockets := slices.Concat(parts...)
	devices := make(map[int]string)
	for i := range sockets {
		sockets[i].locate(devices)
	}
	return sockets, nil
}

func (f Filter) protocols() []Protocol {
	if len(f.Protocols) == 0 {
		return []Protocol{TCP, UDP, UDPLite}
	}
	return f.Protocols
}

// wrap says what an error is about.
func wrap(ctx context.Context, p Protocol, err error) error {
	switch {
	case ctx.Err() != nil:
		err = ctx.Err()
	case errors.Is(err, unix.ENOENT):
		err = fmt.Errorf("this kernel does not monitor them (CONFIG_INET_DIAG): %w", err)
	case err == nil:
		return nil
	}
	return fmt.Errorf("list %v sockets: %w", p, err)
}

// Ports calls found with the local port of every socket that List would return, and perhaps more than once. It is for those who
// want to know of tens of thousands which ports they have, and nothing else.
func Ports(ctx context.Context, f Filter, found func(port uint16)) error {
	d, err := newDumper()
	if err != nil {
		return fmt.Errorf("list sockets: %w", err)
	}
	defer d.close()
	l := &lister{dumper: d, filter: f}
	for _, p := range f.protocols() {
		err := wrap(ctx, p, l.all(p, 0, func(m []byte) error {
			if len(m) < messageSize {
				return fmt.Errorf("socket description of %d bytes", len(m))
			}
			found(binary.BigEndian.Uint16(m[4:]))
			return nil
		}))
		if err != nil {
			return err
		}
	}
	return nil
}

// BoundOnlyVisible reports whether this kernel lists TCP sockets that are bound and do not listen; those before about 6.8 do not, and a port
// held by such a socket then looks free. It binds one on loopback and looks for it.
func BoundOnlyVisible(ctx context.Context) (bool, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return false, fmt.Errorf("probe bound sockets: %w", err)
	}
	defer unix.Close(fd)
	if err := BindLoopback(fd); err != nil {
		return false, fmt.Errorf("probe bound sockets: %w", err)
	}
	addr, err := unix.Getsockname(fd)
	if err != nil {
		return false, fmt.Errorf("probe bound sockets: %w", err)
	}
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE)
	if err != nil {
		return false, fmt.Errorf("probe bound sockets: %w", err)
	}
	port := uint16(addr.(*unix.SockaddrInet4).Port)
	sockets, err := List(ctx, Filter{Protocols: []Protocol{TCP}, First: port, States: []State{BoundOnly}})
	if err != nil {
		return false, err
	}
	return slices.ContainsFunc(sockets, func(s Socket) bool { return s.Cookie == cookie }), nil
}

// A lister carries what the dumps of one protocol share.
type lister struct {
	*dumper
	filter Filter
}

// all calls yield with each socket of a protocol, as the kernel describes it with extensions.
func (l *lister) all(p Protocol, extensions uint8, yield func(message []byte) error) error {
	states := stateBits(p, l.filter.States)
	if states == 0 {
		return nil
	}
	last := l.filter.Last
	if last == 0 {
		last = l.filter.First
	}
	if p == TCP {
		// The kernel walks its tables once for both families if asked in the old way, which newer kernels still answer.
		err := l.dump(tcpOfOld, oldRequest(extensions, states, l.filter.First, last), yield)
		if !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.EOPNOTSUPP) {
			return err
		}
	}
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		err := l.dump(unix.SOCK_DIAG_BY_FAMILY, request(family, p, extensions, states, l.filter.First, last), yield)
		if p == UDPLite && errors.Is(err, unix.ENOENT) {
			return nil // a kernel without UDP-Lite has no such sockets
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// socket reads the description of one, but for the names of devices.
func (l *lister) socket(p Protocol, message []byte) (Socket, error) {
	s, device, err := parse(message)
	if err != nil {
		return Socket{}, err
	}
	s.Protocol, s.Device.Index = p, device
	if p == TCP && s.State == Unconnected {
		s.State = BoundOnly
	}
	return s, nil
}

// locate fills in what depends on the name of the device that s is bound to. names are those known already.
func (s *Socket) locate(names map[int]string) {
	index := s.Device.Index
	if index == 0 {
		return
	}
	name, known := names[index]
	if !known {
		if i, err := net.InterfaceByIndex(index); err == nil {
			name = i.Name
		}
		names[index] = name
	}
	s.Device.Name = name
	s.Local, s.Remote = zoned(s.Local, name), zoned(s.Remote, name)
}
