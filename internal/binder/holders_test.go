package binder_test

import (
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/binder"
	"github.com/portd/portd/internal/nstest"
	"github.com/portd/portd/internal/registry"
)

var (
	byValue = cmp.Options{
		cmp.Comparer(func(a, b registry.Endpoint) bool { return a == b }),
		cmpopts.IgnoreFields(registry.Process{}, "Cgroup", "Container", "Unit"), // those of whoever runs the tests
	}
	noUser     = cmpopts.IgnoreFields(registry.Holder{}, "UID")
	placesOnly = cmp.Options{byValue, noUser, cmpopts.IgnoreFields(registry.Holder{}, "Processes", "Hidden")}
)

func holders(t testing.TB, b *binder.Binder, eps ...registry.Endpoint) []registry.Holder {
	t.Helper()
	hs, err := b.Holders(t.Context(), eps...)
	if err != nil {
		t.Fatal(err)
	}
	return hs
}

func at4(p uint16) netip.AddrPort {
	return netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), p)
}

func TestHolders(t *testing.T) {
	b := open(t, binder.Config{})
	needFeature(t, b, "bound-sockets-shown")
	self := []registry.Process{{PID: os.Getpid(), UID: uint32(os.Geteuid()), Viewer: uint32(os.Geteuid()), Command: comm(t)}}
	tcp, udp := at(t, "tcp/127.0.0.1:1", port()), at(t, "udp/127.0.0.1:1", port())
	wild := at(t, "tcp/1", tcp.First)

	// In the order in which they are to be named, though not in the order in which they come.
	server, client := connected(t, tcp, true)
	t.Cleanup(func() { _ = client.Close() })
	t.Cleanup(func() { _ = unix.Close(server) })
	leftover(t, tcp, true)
	stranger{Type: unix.SOCK_STREAM, At: at4(tcp.First), RA: true}.open(t)
	stranger{Type: unix.SOCK_STREAM, At: netip.AddrPortFrom(netip.MustParseAddr("127.0.0.2"), tcp.First), RA: true, Listen: true}.open(t)
	stranger{Type: unix.SOCK_STREAM, At: netip.AddrPortFrom(netip.IPv6Unspecified(), tcp.First), V6Only: true, Device: "lo"}.open(t)
	stranger{Type: unix.SOCK_DGRAM, At: at4(udp.First)}.open(t)
	// What neither overlaps nor is of the protocol.
	stranger{Type: unix.SOCK_DGRAM, At: at4(tcp.First)}.open(t)
	stranger{Type: unix.SOCK_STREAM, At: at4(port())}.open(t)

	uid := uint32(os.Geteuid())
	want := []registry.Holder{
		{Endpoint: at(t, "tcp/127.0.0.2:1", tcp.First), State: registry.SocketListening, UID: uid, Processes: self},
		{Endpoint: tcp, State: registry.SocketBound, UID: uid, Processes: self},
		{Endpoint: at(t, "tcp6/*%lo:1", tcp.First), State: registry.SocketBound, UID: uid, Processes: self},
		{Endpoint: udp, State: registry.SocketBound, UID: uid, Processes: self},
		{Endpoint: tcp, State: registry.SocketConnected, UID: uid, Processes: self},
		{Endpoint: tcp, State: registry.SocketLeftover},
	}
	got := holders(t, b, wild, udp, tcp, udp) // twice asked, once answered
	if diff := cmp.Diff(want, got, byValue); diff != "" {
		t.Errorf("holders (-want +got):\n%s", diff)
	}
	narrow := holders(t, b, at(t, "tcp/127.0.0.2:1", tcp.First))
	if diff := cmp.Diff(want[:1], narrow, byValue); diff != "" {
		t.Errorf("holders of one address (-want +got):\n%s", diff)
	}
}

