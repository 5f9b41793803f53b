package binder_test

import (
	"errors"
	"fmt"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/binder"
	"github.com/portd/portd/internal/registry"
)

// A socket has just those options that bind decides which were asked for; all are off by default, whatever the host's sysctls say.
func TestBindOptionsAsTheKernelHasThem(t *testing.T) {
	b := open(t, binder.Config{})
	type has struct{ freebind, transparent, mptcp, v6only, reuse, group bool }
	for _, c := range []struct {
		text   string
		opt    registry.BindOptions
		want   has
		device string
	}{
		{"tcp/1", registry.BindOptions{}, has{}, ""},
		{"udp/1", registry.BindOptions{}, has{}, ""},
		{"tcp4/1", registry.BindOptions{}, has{}, ""},
		{"tcp6/1", registry.BindOptions{}, has{v6only: true}, ""},
		{"tcp/1", registry.BindOptions{Freebind: true}, has{freebind: true}, ""},
		{"udp4/1", registry.BindOptions{Freebind: true}, has{freebind: true}, ""},
		{"tcp/1", registry.BindOptions{Transparent: true}, has{transparent: true}, ""},
		{"udp4/1", registry.BindOptions{Transparent: true}, has{transparent: true}, ""},
		{"tcp/1", registry.BindOptions{MPTCP: true}, has{mptcp: true}, ""},
		{"udp/1", registry.BindOptions{Group: 2}, has{group: true}, ""},
		{"tcp/*%lo:1", registry.BindOptions{}, has{}, "lo"},
		{"udp/*%lo:1", registry.BindOptions{Freebind: true}, has{freebind: true}, "lo"},
	} {
		t.Run(fmt.Sprintf("%s %+v", c.text, c.opt), func(t *testing.T) {
			ep := at(t, c.text, port())
			err := b.Bind(t.Context(), registry.Bind{Key: key(ep), Endpoint: ep, Options: c.opt})
			if errors.Is(err, registry.ErrUnsupported) {
				t.Skip(err)
			}
			if err != nil {
				t.Fatal(err)
			}
			defer release(t, b, ep)
			lent, err := b.Lend(key(ep))
			if err != nil {
				t.Fatal(err)
			}
			defer b.Return(key(ep), lent...)
			fd := lent[0].FD
			defer unix.Close(fd)
			is := func(level, opt int) bool {
				n, err := unix.GetsockoptInt(fd, level, opt)
				return err == nil && n != 0
			}
			var got has
			if domain, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN); err != nil {
				t.Fatal(err)
			} else if domain == unix.AF_INET6 {
				got.freebind, got.transparent = is(unix.IPPROTO_IPV6, unix.IPV6_FREEBIND), is(unix.IPPROTO_IPV6, unix.IPV6_TRANSPARENT)
				got.v6only = is(unix.IPPROTO_IPV6, unix.IPV6_V6ONLY)
			} else {
				got.freebind, got.transparent = is(unix.IPPROTO_IP, unix.IP_FREEBIND), is(unix.IPPROTO_IP, unix.IP_TRANSPARENT)
			}
			proto, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PROTOCOL)
			got.mptcp = err == nil && proto == unix.IPPROTO_MPTCP
			got.reuse, got.group = is(unix.SOL_SOCKET, unix.SO_REUSEADDR), is(unix.SOL_SOCKET, unix.SO_REUSEPORT)
			if got != c.want {
				t.Errorf("the socket has %+v, want %+v", got, c.want)
			}
			if device, err := unix.GetsockoptString(fd, unix.SOL_SOCKET, unix.SO_BINDTODEVICE); err != nil || device != c.device {
				t.Errorf("it is on device %q (%v), want %q", device, err, c.device)
			}
		})
	}
}
