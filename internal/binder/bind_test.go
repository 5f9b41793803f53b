package binder_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/binder"
	"github.com/portd/portd/internal/registry"
)

func needFeature(t testing.TB, b *binder.Binder, name string) {
	t.Helper()
	for _, f := range b.Features() {
		if f.Name == name && !f.Available {
			t.Skipf("this kernel lacks %s. %s", name, f.Consequence)
		}
	}
}

func TestRangeIsAllOrNothing(t *testing.T) {
	b := open(t, binder.Config{})
	for _, text := range []string{"tcp/1", "udp/1"} {
		first := ports(20)
		ep := at(t, text, first)
		ep.Last = first + 19
		middle := at(t, text, first+10)
		hold(t, b, middle)
		for _, fresh := range []bool{true, false} {
			err := b.Bind(t.Context(), registry.Bind{Key: key(ep), Endpoint: ep, Fresh: fresh})
			if !errors.Is(err, registry.ErrTaken) || !strings.Contains(err.Error(), middle.String()) {
				t.Fatalf("bind %v: %v, want ErrTaken that names %v", ep, err, middle)
			}
		}
		// Nothing of it is left behind.
		for p := ep.First; p <= ep.Last; p++ {
			if p == middle.First {
				continue
			}
			hold(t, b, ep.At(p))
			release(t, b, ep.At(p))
		}
		release(t, b, middle)
		hold(t, b, ep)
		for p := ep.First; p <= ep.Last; p++ {
			if err := b.Bind(t.Context(), registry.Bind{Key: key(ep.At(p)), Endpoint: ep.At(p)}); !errors.Is(err, registry.ErrTaken) {
				t.Errorf("%v is not held with its range: %v", ep.At(p), err)
			}
		}
		release(t, b, ep)
	}
}

func TestBindAdds(t *testing.T) {
	seen := new(observer)
	b := open(t, binder.Config{Observer: seen})
	first := ports(2)
	whole := at(t, "tcp/127.0.0.1:1", first)
	whole.Last++
	for _, p := range []uint16{whole.Last, whole.First} {
		if err := b.Bind(t.Context(), registry.Bind{Key: key(whole), Endpoint: whole.At(p)}); err != nil {
			t.Fatal(err)
		}
		listen(t, b, whole)
	}
	if len(seen.last) != 2 || seen.last[0].Endpoint != whole.At(whole.First) || seen.last[1].Endpoint != whole.At(whole.Last) {
		t.Errorf("listening are %v, want both ports in order", seen.last)
	}
}

