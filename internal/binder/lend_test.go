package binder_test

import (
	"errors"
	"net"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/binder"
	"github.com/portd/portd/internal/registry"
)

// lendOne lends the only socket of ep; the duplicate lives until the test ends.
func lendOne(t testing.TB, b *binder.Binder, ep registry.Endpoint) int {
	t.Helper()
	lent, err := b.Lend(key(ep))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(lent[0].FD) })
	if len(lent) != 1 || lent[0].Endpoint != ep {
		t.Fatalf("lent %+v, want one socket of %v", lent, ep)
	}
	return lent[0].FD
}

// send is a datagram to ep; loopback has delivered it, or not, when it returns.
func send(t testing.TB, ep registry.Endpoint, text string) *net.UDPConn {
	t.Helper()
	addr := ep.Addr
	if addr.IsUnspecified() {
		addr = netip.MustParseAddr("127.0.0.1")
	}
	c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(addr, ep.First)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	if _, err := c.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
	return c
}

func receive(fd int) (string, error) {
	var buf [64]byte
	n, _, err := unix.Recvfrom(fd, buf[:], unix.MSG_DONTWAIT)
	return string(buf[:max(n, 0)]), err
}

func TestHeldDatagrams(t *testing.T) {
	b := open(t, binder.Config{Grace: -1})
	for _, text := range []string{"udp/1", "udp/127.0.0.1:1", "udplite/1"} {
		ep := at(t, text, port())
		if err := b.Bind(t.Context(), registry.Bind{Key: key(ep), Endpoint: ep}); errors.Is(err, registry.ErrUnsupported) {
			t.Log(err)
			continue
		} else if err != nil {
			t.Fatal(err)
		}
		if ep.Proto != registry.UDP {
			continue
		}
		client := send(t, ep, "while held")
		// An ICMP error would come up as ECONNREFUSED.
		if _, err := client.Write([]byte("again")); err != nil {
			t.Errorf("%v: a held port answered: %v", ep, err)
		}

		fd := lendOne(t, b, ep)
		if got, err := receive(fd); !errors.Is(err, unix.EAGAIN) {
			t.Errorf("%v: %q queued while held (%v)", ep, got, err)
		}
		second := lendOne(t, b, ep)
		send(t, ep, "while lent")
		if got, err := receive(fd); got != "while lent" {
			t.Errorf("%v: received %q (%v)", ep, got, err)
		}
		b.Return(key(ep))
		send(t, ep, "lent once more")
		if got, err := receive(second); got != "lent once more" {
			t.Errorf("%v: one of two loans has ended; received %q (%v)", ep, got, err)
		}
		send(t, ep, "left over")
		b.Return(key(ep))
		b.Return(key(ep)) // one too many
		send(t, ep, "too late")
		if got, err := receive(fd); !errors.Is(err, unix.EAGAIN) {
			t.Errorf("%v: %q queued after the loan ended (%v)", ep, got, err)
		}
		fd = lendOne(t, b, ep)
		send(t, ep, "lent anew")
		if got, err := receive(fd); got != "lent anew" {
			t.Errorf("%v: received %q (%v)", ep, got, err)
		}
		release(t, b, ep)
		b.Return(key(ep))
		send(t, ep, "released")
		if got, err := receive(fd); err == nil && got != "" {
			t.Errorf("%v: %q reached a duplicate of a released socket", ep, got)
		}
	}
}

// A program may lock the filter of a socket that it had, for good (SO_LOCK_FILTER): the next one can have the sockets all the same.
func TestLendWithLockedFilter(t *testing.T) {
	b := open(t, binder.Config{})
	ep := at(t, "udp/127.0.0.1:1", ports(2))
	ep.Last++
	hold(t, b, ep)
	for range 2 {
		lent, err := b.Lend(key(ep))
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range lent {
			send(t, s.Endpoint, "lent")
			if got, err := receive(s.FD); got != "lent" {
				t.Errorf("%v: received %q (%v)", s.Endpoint, got, err)
			}
			if err := unix.SetsockoptInt(s.FD, unix.SOL_SOCKET, unix.SO_LOCK_FILTER, 1); err != nil {
				t.Fatal(err)
			}
			_ = unix.Close(s.FD)
		}
		b.Return(key(ep))
	}
	release(t, b, ep)
}

