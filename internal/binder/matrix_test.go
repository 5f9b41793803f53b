package binder_test

import (
	"errors"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/binder"
	"github.com/portd/portd/internal/registry"
)

// places are all the places of one port that matter to each other.
func places(t testing.TB, proto string) []registry.Endpoint {
	var all []registry.Endpoint
	for _, s := range []string{"4/1", "/127.0.0.1:1", "/127.0.0.2:1", "/1", "6/1", "/[::1]:1"} {
		all = append(all, at(t, proto+s, 1))
	}
	return all
}

// TestOverlaps binds every pair of endpoints and compares what the kernel says with what Endpoint.Overlaps says.
func TestOverlaps(t *testing.T) {
	b := open(t, binder.Config{})
	for _, proto := range []string{"tcp", "udp", "udplite"} {
		t.Run(proto, func(t *testing.T) {
			compareAll(t, b, places(t, proto), registry.BindOptions{})
		})
	}
	t.Run("mptcp", func(t *testing.T) {
		compareAll(t, b, places(t, "tcp"), registry.BindOptions{MPTCP: true})
	})
}

func TestOverlapsOnDevices(t *testing.T) {
	b := open(t, binder.Config{})
	addBridge(t, "br0")
	for _, proto := range []string{"tcp", "udp"} {
		t.Run(proto, func(t *testing.T) {
			all := places(t, proto)
			for _, place := range places(t, proto) {
				for _, device := range []string{"lo", "br0"} {
					place.Device = device
					all = append(all, place)
				}
			}
			// Freebind, for br0 has no addresses.
			compareAll(t, b, all, registry.BindOptions{Freebind: true})
		})
	}
}

func compareAll(t *testing.T, b *binder.Binder, all []registry.Endpoint, opt registry.BindOptions) {
	for _, x := range all {
		for _, y := range all {
			p := port()
			compare(t, b, opt, x.At(p), y.At(p))
		}
	}
}

func compare(t *testing.T, b *binder.Binder, opt registry.BindOptions, x, y registry.Endpoint) {
	t.Helper()
	first, second := registry.SocketKey{Reservation: "x"}, registry.SocketKey{Reservation: "y"}
	if err := b.Bind(t.Context(), registry.Bind{Key: first, Endpoint: x, Options: opt}); err != nil {
		if errors.Is(err, registry.ErrUnsupported) {
			t.Skip(err)
		}
		t.Fatal(err)
	}
	defer b.Release(first)
	// Both held and listening, and whether or not the one who comes may fall back.
	for _, listens := range []bool{false, true} {
		if listens {
			if !x.Proto.Streams() {
				break
			}
			if err := b.Listen(t.Context(), first, registry.ListenOptions{}); err != nil {
				t.Fatal(err)
			}
		}
		for _, fresh := range []bool{true, false} {
			err := b.Bind(t.Context(), registry.Bind{Key: second, Endpoint: y, Options: opt, Fresh: fresh})
			if err != nil && !errors.Is(err, registry.ErrTaken) {
				t.Fatalf("%v beside %v: %v", y, x, err)
			}
			if kernel, ours := err != nil, x.Overlaps(y); kernel != ours {
				t.Errorf("%v, %v (listening %t, fresh %t): kernel refuses %t, Overlaps says %t", x, y, listens, fresh, kernel, ours)
			}
			if err := b.Release(second); err != nil {
				t.Error(err)
			}
		}
	}
}

// TestMapped does the same for IPv4-mapped addresses, which an Endpoint never has: the kernel treats them as the IPv4 address
// on a dual-stack socket, so that they may be taken for it.
func TestMapped(t *testing.T) {
	b := open(t, binder.Config{})
	for _, kind := range []int{unix.SOCK_STREAM, unix.SOCK_DGRAM} {
		proto := map[int]string{unix.SOCK_STREAM: "tcp", unix.SOCK_DGRAM: "udp"}[kind]
		for _, place := range places(t, proto) {
			p := port()
			holder := place.At(p)
			hold(t, b, holder)
			mapped := stranger{Type: kind, At: netip.AddrPortFrom(netip.MustParseAddr("::ffff:127.0.0.1"), p)}
			fd, err := mapped.try()
			if err == nil {
				_ = unix.Close(fd)
			} else if !isInUse(err) {
				t.Fatal(err)
			}
			if kernel, ours := err != nil, holder.Overlaps(at(t, proto+"/127.0.0.1:1", p)); kernel != ours {
				t.Errorf("%v, %v: kernel refuses %t, Overlaps says %t of the IPv4 address", holder, mapped, kernel, ours)
			}
			release(t, b, holder)
		}
	}
}
