package binder_test

import (
	"fmt"
	"net/netip"
	"runtime"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/registry"
)

// What strangers do in a history.

func protoOf(s stranger) registry.Protocol {
	switch {
	case s.Proto == unix.IPPROTO_UDPLITE:
		return registry.UDPLite
	case s.Type == unix.SOCK_DGRAM:
		return registry.UDP
	}
	return registry.TCP
}

// overlaps says whether s is in the way of e. A socket that was on all addresses of both families when it came to an IPv6 address, by
// connecting or as a connection of its listener, is still in the way of all IPv4 addresses.
func (s *squatter) overlaps(e registry.Endpoint) bool {
	if s.at.Overlaps(e) {
		return true
	}
	all4 := s.at
	all4.Addr = netip.IPv4Unspecified()
	return s.dual && s.at.Addr.Is6() && e.Addr == all4.Addr && all4.Overlaps(e)
}

func (s *squatter) String() string {
	return fmt.Sprintf("%v at %v (%v, uid %d, dual %t)", s.stranger, s.at, s.state, s.uid, s.dual)
}

// make makes the socket, of another user where that is wanted: a socket belongs to the fsuid of the thread that makes it.
func (s *squatter) make() (err error) {
	if s.uid != unix.Geteuid() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		if err := unix.Setfsuid(s.uid); err != nil {
			return err
		}
		defer func() { _ = unix.Setfsuid(unix.Geteuid()) }()
	}
	s.fd, err = s.try()
	return err
}

// comes has a stranger make a socket of some kind, and perhaps listen.
func (w *world) comes(t *testing.T) {
	place := pick(w, w.places)
	place.Proto = pick(w, []registry.Protocol{registry.TCP, registry.TCP, registry.UDP, registry.UDPLite})
	if place.Proto == registry.UDPLite && !w.lite {
		place.Proto = registry.UDP
	}
	s := &squatter{
		stranger: plain(place.At(pick(w, w.ports)), place.Proto == registry.TCP && w.mptcp && w.odds(5)),
		peer:     -1, uid: pick(w, w.uids), state: registry.SocketBound,
	}
	s.RA, s.RP = !w.odds(3), w.odds(3)
	if place.Addr.Is4() && w.odds(4) {
		s.At = netip.AddrPortFrom(netip.AddrFrom16(place.Addr.As16()), s.At.Port())
	}
	if place.Proto == registry.TCP && w.odds(2) {
		s.Listen, s.state = true, registry.SocketListening
	}
	s.at = s.place(place.Proto)
	s.dual = s.at.Dual()
	err := s.make()
	w.say("stranger %v: %v", s, err)
	if err == nil {
		w.strangers = append(w.strangers, s)
	}
	w.judge(t, s, err)
}

// judge says whether a stranger may have got in, or been refused.
func (w *world) judge(t *testing.T, s *squatter, err error) {
	t.Helper()
	strangers, own := w.inTheWay(s.at)
	strangers = slices.DeleteFunc(strangers, func(o *squatter) bool { return o == s })
	switch {
	case err != nil && !isInUse(err):
		t.Fatalf("stranger %v: %v", s, err)
	case err == nil && len(own) > 0 && pastADevice(s, own):
		w.count.past++
		w.leaves(s)
	case err == nil && len(own) > 0:
		t.Errorf("stranger %v has got in, where portd has %v; others there are %v", s, own, strangers)
	case err != nil && len(own)+len(strangers) == 0:
		t.Errorf("stranger %v was refused (%v), and nobody is in its way", s, err)
	case err == nil:
		w.count.in++
	case len(own) > 0:
		w.count.out++
	}
}

// pastADevice says whether s is one of those that a hold on a device does not keep out (TestReusePortPastADevice).
func pastADevice(s *squatter, own []registry.Endpoint) bool {
	return s.RP && !slices.ContainsFunc(own, func(e registry.Endpoint) bool { return e.Device == "" && e.Addr.Zone() == "" })
}

// begins has a stranger who has bound a port listen on it.
func (w *world) begins(t *testing.T) {
	s := w.some(func(s *squatter) bool { return s.Type == unix.SOCK_STREAM && s.state == registry.SocketBound })
	if s == nil {
		return
	}
	err := unix.Listen(s.fd, 16)
	w.say("listens %v: %v", s, err)
	w.judge(t, s, err)
	if err == nil {
		s.state = registry.SocketListening
	}
}

// connects has a stranger connect from its port, or accept a connection on it.
func (w *world) connects(t *testing.T) {
	s := w.some(func(s *squatter) bool { return s.state < registry.SocketConnected })
	switch {
	case s == nil:
	case s.state == registry.SocketListening:
		w.accepts(t, s.fd, s.at)
	default:
		to := s.At.Addr()
		switch {
		case to == netip.IPv4Unspecified():
			to = netip.AddrFrom4([4]byte{127, 0, 0, 1})
		case to == registry.AnyAddr && !s.V6Only && w.odds(2):
			to = netip.MustParseAddr("::ffff:127.0.0.1")
		case to == registry.AnyAddr:
			to = netip.IPv6Loopback()
		}
		_ = unix.SetNonblock(s.fd, true)
		err := unix.Connect(s.fd, sockaddr(netip.AddrPortFrom(to, w.server.Port())))
		w.say("connects %v to %v: %v", s, to, err)
		if err != nil { // there is no way to there from its device
			w.leaves(s)
			return
		}
		s.state = registry.SocketConnected
		s.at = w.locate(t, s.fd, s.at)
		w.say("is now %v", s)
		if s.Type == unix.SOCK_STREAM {
			from, err := unix.Getsockname(s.fd)
			if err != nil {
				t.Fatal(err)
			}
			if s.peer = acceptOf(w.listen, from); s.peer < 0 {
				t.Fatalf("%v has connected, and is not there", s)
			}
		}
	}
}