// What a program may have done to a socket that it had is undone when it comes back.
func TestReturnRestores(t *testing.T) {
	b := open(t, binder.Config{})
	t.Run("udp", func(t *testing.T) {
		for _, text := range []string{"udp4/1", "udp4/*%lo:1"} {
			ep := at(t, text, port())
			hold(t, b, ep)
			fd := lendOne(t, b, ep)
			check := func(err error) {
				t.Helper()
				if err != nil {
					t.Fatal(err)
				}
			}
			check(unix.SetNonblock(fd, false))
			check(unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1))
			check(unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1))
			// As nc -u -l does; it narrows the address to 127.0.0.1.
			check(unix.Connect(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}, Port: 9}))
			b.Return(key(ep))
			if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0); err != nil || flags&unix.O_NONBLOCK == 0 {
				t.Errorf("%v: it blocks (%v)", ep, err)
			}
			for _, thief := range thieves(unix.SOCK_DGRAM, ep.First) {
				tryThief(t, ep, thief)
			}
			// On 127.0.0.2 too, which the connected socket had let go; another device remains free to have.
			elsewhere := stranger{Type: unix.SOCK_DGRAM, At: netip.AddrPortFrom(netip.MustParseAddr("127.0.0.2"), ep.First), RA: true, RP: true}
			if fd, err := elsewhere.try(); !isInUse(err) {
				_ = unix.Close(fd)
				t.Errorf("%v: %v got in: %v", ep, elsewhere, err)
			}
			device, err := unix.GetsockoptString(fd, unix.SOL_SOCKET, unix.SO_BINDTODEVICE)
			if err != nil || device != ep.Device {
				t.Errorf("%v: bound to device %q (%v)", ep, device, err)
			}
			release(t, b, ep)
		}
	})
	t.Run("tcp", func(t *testing.T) {
		held, listening := at(t, "tcp/127.0.0.1:1", port()), at(t, "tcp/127.0.0.1:1", port())
		hold(t, b, held)
		hold(t, b, listening)
		listen(t, b, listening)
		if err := unix.Listen(lendOne(t, b, held), 5); err != nil {
			t.Fatal(err)
		}
		if err := unix.Shutdown(lendOne(t, b, listening), unix.SHUT_RD); err != nil {
			t.Fatal(err)
		}
		b.Return(key(held))
		b.Return(key(listening))
		refused(t, netip.AddrPortFrom(held.Addr, held.First).String())
		_ = dial(t, netip.AddrPortFrom(listening.Addr, listening.First).String()).Close()
		for _, ep := range []registry.Endpoint{held, listening} {
			for _, thief := range thieves(unix.SOCK_STREAM, ep.First) {
				tryThief(t, ep, thief)
			}
			release(t, b, ep)
		}
	})
}

// Release takes a lent listener from its program, Close leaves it there.
func TestReleaseAndCloseOfWhatIsLent(t *testing.T) {
	b := open(t, binder.Config{})
	released, closed := at(t, "tcp/127.0.0.1:1", port()), at(t, "tcp/127.0.0.1:1", port())
	for _, ep := range []registry.Endpoint{released, closed} {
		hold(t, b, ep)
		listen(t, b, ep)
	}
	lendOne(t, b, released)
	lendOne(t, b, closed)
	release(t, b, released)
	refused(t, netip.AddrPortFrom(released.Addr, released.First).String())
	b.Close()
	_ = dial(t, netip.AddrPortFrom(closed.Addr, closed.First).String()).Close()
}