func TestBindErrors(t *testing.T) {
	b := open(t, binder.Config{})
	p := port()
	in := func(ns string, e registry.Endpoint) registry.Endpoint {
		e.Netns = ns
		return e
	}
	for _, c := range []struct {
		ep   registry.Endpoint
		opt  registry.BindOptions
		want error
		says string
	}{
		{at(t, "tcp/192.0.2.1:1", p), registry.BindOptions{}, registry.ErrInvalid, "address: 192.0.2.1 is no address of this host"},
		{at(t, "tcp/192.0.2.1:1", p), registry.BindOptions{Freebind: true}, nil, ""},
		{at(t, "tcp/[2001:db8::1]:1", p), registry.BindOptions{}, registry.ErrInvalid, "address: 2001:db8::1 is no address of this host"},
		{at(t, "udp/[2001:db8::1]:1", p), registry.BindOptions{Freebind: true}, nil, ""},
		{at(t, "tcp/*%nosuch0:1", p), registry.BindOptions{}, registry.ErrInvalid, `device: this host has no device "nosuch0"`},
		{at(t, "tcp/[fe80::1]:1", p), registry.BindOptions{Freebind: true}, registry.ErrInvalid, "needs its device as a zone"},
		{at(t, "tcp/[fe80::1%nosuch0]:1", p), registry.BindOptions{}, registry.ErrInvalid, `has no device "nosuch0"`},
		{at(t, "tcp/[::1%lo]:1", p), registry.BindOptions{}, registry.ErrInvalid, "for link-local addresses only"},
		{at(t, "tcp/[fe80::1%lo]:1", p), registry.BindOptions{Freebind: true}, nil, ""},
		{at(t, "tcp/[fe80::1%1]:1", p), registry.BindOptions{Freebind: true}, registry.ErrInvalid, `has no device "1"`},
		{at(t, "tcp/[fe80::1%lo]%lo:1", p), registry.BindOptions{Freebind: true}, nil, ""},
		{at(t, "tcp/[fe80::1%lo]%br0:1", p), registry.BindOptions{Freebind: true}, registry.ErrInvalid, `device: "br0" is not the zone of fe80::1%lo`},
		{at(t, "tcp/[fe80::1]%lo:1", p), registry.BindOptions{Freebind: true}, registry.ErrInvalid, "needs its device as a zone"},
		{at(t, "udp/1", p), registry.BindOptions{MPTCP: true}, registry.ErrInvalid, "mptcp: is for tcp only, not udp"},
		{in("blue", at(t, "tcp/1", p)), registry.BindOptions{}, registry.ErrUnsupported, "network namespace blue: this portd takes ports in its own"},
		{in("", at(t, "tcp/1", p)), registry.BindOptions{}, registry.ErrUnsupported, "in its own network namespace only"},
	} {
		err := b.Bind(t.Context(), registry.Bind{Key: key(c.ep), Endpoint: c.ep, Options: c.opt})
		if !errors.Is(err, c.want) {
			t.Errorf("%v %+v: %v, want %v", c.ep, c.opt, err, c.want)
		}
		if err != nil && (!strings.Contains(err.Error(), c.says) || !strings.Contains(err.Error(), c.ep.String())) {
			t.Errorf("%v %+v: %q, want it to say %q and to name the endpoint", c.ep, c.opt, err, c.says)
		}
		release(t, b, c.ep)
	}
}

// What the kernel lacks is said with the kernel's own reason; what it has is held.
func TestProtocolsOfThisKernel(t *testing.T) {
	b := open(t, binder.Config{})
	for _, c := range []struct {
		text        string
		kind, proto int
	}{
		{"sctp/127.0.0.1:1", unix.SOCK_STREAM, unix.IPPROTO_SCTP},
		{"dccp/127.0.0.1:1", unix.SOCK_DCCP, unix.IPPROTO_DCCP},
	} {
		ep := at(t, c.text, port())
		err := b.Bind(t.Context(), registry.Bind{Key: key(ep), Endpoint: ep})
		fd, reason := unix.Socket(unix.AF_INET, c.kind, c.proto)
		if reason == nil {
			_ = unix.Close(fd)
			if err != nil {
				t.Errorf("%v: %v, and the kernel has it", ep, err)
			}
			release(t, b, ep)
			continue
		}
		name := ep.Proto.String()
		want := fmt.Sprintf("%s: this kernel has no %s (%v)", name, strings.ToUpper(name), reason)
		var unsupported *registry.UnsupportedError
		if !errors.As(err, &unsupported) || unsupported.Error() != want {
			t.Errorf("%v: %v, want %s", ep, err, want)
		}
	}
	ep := at(t, "udp/127.0.0.1:1", port())
	hold(t, b, ep)
	if err := b.Listen(t.Context(), key(ep), registry.ListenOptions{}); !errors.Is(err, registry.ErrUnsupported) {
		t.Errorf("listen on %v: %v, want ErrUnsupported", ep, err)
	}
	if err := b.Listen(t.Context(), registry.SocketKey{Reservation: "rsv_none"}, registry.ListenOptions{}); !errors.Is(err, registry.ErrNotFound) {
		t.Errorf("listen on nothing: %v, want ErrNotFound", err)
	}
}

