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

// TestReusePortPastADevice is about the one thief who gets in: for sockets with SO_REUSEPORT the kernel remembers the last one's
// address, user, and not its device, and lets in who matches it without another look. One such socket on another device opens
// the port of a hold on a device to sockets of the same user with SO_REUSEPORT; a hold on no device is in the way of the first.
func TestReusePortPastADevice(t *testing.T) {
	b := open(t, binder.Config{})
	addBridge(t, "br0")
	for _, c := range []struct {
		device string
		in     bool
	}{{"br0", true}, {"", false}} {
		ep := at(t, "tcp4/1", port())
		ep.Device = c.device
		hold(t, b, ep)
		thief := stranger{Type: unix.SOCK_STREAM, At: plain(ep, false).At, RP: true}
		if fd, err := thief.try(); err == nil {
			_ = unix.Close(fd)
			t.Errorf("%v: thief %v got in alone", ep, thief)
		}
		helper := thief
		helper.Device = "lo"
		if fd, err := helper.try(); err == nil {
			_ = unix.Close(fd) // what it leaves behind is enough
		}
		thief.Listen = true
		fd, err := thief.try()
		if err == nil {
			// It does not go unseen.
			if len(holders(t, b, ep)) != 1 {
				t.Errorf("%v: holders are %v, want the thief", ep, holders(t, b, ep))
			}
			_ = unix.Close(fd)
		}
		if in := err == nil; in != c.in {
			t.Errorf("%v: thief %v got in: %t (%v), want %t", ep, thief, in, err, c.in)
		}
		release(t, b, ep)
	}
}
