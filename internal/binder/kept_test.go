package binder_test

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/binder"
	"github.com/portd/portd/internal/registry"
)

// wantKept fails t if anybody gets in where the endpoint is.
func wantKept(t *testing.T, ep registry.Endpoint) {
	t.Helper()
	kind := unix.SOCK_STREAM
	if !ep.Proto.Streams() {
		kind = unix.SOCK_DGRAM
	}
	s := stranger{Type: kind, V6Only: ep.V6Only, Device: ep.Device}
	if ep.Proto == registry.UDPLite {
		s.Proto = unix.IPPROTO_UDPLITE
	}
	for p := int(ep.First); p <= int(ep.Last); p++ {
		addr := ep.Addr
		if addr == netip.MustParseAddr("192.0.2.7") { // which the host does not have
			addr = netip.IPv4Unspecified()
		}
		for _, ra := range []bool{false, true} {
			s.At, s.RA = netip.AddrPortFrom(addr, uint16(p)), ra
			fd, err := s.try()
			if err == nil {
				_ = unix.Close(fd)
			}
			if !isInUse(err) {
				t.Errorf("a stranger at %v: %v", ep.At(uint16(p)), err)
			}
		}
	}
}

// backlogged connects n clients to a listener, who wait to be accepted; each sends a line.
func backlogged(t *testing.T, to string, n int) {
	t.Helper()
	for i := range n {
		c := dial(t, to)
		t.Cleanup(func() { c.Close() })
		if _, err := fmt.Fprint(c, i); err != nil {
			t.Fatal(err)
		}
	}
}

// Whatever is bound is the successor's, just as it was, and nobody else's in between.
func TestKept(t *testing.T) {
	for _, c := range []struct {
		name, ep string
		opt      registry.BindOptions
		need     func(t *testing.T)
	}{
		{"dual", "tcp/1", registry.BindOptions{}, nil},
		{"loopback", "tcp/127.0.0.1:1", registry.BindOptions{}, nil},
		{"one of IPv6", "tcp/[::1]:1", registry.BindOptions{}, nil},
		{"IPv4", "tcp4/1", registry.BindOptions{}, nil},
		{"IPv6", "tcp6/1", registry.BindOptions{}, nil},
		{"MPTCP", "tcp/1", registry.BindOptions{MPTCP: true}, nil},
		{"MPTCP on IPv6", "tcp6/1", registry.BindOptions{MPTCP: true}, nil},
		{"device", "tcp/*%kept0:1", registry.BindOptions{}, func(t *testing.T) { addBridge(t, "kept0") }},
		{"freebind", "tcp/192.0.2.7:1", registry.BindOptions{Freebind: true}, nil},
		{"transparent", "tcp/192.0.2.7:1", registry.BindOptions{Transparent: true}, nil},
		{"datagrams", "udp/1", registry.BindOptions{}, nil},
		{"datagrams on IPv6", "udp6/1", registry.BindOptions{}, nil},
		{"UDP-Lite", "udplite/127.0.0.1:1", registry.BindOptions{}, nil},
		{"group", "udp/127.0.0.1:1", registry.BindOptions{Group: 4}, nil},
		{"SCTP", "sctp/1", registry.BindOptions{}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := &observer{}
			w := keep(t, binder.Config{Observer: o})
			if c.need != nil {
				c.need(t)
			}
			ep := at(t, c.ep, port())
			want := registry.Bind{Key: key(ep), Endpoint: ep, Options: c.opt}
			if err := w.b.Bind(t.Context(), want); errors.Is(err, registry.ErrUnsupported) {
				t.Skip(err)
			} else if err != nil {
				t.Fatal(err)
			}
			names, socks := w.names(), w.sockets()
			if len(socks) != max(c.opt.Group, 1) {
				t.Fatalf("the keeper has %d sockets", len(socks))
			}
			again := func() {
				t.Helper()
				w.die()
				wantKept(t, ep)
				w.begin()
				if err := w.b.Bind(t.Context(), want); err != nil {
					t.Fatal(err)
				}
				wantKept(t, ep)
			}
			same := func() {
				t.Helper()
				w.unclaimed(0)
				wantKept(t, ep)
				if diff := cmp.Diff(socks, w.sockets()); diff != "" {
					t.Errorf("the sockets are others:\n%s", diff)
				}
				if diff := cmp.Diff(names, w.names()); diff != "" {
					t.Errorf("the keeper was told of what it has:\n%s", diff)
				}
			}
			again()
			same()
			if ep.Proto == registry.TCP {
				listen(t, w.b, ep)
				again()
				listen(t, w.b, ep)
				same()
				if n, err := unix.GetsockoptInt(o.last[0].FD, unix.SOL_SOCKET, unix.SO_ACCEPTCONN); n != 1 || err != nil {
					t.Errorf("it listens: %d, %v", n, err)
				}
			}
			release(t, w.b, ep)
			if left := w.names(); len(left) > 0 {
				t.Errorf("the keeper has %v after the release", left)
			}
		})
	}
}