// TestDescriptorsRunOut binds as a user who may have no more descriptors in messages than open.
func TestDescriptorsRunOut(t *testing.T) {
	if !isNobody() {
		asNobody(t)
		return
	}
	for _, c := range []struct {
		name  string
		spare int
		says  string
	}{
		{"spare", 50, "the last of the 300 descriptors that portd may have (RLIMIT_NOFILE; raise it by LimitNOFILE= in the unit or ulimit -Hn) are kept"},
		{"all", -1000, "all of the 300 descriptors that portd may have (RLIMIT_NOFILE; raise it by LimitNOFILE= in the unit or ulimit -Hn) are open"},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := open(t, binder.Config{Spare: c.spare})
			limit(t, 300)
			ep := at(t, "tcp/127.0.0.1:1", 10000)
			ep.Last = 10999
			err := b.Bind(t.Context(), registry.Bind{Key: key(ep), Endpoint: ep})
			if !errors.Is(err, registry.ErrExhausted) || !strings.Contains(err.Error(), c.says) {
				t.Fatalf("bind %v: %v, want ErrExhausted that says %q", ep, err, c.says)
			}
			if says := "parked in messages, where this user may have no more"; !strings.Contains(err.Error(), says) {
				t.Errorf("bind %v: %v, want it to say %q too", ep, err, says)
			}
			// And nothing is left of it.
			ep.Last = 10299
			hold(t, b, ep)
			release(t, b, ep)
		})
	}
}

func TestBindStopsWithItsContext(t *testing.T) {
	b := open(t, binder.Config{})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	ep := at(t, "tcp/1", port())
	if err := b.Bind(ctx, registry.Bind{Key: key(ep), Endpoint: ep}); !errors.Is(err, context.Canceled) {
		t.Errorf("bind: %v, want it cancelled", err)
	}
	hold(t, b, ep)
	if err := b.Listen(ctx, key(ep), registry.ListenOptions{}); !errors.Is(err, context.Canceled) {
		t.Errorf("listen: %v, want it cancelled", err)
	}
	refused(t, netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), ep.First).String())
}

// TestCapabilities binds as a user who has none: what is missing is named.
func TestCapabilities(t *testing.T) {
	if !isNobody() {
		asNobody(t)
		return
	}
	b := open(t, binder.Config{})
	for _, c := range []struct {
		ep   registry.Endpoint
		opt  registry.BindOptions
		says string
	}{
		{at(t, "tcp/80", 80), registry.BindOptions{}, "port 80: portd may not bind ports below 1024 (net.ipv4.ip_unprivileged_port_start) without CAP_NET_BIND_SERVICE"},
		{at(t, "udp/53", 53), registry.BindOptions{}, "CAP_NET_BIND_SERVICE"},
		{at(t, "tcp/1", port()), registry.BindOptions{Transparent: true}, "transparent binding: portd may not without CAP_NET_ADMIN"},
	} {
		err := b.Bind(t.Context(), registry.Bind{Key: key(c.ep), Endpoint: c.ep, Options: c.opt})
		if !errors.Is(err, registry.ErrUnsupported) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%v: %v, want ErrUnsupported that says %q", c.ep, err, c.says)
		}
	}
}

func BenchmarkBindRelease(b *testing.B) {
	bind := open(b, binder.Config{})
	for _, text := range []string{"tcp/1", "udp/1"} {
		for _, ports := range []int{1, 100} {
			ep := at(b, text, 10000)
			ep.Last = ep.First + uint16(ports) - 1
			b.Run(fmt.Sprintf("%v/ports=%d", ep.Proto, ports), func(b *testing.B) {
				for b.Loop() {
					if err := bind.Bind(b.Context(), registry.Bind{Key: key(ep), Endpoint: ep, Fresh: true}); err != nil {
						b.Fatal(err)
					}
					release(b, bind, ep)
				}
			})
		}
	}
}
