package sockdiag_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/portd/portd/internal/nstest"
	"github.com/portd/portd/internal/sockdiag"
	"golang.org/x/sys/unix"
)

const (
	mptcp      = unix.IPPROTO_MPTCP
	ipv6Free   = 78 // IPV6_FREEBIND (linux/in6.h)
	stream     = unix.SOCK_STREAM
	datagram   = unix.SOCK_DGRAM
	v4, v6     = "127.0.0.1:0", "[::1]:0"
	any6, any4 = "[::]:0", "0.0.0.0:0"
)

var (
	dual  = [3]int{unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 0}
	only6 = [3]int{unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1}
	onLo  = [3]int{unix.SOL_SOCKET, unix.SO_BINDTOIFINDEX, 1}
	free  = [3]int{unix.IPPROTO_IPV6, ipv6Free, 1}
	loDev = sockdiag.Device{Index: 1, Name: "lo"}
)

func TestList(t *testing.T) {
	nstest.Descriptors(t)
	visible, err := sockdiag.BoundOnlyVisible(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	bound := sockdiag.Socket{Protocol: sockdiag.TCP, State: sockdiag.BoundOnly}
	listening := sockdiag.Socket{Protocol: sockdiag.TCP, State: sockdiag.Listening}
	datagrams := sockdiag.Socket{Protocol: sockdiag.UDP, State: sockdiag.Unconnected}
	tests := []struct {
		name     string
		kind     int
		protocol int
		addr     string
		options  [][3]int
		want     sockdiag.Socket
		change   func(*sockdiag.Socket)
	}{
		{"bound 4", stream, 0, v4, nil, bound, nil},
		{"bound any 4", stream, 0, any4, nil, bound, nil},
		{"bound 6", stream, 0, v6, nil, bound, nil},
		{"bound dual", stream, 0, any6, [][3]int{dual}, bound, nil},
		{"bound v6only", stream, 0, any6, [][3]int{only6}, bound, func(s *sockdiag.Socket) { s.V6Only = true }},
		{"bound mapped", stream, 0, "[::ffff:127.0.0.1]:0", [][3]int{dual}, bound, nil},
		{"bound device", stream, 0, v4, [][3]int{onLo}, bound, func(s *sockdiag.Socket) { s.Device = loDev }},
		{"bound link-local", stream, 0, "[fe80::1%lo]:0", [][3]int{free}, bound, func(s *sockdiag.Socket) { s.Device = loDev }},
		{"listening 4", stream, 0, v4, nil, listening, nil},
		{"listening 6", stream, 0, v6, nil, listening, nil},
		{"listening dual", stream, 0, any6, [][3]int{dual}, listening, nil},
		{"listening v6only", stream, 0, any6, [][3]int{only6}, listening, func(s *sockdiag.Socket) { s.V6Only = true }},
		{"listening mapped", stream, 0, "[::ffff:127.0.0.1]:0", [][3]int{dual}, listening, nil},
		{"listening mptcp", stream, mptcp, v4, nil, listening, func(s *sockdiag.Socket) { s.Multipath = true }},
		{"listening mptcp dual", stream, mptcp, any6, [][3]int{dual}, listening, func(s *sockdiag.Socket) { s.Multipath = true }},
		{"bound mptcp", stream, mptcp, v4, nil, bound, nil},
		{"udp 4", datagram, 0, v4, nil, datagrams, nil},
		{"udp dual", datagram, 0, any6, [][3]int{dual}, datagrams, nil},
		{"udp v6only", datagram, 0, any6, [][3]int{only6}, datagrams, func(s *sockdiag.Socket) { s.V6Only = true }},
		{"udplite", datagram, unix.IPPROTO_UDPLITE, v4, nil, datagrams, func(s *sockdiag.Socket) { s.Protocol = sockdiag.UDPLite }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			fd := open(t, tt.kind, tt.protocol, tt.addr, tt.options...)
			if tt.want.State == sockdiag.Listening {
				listen(t, fd)
			}
			want := describe(t, fd, tt.want)
			if tt.protocol != mptcp { // whose subflow has a cookie of its own
				want.Cookie = cookie(t, fd)
			}
			if tt.change != nil {
				tt.change(&want)
			}
			if want.State == sockdiag.BoundOnly && !visible {
				t.Skip("needs a kernel that lists bound-only sockets")
			}
			got := find(t, sockdiag.Filter{First: want.Local.Port()}, want.Inode)
			if tt.protocol == mptcp {
				got.Cookie = 0
				if want.Multipath && !got.Multipath && before(t, 6, 15) {
					t.Skip("needs CAP_NET_ADMIN to see MPTCP on this kernel")
				}
			}
			if diff := cmp.Diff(want, got, byValue); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestListConnected(t *testing.T) {
	for _, addr := range []string{v4, v6} {
		server := listen(t, open(t, stream, 0, addr))
		client := open(t, stream, 0, addr)
		connect(t, client, local(t, server))
		accepted, _, err := unix.Accept4(server, unix.SOCK_CLOEXEC)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(accepted)
		for _, pair := range [][2]int{{client, accepted}, {accepted, client}} {
			want := describe(t, pair[0], sockdiag.Socket{
				Protocol: sockdiag.TCP, State: sockdiag.Established, Remote: local(t, pair[1]), Cookie: cookie(t, pair[0]),
			})
			got := find(t, sockdiag.Filter{First: want.Local.Port(), States: []sockdiag.State{sockdiag.Established}}, want.Inode)
			if diff := cmp.Diff(want, got, byValue); diff != "" {
				t.Error(diff)
			}
		}

		a, b := open(t, datagram, 0, addr), open(t, datagram, 0, addr)
		connect(t, a, local(t, b))
		want := describe(t, a, sockdiag.Socket{
			Protocol: sockdiag.UDP, State: sockdiag.Established, Remote: local(t, b), Cookie: cookie(t, a),
		})
		if diff := cmp.Diff(want, find(t, sockdiag.Filter{}, want.Inode), byValue); diff != "" {
			t.Error(diff)
		}
	}
}

// A listener that was shut down refuses connections and still holds its port, which must not look free.
func TestListAfterShutdown(t *testing.T) {
	if before(t, 6, 8) {
		t.Skip("needs a kernel that lists bound-only sockets")
	}
	nstest.Need(t)
	const port = 5100 // one that was asked for by number stays bound
	fd := listen(t, open(t, stream, 0, fmt.Sprintf("127.0.0.1:%d", port)))
	if err := unix.Shutdown(fd, unix.SHUT_RDWR); err != nil {
		t.Fatal(err)
	}
	want := describe(t, fd, sockdiag.Socket{Protocol: sockdiag.TCP, State: sockdiag.BoundOnly, Cookie: cookie(t, fd)})
	if diff := cmp.Diff(want, find(t, sockdiag.Filter{First: port}, want.Inode), byValue); diff != "" {
		t.Error(diff)
	}
}

func TestListTimeWait(t *testing.T) {
	ln, err := net.Listen("tcp4", v4)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	client, err := net.Dial("tcp4", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	accepted, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	from := client.LocalAddr().(*net.TCPAddr).AddrPort()
	client.Close() // who closes first waits
	accepted.Close()
	want := []sockdiag.Socket{{
		Protocol: sockdiag.TCP, State: sockdiag.TimeWait,
		Local: from, Remote: ln.Addr().(*net.TCPAddr).AddrPort(),
	}}
	filter := sockdiag.Filter{First: from.Port(), States: []sockdiag.State{sockdiag.TimeWait}}
	var got []sockdiag.Socket
	for deadline := time.Now().Add(5 * time.Second); len(got) == 0 && time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		if got, err = sockdiag.List(t.Context(), filter); err != nil {
			t.Fatal(err)
		}
	}
	for i := range got {
		got[i].Cookie = 0
	}
	if diff := cmp.Diff(want, got, byValue); diff != "" {
		t.Error(diff)
	}
}

func TestFilter(t *testing.T) {
	nstest.Need(t)
	for port := 5000; port < 5010; port++ {
		listen(t, open(t, stream, 0, fmt.Sprintf("127.0.0.1:%d", port)))
		open(t, stream, 0, fmt.Sprintf("[::1]:%d", port))
		open(t, datagram, 0, fmt.Sprintf("0.0.0.0:%d", port))
	}
	tcp, udp := []sockdiag.Protocol{sockdiag.TCP}, []sockdiag.Protocol{sockdiag.UDP}
	listening := []sockdiag.State{sockdiag.Listening}
	tests := []struct {
		name   string
		filter sockdiag.Filter
		ports  []int
	}{
		{"listening, all ports", sockdiag.Filter{States: listening}, []int{5000, 5001, 5002, 5003, 5004, 5005, 5006, 5007, 5008, 5009}},
		{"listening, one port", sockdiag.Filter{States: listening, First: 5003}, []int{5003}},
		{"listening, range", sockdiag.Filter{States: listening, First: 5003, Last: 5005}, []int{5003, 5004, 5005}},
		{"listening, to the end", sockdiag.Filter{States: listening, First: 5008, Last: 65535}, []int{5008, 5009}},
		{"listening, from the start", sockdiag.Filter{States: listening, Last: 5000}, []int{5000}},
		{"nothing there", sockdiag.Filter{First: 5010, Last: 5020}, nil},
		{"backwards", sockdiag.Filter{First: 5005, Last: 5003}, nil},
		{"udp", sockdiag.Filter{Protocols: udp, First: 5001}, []int{5001}},
		{"tcp, bound and listening", sockdiag.Filter{Protocols: tcp, First: 5001}, []int{5001, 5001}},
		{"everything of a port", sockdiag.Filter{First: 5001}, []int{5001, 5001, 5001}},
		{"udp does not listen", sockdiag.Filter{Protocols: udp, States: listening}, nil},
		{"unconnected is not bound-only", sockdiag.Filter{First: 5001, States: []sockdiag.State{sockdiag.Unconnected}}, []int{5001}},
		{"bound-only is not unconnected", sockdiag.Filter{First: 5001, States: []sockdiag.State{sockdiag.BoundOnly}}, []int{5001}},
	}
	for _, tt := range tests {
		sockets, err := sockdiag.List(t.Context(), tt.filter)
		if err != nil {
			t.Fatal(err)
		}
		var ports []int
		for _, s := range sockets {
			ports = append(ports, int(s.Local.Port()))
		}
		slices.Sort(ports)
		if diff := cmp.Diff(tt.ports, ports); diff != "" {
			t.Errorf("%s: %s", tt.name, diff)
		}
	}
}

func TestListErrors(t *testing.T) {
	nstest.Descriptors(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if sockets, err := sockdiag.List(ctx, sockdiag.Filter{}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %d sockets, %v", len(sockets), err)
	}
	// A protocol that nobody watches must not look like one without sockets.
	if sockets, err := sockdiag.List(t.Context(), sockdiag.Filter{Protocols: []sockdiag.Protocol{254}}); !errors.Is(err, unix.ENOENT) {
		t.Errorf("protocol 254: %d sockets, %v", len(sockets), err)
	}
}

func TestBoundOnlyVisible(t *testing.T) {
	visible, err := sockdiag.BoundOnlyVisible(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if visible == before(t, 6, 8) {
		t.Errorf("BoundOnlyVisible() = %v", visible)
	}
}

// before reports whether this kernel is older than major.minor.
func before(t *testing.T, major, minor int) bool {
	t.Helper()
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		t.Fatal(err)
	}
	release := unix.ByteSliceToString(uts.Release[:])
	var gotMajor, gotMinor int
	if _, err := fmt.Sscanf(release, "%d.%d", &gotMajor, &gotMinor); err != nil {
		t.Fatal(err)
	}
	t.Logf("Linux %s", release)
	return gotMajor < major || gotMajor == major && gotMinor < minor
}

func TestNames(t *testing.T) {
	for got, want := range map[string]string{
		fmt.Sprint(sockdiag.TCP, sockdiag.UDP, sockdiag.UDPLite, sockdiag.Protocol(132)):           "tcp udp udplite protocol 132",
		fmt.Sprint(sockdiag.Listening, sockdiag.BoundOnly, sockdiag.TimeWait, sockdiag.State(200)): "listening bound time-wait state 200",
		fmt.Sprint(sockdiag.State(0), sockdiag.State(12)):                                          "state 0 state 12",
	} {
		if got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
