package binder_test

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/binder"
	"github.com/portd/portd/internal/registry"
)

// A program that was lent a socket can let a stranger in beside it, who is seen then and afterwards: only of a port that nobody else
// ever had is it known without looking that nobody is there.
func TestHoldersBesideWhatWasLent(t *testing.T) {
	b := open(t, binder.Config{})
	ep := at(t, "udp/1", port())
	if err := b.Bind(t.Context(), registry.Bind{Key: key(ep), Endpoint: ep}); err != nil {
		t.Fatal(err)
	}
	if hs := holders(t, b, ep); len(hs) != 0 {
		t.Fatalf("holders of what is portd's alone: %v", hs)
	}
	fd := lendOne(t, b, ep)
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		t.Fatal(err)
	}
	thief := stranger{Type: unix.SOCK_DGRAM, At: netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), ep.First), RA: true}
	thief.open(t)
	want := []registry.Holder{{Endpoint: at(t, "udp/127.0.0.1:1", ep.First), State: registry.SocketBound}}
	for _, when := range []string{"lent", "returned"} {
		if diff := cmp.Diff(want, holders(t, b, ep), placesOnly); diff != "" {
			t.Errorf("holders when %s (-want +got):\n%s", when, diff)
		}
		if when == "lent" {
			b.Return(key(ep))
		}
	}
}

// What portd holds on some addresses only leaves others to strangers, in each protocol of one question.
func TestHoldersBesideWhatIsHeldInPart(t *testing.T) {
	b := open(t, binder.Config{})
	p := port()
	for _, held := range []string{"tcp/127.0.0.2:1", "tcp6/*:1", "udp/1"} {
		ep := at(t, held, p)
		if err := b.Bind(t.Context(), registry.Bind{Key: key(ep), Endpoint: ep}); err != nil {
			t.Fatal(err)
		}
	}
	stranger{Type: unix.SOCK_STREAM, At: at4(p), Listen: true}.open(t)
	want := []registry.Holder{{Endpoint: at(t, "tcp/127.0.0.1:1", p), State: registry.SocketListening}}
	if diff := cmp.Diff(want, holders(t, b, at(t, "tcp/1", p), at(t, "udp/1", p)), placesOnly); diff != "" {
		t.Errorf("holders (-want +got):\n%s", diff)
	}
}
