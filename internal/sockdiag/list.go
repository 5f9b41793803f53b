package sockdiag

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"

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
// there are or pass: a quarter of a millisecond for TCP with tables of the usual size, and a tenth of that for UDP and for
// UDP-Lite.
func List(ctx context.Context, f Filter) ([]Socket, error) {
	var l Lister
	defer l.Close()
	return l.List(ctx, f)
}

// A Lister lists the sockets of one network namespace and keeps what it asks the kernel by, which takes as long to make and to close as
// UDP's tables to walk. The zero Lister is ready; whoever calls its methods does so on threads in the same namespace, and at the same time
// if need be.
type Lister struct {
	mu   sync.Mutex
	idle []*dumper
}

// maxIdle is how many descriptors a Lister keeps: more ask at the same time now and then only.
const maxIdle = 2

// Close closes what the Lister has kept. It keeps anew what it is used with afterwards.
func (l *Lister) Close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, d := range l.idle {
		d.close()
	}
	l.idle = nil
}

func (l *Lister) take() (*dumper, error) {
	l.mu.Lock()
	if n := len(l.idle); n > 0 {
		d := l.idle[n-1]
		l.idle = l.idle[:n-1]
		l.mu.Unlock()
		return d, nil
	}
	l.mu.Unlock()
	return newDumper()
}

// put takes back what has ended as err says: after an error there may be more of an answer to come.
func (l *Lister) put(d *dumper, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil || len(l.idle) == maxIdle {
		d.close()
		return
	}
	l.idle = append(l.idle, d)
}

// List is the function of that name, in the Lister's namespace.
func (l *Lister) List(ctx context.Context, f Filter) ([]Socket, error) {
	// TCP has by far the largest tables: the others are walked beside it, by one that is made here, for a thread that is in
	// another network namespace.
	first, rest := f.protocols(), []Protocol(nil)
	if i := slices.Index(first, TCP); i >= 0 && len(first) > 1 {
		first, rest = []Protocol{TCP}, slices.Delete(slices.Clone(first), i, i+1)
	}
	var beside errgroup.Group
	var others []Socket
	if len(rest) > 0 {
		d, err := l.take()
		if err != nil {
			return nil, fmt.Errorf("list sockets: %w", err)
		}
		beside.Go(func() (err error) {
			others, err = f.sockets(ctx, d, rest)
			l.put(d, err)
			return err
		})
	}
	d, err := l.take()
	var sockets []Socket
	if err != nil {
		err = fmt.Errorf("list sockets: %w", err)
	} else {
		sockets, err = f.sockets(ctx, d, first)
		l.put(d, err)
	}
	if err := errors.Join(err, beside.Wait()); err != nil {
		return nil, err
	}
	sockets = append(sockets, others...)
	var devices map[int]string
	for i := range sockets {
		if sockets[i].Device.Index != 0 {
			if devices == nil {
				devices = make(map[int]string)
			}
			sockets[i].locate(devices)
		}
	}
	return sockets, nil
}

// sockets are those of some protocols, but for the names of devices.
func (f Filter) sockets(ctx context.Context, d *dumper, protocols []Protocol) (all []Socket, err error) {
	for _, p := range protocols {
		err := f.walk(d, p, withInfo, func(m []byte) error {
			s, err := socket(p, m)
			all = append(all, s)
			return err
		})
		if err := wrap(ctx, p, err); err != nil {
			return nil, err
		}
	}
	return all, nil
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
	for _, p := range f.protocols() {
		err := wrap(ctx, p, f.walk(d, p, 0, func(m []byte) error {
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
	port, cookie, err := nameOf(fd)
	if err != nil {
		return false, fmt.Errorf("probe bound sockets: %w", err)
	}
	sockets, err := List(ctx, Filter{Protocols: []Protocol{TCP}, First: port, States: []State{BoundOnly}})
	if err != nil {
		return false, err
	}
	return slices.ContainsFunc(sockets, func(s Socket) bool { return s.Cookie == cookie }), nil
}

// walk calls yield with each socket of a protocol that passes f, as the kernel describes it with extensions.
func (f Filter) walk(d *dumper, p Protocol, extensions uint8, yield func(message []byte) error) error {
	states := stateBits(p, f.States)
	if states == 0 {
		return nil
	}
	last := f.Last
	if last == 0 {
		last = f.First
	}
	// The kernel walks its tables once for both families if asked in the old way.
	if p == TCP || bothAtOnce() {
		err := d.dump(tcpOfOld, oldRequest(p, extensions, states, f.First, last), yield)
		if p == UDPLite && errors.Is(err, unix.ENOENT) {
			return nil
		}
		if !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.EOPNOTSUPP) {
			return err
		}
	}
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		err := d.dump(unix.SOCK_DIAG_BY_FAMILY, request(family, p, extensions, states, f.First, last), yield)
		if p == UDPLite && errors.Is(err, unix.ENOENT) {
			return nil // a kernel without UDP-Lite has no such sockets
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// bothAtOnce says whether the kernel tells of UDP in the old way, which knew TCP only, as those since about 5.9 do that are told the
// protocol beside it. Before them it would tell of TCP's: so it must have shown a socket of UDP.
var bothAtOnce = sync.OnceValue(func() bool {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	if BindLoopback(fd) != nil {
		return false
	}
	port, cookie, err := nameOf(fd)
	if err != nil {
		return false
	}
	d, err := newDumper()
	if err != nil {
		return false
	}
	defer d.close()
	shown := false
	err = d.dump(tcpOfOld, oldRequest(UDP, 0, stateBits(UDP, nil), port, port), func(m []byte) error {
		s, err := socket(UDP, m)
		shown = shown || s.Cookie == cookie
		return err
	})
	return err == nil && shown
})

// nameOf is how the kernel's answers have an IPv4 socket of ours.
func nameOf(fd int) (port uint16, cookie uint64, err error) {
	addr, err := unix.Getsockname(fd)
	if err != nil {
		return 0, 0, err
	}
	cookie, err = unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE)
	return uint16(addr.(*unix.SockaddrInet4).Port), cookie, err
}

// socket reads the description of one, but for the name of its device.
func socket(p Protocol, message []byte) (Socket, error) {
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
