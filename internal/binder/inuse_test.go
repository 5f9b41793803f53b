package binder_test

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/binder"
	"github.com/portd/portd/internal/registry"
)

func TestPortsInUse(t *testing.T) {
	b := open(t, binder.Config{})
	first := ports(8)
	on := func(port uint16) netip.AddrPort { return netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port) }
	held := at(t, "tcp/1", first+1)
	hold(t, b, held)
	stranger{Type: unix.SOCK_STREAM, At: on(first + 3), Listen: true}.open(t)
	stranger{Type: unix.SOCK_DGRAM, At: on(first + 4)}.open(t)
	for _, tt := range []struct {
		proto  registry.Protocol
		within registry.PortRange
		want   map[uint16]bool
	}{
		{registry.TCP, registry.PortRange{First: first, Last: first + 7}, map[uint16]bool{first + 1: true, first + 3: true}},
		{registry.TCP, registry.PortRange{First: first + 2, Last: first + 7}, map[uint16]bool{first + 3: true}},
		{registry.UDP, registry.PortRange{First: first, Last: first + 7}, map[uint16]bool{first + 4: true}},
		{registry.UDPLite, registry.PortRange{First: first, Last: first + 7}, map[uint16]bool{}},
	} {
		got := map[uint16]bool{}
		seen, err := b.PortsInUse(t.Context(), registry.HostNetns, tt.proto, tt.within, func(port uint16) { got[port] = true })
		if err != nil || !seen {
			t.Errorf("%v: seen %v, %v", tt.proto, seen, err)
		}
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%v in %v (-want +got):\n%s", tt.proto, tt.within, diff)
		}
	}
	b.WithoutBoundShown() // then what is free of TCP may be bound
	for proto, want := range map[registry.Protocol]bool{registry.TCP: false, registry.UDP: true} {
		if seen, err := b.PortsInUse(t.Context(), registry.HostNetns, proto, registry.PortRange{First: first, Last: first}, func(uint16) {}); seen != want || err != nil {
			t.Errorf("%v where what is only bound is not shown: seen %v, %v", proto, seen, err)
		}
	}
	// What this kernel has no sockets of, none are of; what it has is not seen.
	for proto, typ := range map[registry.Protocol]int{registry.SCTP: unix.SOCK_STREAM, registry.DCCP: unix.SOCK_DCCP} {
		fd, err := unix.Socket(unix.AF_INET, typ|unix.SOCK_CLOEXEC, int(proto))
		if err == nil {
			unix.Close(fd)
		}
		seen, seenErr := b.PortsInUse(t.Context(), registry.HostNetns, proto, registry.PortRange{First: 1, Last: 65535}, func(port uint16) {
			t.Errorf("%v %d is in use", proto, port)
		})
		if seen == (err == nil) || seenErr != nil {
			t.Errorf("%v: seen %v, %v, where socket(2) says %v", proto, seen, seenErr, err)
		}
	}
}