// Clients who wait are the successor's, and those who come in between wait, too.
func TestKeptBacklog(t *testing.T) {
	for _, opt := range []registry.BindOptions{{}, {MPTCP: true}} {
		o := &observer{}
		w := keep(t, binder.Config{Observer: o})
		ep := at(t, "tcp/1", port())
		want := registry.Bind{Key: key(ep), Endpoint: ep, Options: opt}
		if err := w.b.Bind(t.Context(), want); errors.Is(err, registry.ErrUnsupported) {
			t.Skip(err)
		} else if err != nil {
			t.Fatal(err)
		}
		listen(t, w.b, ep)
		to := fmt.Sprintf("127.0.0.1:%d", ep.First)
		backlogged(t, to, 3)
		w.die()
		backlogged(t, to, 4)
		w.begin()
		if err := w.b.Bind(t.Context(), want); err != nil {
			t.Fatal(err)
		}
		backlogged(t, to, 2)
		if err := w.b.Listen(t.Context(), key(ep), registry.ListenOptions{Backlog: 77, KeepAliveOff: true}); err != nil {
			t.Fatal(err)
		}
		w.unclaimed(0)
		backlogged(t, to, 1)
		got, err := w.b.Options(key(ep))
		if err != nil || got.Backlog != 77 || !got.KeepAliveOff {
			t.Errorf("options %+v, %v", got, err)
		}
		fd := o.last[0].FD
		var all []string
		for range 10 {
			conn, _, err := unix.Accept4(fd, unix.SOCK_CLOEXEC)
			if err != nil {
				t.Fatal(err)
			}
			buf := make([]byte, 9)
			n, err := unix.Read(conn, buf)
			if err != nil {
				t.Error(err)
			}
			all = append(all, string(buf[:max(n, 0)]))
			_ = unix.Close(conn)
		}
		if fmt.Sprint(all) != "[0 1 2 0 1 2 3 0 1 0]" {
			t.Errorf("accepted %v", all)
		}
		release(t, w.b, ep)
	}
}

// What nobody takes is free when Unclaimed returns, listening or not, whoever may have it; in bags as well.
func TestUnclaimed(t *testing.T) {
	for _, limited := range []bool{false, true} {
		t.Run(fmt.Sprintf("limited=%t", limited), func(t *testing.T) { testUnclaimed(t, limited) })
	}
}

func testUnclaimed(t *testing.T, limited bool) {
	if limited {
		needMessages(t)
	}
	w := keep(t, binder.Config{Spare: 50})
	if limited {
		limit(t, 300)
	}
	n, first, every := 40, 10000, 9
	if limited {
		n, first, every = 400, 11000, 50
	}
	var claimed, left []registry.Endpoint
	for i := range n {
		for _, text := range []string{"tcp/1", "udp/1"} {
			ep := at(t, text, uint16(first+i))
			hold(t, w.b, ep)
			if i%7 == 0 && text == "tcp/1" {
				listen(t, w.b, ep)
			}
			if i%every == 0 {
				lendOne(t, w.b, ep)
				w.b.Return(key(ep))
			}
			if i%3 == 0 {
				claimed = append(claimed, ep)
			} else {
				left = append(left, ep)
			}
		}
	}
	w.die()
	for _, ep := range append(claimed, left...) {
		wantHeld(t, ep)
	}
	w.begin()
	for i, ep := range claimed {
		hold(t, w.b, ep)
		if i%2 == 0 {
			wantHeld(t, ep)
		}
	}
	for _, ep := range left[:5] {
		wantHeld(t, ep)
	}
	if len(w.sockets()) != 2*n {
		t.Errorf("the keeper has %d sockets", len(w.sockets()))
	}
	w.unclaimed(len(left))
	for _, ep := range left {
		switch {
		case (int(ep.First)-first)%every != 0:
			wantAllFree(t, ep)
		case ep.Proto == registry.TCP: // this process has a duplicate, as a program might
			refused(t, fmt.Sprintf("127.0.0.1:%d", ep.First))
		}
	}
	for _, ep := range claimed {
		wantHeld(t, ep)
	}
	if got := len(w.sockets()); got != len(claimed) {
		t.Errorf("the keeper has %d sockets, want %d", got, len(claimed))
	}
	for _, ep := range claimed {
		if ep.Proto == registry.TCP {
			refused(t, fmt.Sprintf("127.0.0.1:%d", ep.First)) // also where the one before listened
		}
		release(t, w.b, ep)
	}
	if got := w.names(); len(got) > 0 {
		t.Errorf("the keeper has %v", got)
	}
}

