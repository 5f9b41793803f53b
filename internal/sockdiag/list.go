package sockdiag

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"slices"
	"time"

	"github.com/mdlayher/netlink"
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
// there are or pass: about half a millisecond for each family and TCP state group (bound-only; connected) with tables
// of the usual size, a tenth of that for listening ones and UDP.
func List(ctx context.Context, f Filter) ([]Socket, error) {
	var sockets []Socket
	err := each(ctx, f, func(l *lister, p Protocol) error {
		return l.all(p, withInfo, func(m []byte) error {
			s, err := l.socket(p, m)
			sockets = append(sockets, s)
			return err
		})
	})
	if err != nil {
		return nil, err
	}
	return sockets, nil
}

// each lets list list each protocol of f.
func each(ctx context.Context, f Filter, list func(*lister, Protocol) error) error {
	conn, err := netlink.Dial(unix.NETLINK_SOCK_DIAG, &netlink.Config{MessageBufferSize: maxChunk})
	if err != nil {
		return fmt.Errorf("list sockets: %w", err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()

	l := &lister{conn: conn, filter: f, devices: make(map[int]string)}
	protocols := f.Protocols
	if len(protocols) == 0 {
		protocols = []Protocol{TCP, UDP, UDPLite}
	}
	for _, p := range protocols {
		err := ctx.Err() // the deadline may come too late for a short answer
		if err == nil {
			err = list(l, p)
		}
		if err != nil {
			switch {
			case ctx.Err() != nil:
				err = ctx.Err()
			case errors.Is(err, unix.ENOENT):
				err = fmt.Errorf("this kernel does not monitor them (CONFIG_INET_DIAG): %w", err)
			}
			return fmt.Errorf("list %v sockets: %w", p, err)
		}
	}
	return nil
}

// Ports calls found with the local port of every socket that List would return, and perhaps more than once. It is for those who
// want to know of tens of thousands which ports they have, and nothing else.
func Ports(ctx context.Context, f Filter, found func(port uint16)) error {
	return each(ctx, f, func(l *lister, p Protocol) error {
		return l.all(p, 0, func(m []byte) error {
			if len(m) < messageSize {
				return fmt.Errorf("socket description of %d bytes", len(m))
			}
			found(binary.BigEndian.Uint16(m[4:]))
			return nil
		})
	})
}

// BoundOnlyVisible reports whether this kernel lists TCP sockets that are bound and do not listen; those before about 6.8 do not, and a port
// held by such a socket then looks free. It binds one on loopback and looks for it.
func BoundOnlyVisible(ctx context.Context) (bool, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return false, fmt.Errorf("probe bound sockets: %w", err)
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
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

// maxChunk is the most that the kernel puts into one message of a dump (netlink_dump in net/netlink/af_netlink.c).
const maxChunk = 32 << 10

// A lister carries what the dumps of one call share.
type lister struct {
	conn    *netlink.Conn
	filter  Filter
	devices map[int]string // names by index
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
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		err := l.dump(request(family, p, extensions, states, l.filter.First, last), yield)
		if p == UDPLite && errors.Is(err, unix.ENOENT) {
			return nil // a kernel without UDP-Lite has no such sockets
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (l *lister) dump(request []byte, yield func(message []byte) error) error {
	_, err := l.conn.Send(netlink.Message{
		Header: netlink.Header{Type: unix.SOCK_DIAG_BY_FAMILY, Flags: netlink.Request | netlink.Dump},
		Data:   request,
	})
	if err != nil {
		return err
	}
	for m, err := range l.conn.ReceiveIter() {
		if err != nil {
			return err
		}
		if err := yield(m.Data); err != nil {
			return err
		}
	}
	return nil
}

// socket reads the description of one.
func (l *lister) socket(p Protocol, message []byte) (Socket, error) {
	s, device, err := parse(message)
	if err != nil {
		return Socket{}, err
	}
	s.Protocol = p
	if p == TCP && s.State == Unconnected {
		s.State = BoundOnly
	}
	l.locate(&s, device)
	return s, nil
}

// locate fills in what depends on the device that s is bound to.
func (l *lister) locate(s *Socket, index int) {
	if index == 0 {
		return
	}
	name, known := l.devices[index]
	if !known {
		if i, err := net.InterfaceByIndex(index); err == nil {
			name = i.Name
		}
		l.devices[index] = name
	}
	s.Device = Device{index, name}
	s.Local, s.Remote = zoned(s.Local, name), zoned(s.Remote, name)
}
