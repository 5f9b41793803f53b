package binder_test

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/binder"
	"github.com/portd/portd/internal/registry"
)

// TestThievesOverLeftovers holds ports, by TCP and MPTCP, over what connections of every kind have left there. No thief gets
// in, of this user or another one, whether portd holds the port, listens, or has ceased to.
func TestThievesOverLeftovers(t *testing.T) {
	b := open(t, binder.Config{})
	needFeature(t, b, "hold-over-leftovers")
	loopback4, loopback6 := netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback()
	for _, left := range []struct {
		name       string
		from       netip.Addr // where the socket is bound that connects, or listens
		to         netip.Addr // where the connection is
		connecting bool
		places     []string // of holds in whose way it is
	}{
		{"connected by", loopback4, loopback4, true, []string{"tcp/127.0.0.1:1", "tcp4/1", "tcp/1"}},
		{"connected from all by", netip.IPv4Unspecified(), loopback4, true, []string{"tcp/127.0.0.1:1", "tcp4/1", "tcp/1"}},
		{"connected from both by", registry.AnyAddr, loopback6, true, []string{"tcp/[::1]:1", "tcp6/1", "tcp/1", "tcp4/1"}},
		{"accepted by", loopback4, loopback4, false, []string{"tcp/127.0.0.1:1", "tcp4/1", "tcp/1"}},
		{"accepted from both by", registry.AnyAddr, loopback6, false, []string{"tcp/[::1]:1", "tcp6/1", "tcp/1", "tcp4/1"}},
		{"accepted as IPv4 from both by", registry.AnyAddr, loopback4, false, []string{"tcp/127.0.0.1:1", "tcp4/1", "tcp/1"}},
	} {
		for _, by := range kinds[:2] {
			for _, closed := range []bool{false, true} {
				if closed && left.connecting && by.number == unix.IPPROTO_MPTCP {
					continue // the kernel closes these when it comes to it, and until then they are bound
				}
				t.Run(fmt.Sprintf("%s %s closed %t", left.name, by.name, closed), func(t *testing.T) {
					if !by.can(t) {
						t.Skipf("needs a kernel with %s", by.name)
					}
					p := port()
					fd, peer := connection(t, stranger{
						Type: unix.SOCK_STREAM, Proto: by.number, At: netip.AddrPortFrom(left.from, p), RA: true, Listen: !left.connecting,
					}, left.to)
					if closed {
						_ = unix.Close(fd)
						_ = unix.Close(peer)
					} else {
						defer unix.Close(peer)
						defer unix.Close(fd)
					}
					for _, text := range left.places {
						for _, kind := range kinds[:2] {
							if kind.can(t) {
								robHold(t, b, at(t, text, p), kind)
							}
						}
					}
				})
			}
		}
	}
}

// robHold holds ep, over leftovers that are in its way, and sends thieves.
func robHold(t *testing.T, b *binder.Binder, ep registry.Endpoint, kind kind) {
	t.Helper()
	want := registry.Bind{Key: key(ep), Endpoint: ep, Options: registry.BindOptions{MPTCP: kind.name == "mptcp"}, Fresh: true}
	if err := b.Bind(t.Context(), want); !errors.Is(err, registry.ErrTaken) {
		t.Errorf("%s %v: nothing is in the way: %v", kind.name, ep, err)
	}
	if len(holders(t, b, ep)) == 0 {
		t.Errorf("%s %v: what is in the way is not named", kind.name, ep)
	}
	want.Fresh = false
	if err := b.Bind(t.Context(), want); err != nil {
		t.Errorf("%s %v: %v", kind.name, ep, err)
		return
	}
	defer release(t, b, ep)
	rob := func(when string) {
		t.Helper()
		for _, thief := range thieves(kind.socket, ep.First) {
			for _, uid := range []int{unix.Geteuid(), 65534} {
				s := &squatter{stranger: thief, uid: uid}
				s.Proto = kind.number
				err := s.make()
				if err == nil {
					_ = unix.Close(s.fd)
				} else if !isInUse(err) {
					t.Fatalf("%v: %v", thief, err)
				}
				if err == nil && ep.Overlaps(thief.place(ep.Proto)) {
					t.Errorf("%s %v, %s: thief %v of uid %d got in", kind.name, ep, when, thief, uid)
				}
			}
		}
	}
	rob("held")
	listen(t, b, ep)
	rob("listening")
	if err := b.Unlisten(key(ep)); err != nil {
		t.Fatal(err)
	}
	rob("held again")
}

// connection is one that s makes to addr, or accepts there; its listener is gone. Both ends are the caller's.
func connection(t *testing.T, s stranger, addr netip.Addr) (fd, peer int) {
	t.Helper()
	server, client := s, stranger{Type: unix.SOCK_STREAM, At: netip.AddrPortFrom(anyOf(addr), 0)}
	if !s.Listen {
		server, client = stranger{Type: unix.SOCK_STREAM, At: netip.AddrPortFrom(addr, port()), Listen: true}, s
	}
	ln, err := server.try()
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(ln)
	out, err := client.try()
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Connect(out, sockaddr(netip.AddrPortFrom(addr, server.At.Port()))); err != nil {
		t.Fatal(err)
	}
	in, _, err := unix.Accept4(ln, unix.SOCK_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	if s.Listen {
		return in, out
	}
	return out, in
}

// anyOf is all addresses of addr's family.
func anyOf(addr netip.Addr) netip.Addr {
	if addr.Is4() {
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}