// visits has a client connect to what listens of portd's, and the connection closed by the server, which leaves it behind.
func (w *world) visits(t *testing.T) {
	if len(w.held) == 0 {
		return
	}
	res := pick(w, w.held)
	for i := range res.Assigned {
		for _, s := range w.seen.listening[registry.SocketKey{Reservation: res.ID, Index: i}] {
			w.accepts(t, s.FD, s.Endpoint)
		}
	}
}

// accepts makes a connection to a listening socket and leaves it there, open or closed.
func (w *world) accepts(t *testing.T, listener int, at registry.Endpoint) {
	to := at.Addr
	switch {
	case to == netip.IPv4Unspecified(), at.Dual() && w.odds(2):
		to = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	case to == registry.AnyAddr:
		to = netip.IPv6Loopback()
	}
	client := stranger{Type: unix.SOCK_STREAM, At: netip.AddrPortFrom(netip.IPv4Unspecified(), 0)}
	if to.Is6() {
		client.At = netip.AddrPortFrom(netip.IPv6Unspecified(), 0)
	}
	peer, err := client.try()
	if err != nil {
		t.Fatal(err)
	}
	_ = unix.SetNonblock(peer, true)
	if err := unix.Connect(peer, sockaddr(netip.AddrPortFrom(to, at.First))); err != nil && err != unix.EINPROGRESS {
		if at.Device == "" {
			t.Errorf("connect to %v of %v: %v", to, at, err)
		}
		_ = unix.Close(peer) // the host's own connections do not come by that device
		return
	}
	from, err := unix.Getsockname(peer)
	if err != nil {
		t.Fatal(err)
	}
	fd := acceptOf(listener, from)
	if fd < 0 { // of several that listen there by SO_REUSEPORT another one has it
		_ = unix.Close(peer)
		return
	}
	// It is of the user who accepts it.
	s := &squatter{fd: fd, peer: peer, uid: unix.Geteuid(), state: registry.SocketConnected, at: w.locate(t, fd, at), dual: at.Dual()}
	s.Type = unix.SOCK_STREAM
	ra, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR)
	if err != nil {
		t.Fatal(err)
	}
	s.RA = ra == 1
	if w.odds(2) {
		s.leave()
	}
	w.say("has left %v", s)
	w.strangers = append(w.strangers, s)
}

// acceptOf accepts the connection of a client, which has connected; -1 where it is not there.
func acceptOf(listener int, client unix.Sockaddr) int {
	for {
		waiting := []unix.PollFd{{Fd: int32(listener), Events: unix.POLLIN}}
		if n, err := unix.Poll(waiting, 0); n == 0 && err == nil {
			return -1
		}
		fd, from, err := unix.Accept4(listener, unix.SOCK_CLOEXEC)
		if err != nil {
			continue
		}
		if portOf(from) == portOf(client) {
			return fd
		}
		_ = unix.Close(fd)
	}
}

func portOf(a unix.Sockaddr) int {
	if a, ok := a.(*unix.SockaddrInet4); ok {
		return a.Port
	}
	return a.(*unix.SockaddrInet6).Port
}

// goes has a stranger close its socket. What was a connection may be remembered.
func (w *world) goes(*testing.T) {
	if s := w.some(func(s *squatter) bool { return s.fd >= 0 }); s != nil {
		if s.state == registry.SocketConnected && s.Type == unix.SOCK_STREAM && w.odds(2) {
			s.leave()
			w.say("leaves %v", s)
			return
		}
		w.say("goes %v", s)
		w.leaves(s)
	}
}

func (w *world) leaves(s *squatter) {
	s.reset()
	w.strangers = slices.DeleteFunc(w.strangers, func(o *squatter) bool { return o == s })
}

// leave closes a connection, before its other end does, so that the kernel keeps it in mind.
func (s *squatter) leave() {
	_ = unix.Close(s.fd)
	_ = unix.Close(s.peer)
	s.fd, s.peer, s.state = -1, -1, registry.SocketLeftover
}

// reset closes the socket so that nothing is left.
func (s *squatter) reset() {
	if s.fd < 0 {
		return
	}
	_ = unix.SetsockoptLinger(s.fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	_ = unix.Close(s.fd)
	if s.peer >= 0 {
		_ = unix.Close(s.peer)
	}
}

func (w *world) some(what func(*squatter) bool) *squatter {
	var all []*squatter
	for _, s := range w.strangers {
		if what(s) {
			all = append(all, s)
		}
	}
	if len(all) == 0 {
		return nil
	}
	return pick(w, all)
}

// locate asks the kernel where a connected socket is, which was bound at.
func (w *world) locate(t *testing.T, fd int, at registry.Endpoint) registry.Endpoint {
	t.Helper()
	name, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	switch name := name.(type) {
	case *unix.SockaddrInet4:
		at.Addr = netip.AddrFrom4(name.Addr)
	case *unix.SockaddrInet6:
		at.Addr = netip.AddrFrom16(name.Addr).Unmap().WithZone(at.Addr.Zone())
	}
	at.V6Only = at.V6Only && at.Addr == registry.AnyAddr
	return at
}