// Nothing of what is inherited is taken for something that it is not.
func TestKeptMisfits(t *testing.T) {
	w := keep(t, binder.Config{})
	for _, c := range []struct {
		was, wants string
		before     registry.BindOptions
		after      registry.BindOptions
	}{
		{"tcp/1", "tcp4/1", registry.BindOptions{}, registry.BindOptions{}},
		{"tcp4/1", "tcp/1", registry.BindOptions{}, registry.BindOptions{}},
		{"tcp/127.0.0.1:1", "tcp4/1", registry.BindOptions{}, registry.BindOptions{}},
		{"tcp/1", "tcp6/1", registry.BindOptions{}, registry.BindOptions{}},
		{"tcp/1", "tcp/1", registry.BindOptions{MPTCP: true}, registry.BindOptions{}},
		{"tcp/1", "tcp/1", registry.BindOptions{}, registry.BindOptions{Freebind: true}},
		{"udp/127.0.0.1:1", "udp/127.0.0.1:1", registry.BindOptions{Group: 3}, registry.BindOptions{Group: 2}},
		{"udp/127.0.0.1:1", "udp/127.0.0.1:1", registry.BindOptions{Group: 3}, registry.BindOptions{}},
		{"udp/127.0.0.1:1", "udp/127.0.0.1:1", registry.BindOptions{}, registry.BindOptions{Group: 3}},
	} {
		p := port()
		was, wants := at(t, c.was, p), at(t, c.wants, p)
		if err := w.b.Bind(t.Context(), registry.Bind{Key: key(was), Endpoint: was, Options: c.before}); err != nil {
			t.Fatal(err)
		}
		socks := w.sockets()
		w.die()
		w.begin()
		if err := w.b.Bind(t.Context(), registry.Bind{Key: key(wants), Endpoint: wants, Options: c.after}); err != nil {
			t.Errorf("%v %+v where %v %+v was: %v", wants, c.after, was, c.before, err)
			continue
		}
		for _, s := range w.sockets() {
			if slices.Contains(socks, s) {
				t.Errorf("%v %+v is had by what %v %+v was", wants, c.after, was, c.before)
			}
		}
		w.unclaimed(0)
		release(t, w.b, wants)
		if left := w.names(); len(left) > 0 {
			t.Fatalf("the keeper has %v", left)
		}
	}
}

// A range is had by what there is of it, and the rest is bound; where a stranger has a port nothing of it is lost.
func TestKeptRange(t *testing.T) {
	w := keep(t, binder.Config{})
	first := ports(10)
	ep := at(t, "tcp/1", first)
	ep.Last = first + 9
	part := ep
	part.First, part.Last = first+2, first+6
	hold(t, w.b, part)
	socks := w.sockets()
	w.die()
	w.begin()
	thief := stranger{Type: unix.SOCK_STREAM, At: netip.AddrPortFrom(netip.IPv4Unspecified(), first+8), Listen: true}
	fd, err := thief.try()
	if err != nil {
		t.Fatal(err)
	}
	if err := w.b.Bind(t.Context(), registry.Bind{Key: key(ep), Endpoint: ep}); !errors.Is(err, registry.ErrTaken) {
		t.Errorf("bind with a port that a stranger has: %v", err)
	}
	wantKept(t, part)
	_ = unix.Close(fd)
	hold(t, w.b, ep)
	w.unclaimed(0)
	wantKept(t, ep)
	now := w.sockets()
	for _, s := range socks {
		if !slices.Contains(now, s) {
			t.Error("a socket was bound anew")
		}
	}
	release(t, w.b, ep)
	wantAllFree(t, ep)
}

// A door is found as it was left: closed to all, or with nobody answered, until it is turned.
func TestKeptDoor(t *testing.T) {
	o := &observer{}
	w := keep(t, binder.Config{Observer: o})
	shut, dark := at(t, "tcp/127.0.0.1:1", port()), at(t, "tcp/127.0.0.1:1", port())
	for _, ep := range []registry.Endpoint{shut, dark} {
		hold(t, w.b, ep)
		listen(t, w.b, ep)
	}
	if _, err := w.b.Refuse(key(shut)); err != nil {
		t.Fatal(err)
	}
	if err := w.b.Park(key(dark)); errors.Is(err, registry.ErrUnsupported) {
		t.Skip(err)
	} else if err != nil {
		t.Fatal(err)
	}
	to := func(ep registry.Endpoint) string { return fmt.Sprintf("127.0.0.1:%d", ep.First) }
	late := make(chan error, 1)
	go func() {
		c, err := net.DialTimeout("tcp", to(dark), 20*time.Second)
		if err == nil {
			c.Close()
		}
		late <- err
	}()
	check := func() {
		t.Helper()
		refused(t, to(shut))
		if _, err := net.DialTimeout("tcp", to(dark), 50*time.Millisecond); !isTimeout(err) {
			t.Errorf("connect to a door where nobody is answered: %v", err)
		}
		wantKept(t, shut)
		wantKept(t, dark)
	}
	check()
	w.die()
	check()
	w.begin()
	hold(t, w.b, shut)
	hold(t, w.b, dark)
	check()
	listen(t, w.b, shut)
	listen(t, w.b, dark)
	check()
	w.unclaimed(0)
	check()
	for _, ep := range []registry.Endpoint{shut, dark} {
		if err := w.b.Admit(key(ep)); err != nil {
			t.Fatal(err)
		}
		dial(t, to(ep)).Close()
	}
	if err := <-late; err != nil {
		t.Errorf("a client who had tried before the restart: %v", err)
	}
	if reset, err := w.b.Refuse(key(dark)); err != nil || reset == 0 {
		t.Errorf("refuse: %d reset, %v", reset, err)
	}
	refused(t, to(dark))
	release(t, w.b, shut)
	release(t, w.b, dark)
}