// What is portd's own, and what came through it, is in nobody's way.
func TestHoldersAreForeign(t *testing.T) {
	seen := new(observer)
	b := open(t, binder.Config{Observer: seen})
	for _, opt := range []registry.BindOptions{{}, {MPTCP: true}} {
		ep := at(t, "tcp/1", port())
		if err := b.Bind(t.Context(), registry.Bind{Key: key(ep), Endpoint: ep, Options: opt}); err != nil {
			t.Log(err)
			continue
		}
		listen(t, b, ep)
		to := at4(ep.First).String()
		accepted, waiting := dial(t, to), dial(t, to)
		server, _, err := unix.Accept4(seen.last[0].FD, unix.SOCK_CLOEXEC)
		if err != nil {
			t.Fatal(err)
		}
		if got := holders(t, b, ep); len(got) > 0 {
			t.Errorf("holders of our own listener (%+v): %v", opt, got)
		}
		// The same once nobody listens any more, and the connections stay.
		if err := b.Unlisten(key(ep)); err != nil {
			t.Fatal(err)
		}
		if got := holders(t, b, ep); len(got) > 0 {
			t.Errorf("holders of our own hold (%+v): %v", opt, got)
		}
		release(t, b, ep)
		want := []registry.Holder{{Endpoint: ep, State: registry.SocketConnected}}
		want[0].Endpoint.Addr = netip.MustParseAddr("127.0.0.1")
		if diff := cmp.Diff(want, holders(t, b, ep), placesOnly); diff != "" {
			t.Errorf("holders once it is released (-want +got):\n%s", diff)
		}
		_ = unix.Close(server)
		_ = accepted.Close()
		_ = waiting.Close()
	}
}

// Another user's process is named as far as portd sees it.
func TestHoldersOfAnotherUser(t *testing.T) {
	b := open(t, binder.Config{})
	needFeature(t, b, "processes-of-others")
	const nobody = 65534
	other := startHost(t, nstest.As(t, nobody, nobody))
	for _, s := range []stranger{
		{Type: unix.SOCK_STREAM, At: at4(port()), RA: true, Listen: true},
		{Type: unix.SOCK_STREAM, At: at4(port()), RA: true},
		{Type: unix.SOCK_DGRAM, At: at4(port())},
	} {
		if err := other.try(t, s); err != nil {
			t.Fatal(err)
		}
		ep := s.place(registry.TCP)
		state := registry.SocketBound
		if s.Type == unix.SOCK_DGRAM {
			ep.Proto = registry.UDP
		} else if s.Listen {
			state = registry.SocketListening
		}
		want := []registry.Holder{{
			Endpoint: ep, State: state, UID: nobody,
			Processes: []registry.Process{{PID: other.pid, UID: nobody, Viewer: nobody, Command: "exe"}},
		}}
		if diff := cmp.Diff(want, holders(t, b, ep), byValue); diff != "" {
			t.Errorf("holders of %v (-want +got):\n%s", ep, diff)
		}
	}
}

// TestHoldersUnseen looks as a user who may not see the process: the uid is known all the same.
func TestHoldersUnseen(t *testing.T) {
	const envPort = "PORTD_BINDER_PORT"
	if !isNobody() {
		p := port()
		stranger{Type: unix.SOCK_STREAM, At: at4(p)}.open(t)
		asNobody(t, fmt.Sprintf("%s=%d", envPort, p))
		return
	}
	p, err := strconv.Atoi(os.Getenv(envPort))
	if err != nil {
		t.Fatal(err)
	}
	b := open(t, binder.Config{})
	ep := at(t, "tcp/127.0.0.1:1", uint16(p))
	got := holders(t, b, ep)
	if len(got) != 1 || got[0].UID != 0 || got[0].Processes != nil || !strings.Contains(got[0].Hidden, "CAP_SYS_PTRACE") {
		t.Errorf("holders of another user's socket: %+v", got)
	}
	for _, f := range b.Features() {
		if f.Name == "processes-of-others" && f.Available {
			t.Error("the feature is there, it says")
		}
	}
}

func comm(t testing.TB) string {
	t.Helper()
	text, err := os.ReadFile("/proc/self/comm")
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(text))
}
