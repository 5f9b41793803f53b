package binder_test

import (
	"fmt"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/binder"
	"github.com/portd/portd/internal/registry"
)

// TestThievesOnDevices: a hold on a device keeps out whoever comes on that device or on none, be it of UDP-Lite or MPTCP.
func TestThievesOnDevices(t *testing.T) {
	b := open(t, binder.Config{})
	addBridge(t, "br0")
	for _, kind := range kinds {
		for _, device := range []string{"", "lo", "br0"} {
			for _, text := range []string{"/1", "4/1", "6/1", "/127.0.0.1:1"} {
				place := at(t, kind.proto+text, port())
				place.Device = device
				if !kind.can(t) {
					continue
				}
				t.Run(fmt.Sprintf("%s %v", kind.name, place), func(t *testing.T) {
					err := b.Bind(t.Context(), registry.Bind{Key: key(place), Endpoint: place, Options: registry.BindOptions{MPTCP: kind.name == "mptcp"}})
					if err != nil {
						t.Fatal(err)
					}
					defer release(t, b, place)
					for _, listens := range []bool{false, true} {
						if listens {
							if !place.Proto.Streams() {
								break
							}
							listen(t, b, place)
						}
						for _, from := range []string{"", "lo", "br0"} {
							for _, thief := range thieves(kind.socket, place.First) {
								thief.Device, thief.Proto = from, kind.number
								if thief.RP && from != device && from != "" && device != "" {
									continue // TestReusePortPastADevice
								}
								tryThief(t, place, thief)
							}
						}
					}
				})
			}
		}
	}
}

// kinds are the sockets that have ports.
var kinds = []kind{
	{"tcp", "tcp", unix.SOCK_STREAM, 0},
	{"mptcp", "tcp", unix.SOCK_STREAM, unix.IPPROTO_MPTCP},
	{"udp", "udp", unix.SOCK_DGRAM, 0},
	{"udplite", "udplite", unix.SOCK_DGRAM, unix.IPPROTO_UDPLITE},
}

type kind struct {
	name, proto    string
	socket, number int
}

// can says whether this kernel has such sockets.
func (k kind) can(t *testing.T) bool {
	fd, err := unix.Socket(unix.AF_INET, k.socket|unix.SOCK_CLOEXEC, k.number)
	if err != nil {
		t.Logf("no %s here: %v", k.name, err)
		return false
	}
	_ = unix.Close(fd)
	return true
}

// TestReusePortPastADevice is about the one thief who gets in, with the help of a socket with SO_REUSEPORT on another device. Of the
// last such socket the kernel remembers for TCP the address and the user, and not the device, and lets in who matches it without
// another look. For UDP it looks no further once it has found such a socket of the same user. A hold on no device keeps out
// the helper.
func TestReusePortPastADevice(t *testing.T) {
	b := open(t, binder.Config{})
	addBridge(t, "br0")
	for _, c := range []struct {
		text, device string
		in           bool
	}{
		{"tcp4/1", "br0", true},
		{"tcp4/1", "", false},
		{"udp4/1", "br0", true},
		{"udp4/1", "", false},
	} {
		ep := at(t, c.text, port())
		ep.Device = c.device
		hold(t, b, ep)
		thief := plain(ep, false)
		thief.Device, thief.RP = "", true
		if fd, err := thief.try(); err == nil {
			_ = unix.Close(fd)
			t.Errorf("%v: thief %v got in alone", ep, thief)
		}
		helper := thief
		helper.Device = "lo"
		helping, err := helper.try()
		if helps := err == nil; helps != (c.device != "") {
			t.Errorf("%v: helper %v got in: %t (%v)", ep, helper, helps, err)
		}
		if err == nil && ep.Proto == registry.TCP { // what it leaves behind is enough
			_ = unix.Close(helping)
		}
		fd, err := thief.try()
		if in := err == nil; in != c.in {
			t.Errorf("%v: thief %v got in: %t (%v), want %t", ep, thief, in, err, c.in)
		}
		if err == nil {
			if len(holders(t, b, ep)) != 1 {
				t.Errorf("%v: holders are %v, want the thief, for it does not go unseen", ep, holders(t, b, ep))
			}
			_ = unix.Close(fd)
		}
		if helping >= 0 && ep.Proto != registry.TCP {
			_ = unix.Close(helping)
		}
		release(t, b, ep)
	}
}
