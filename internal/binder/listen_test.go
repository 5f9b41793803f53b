package binder_test

import (
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/binder"
	"github.com/portd/portd/internal/registry"
)

// An observer notes what it is told.
type observer struct {
	events []string
	last   []registry.Socket
}

func (o *observer) Listening(key registry.SocketKey, socks []registry.Socket, _ registry.ListenOptions) {
	o.events = append(o.events, "listening "+key.Reservation)
	o.last = socks
}

func (o *observer) Closing(key registry.SocketKey) {
	o.events = append(o.events, "closing "+key.Reservation)
}

func TestLifeOfAListener(t *testing.T) {
	for _, c := range []struct {
		name string
		opt  registry.BindOptions
	}{{"tcp", registry.BindOptions{}}, {"mptcp", registry.BindOptions{MPTCP: true}}} {
		t.Run(c.name, func(t *testing.T) { testLife(t, c.opt) })
	}
}

func testLife(t *testing.T, opt registry.BindOptions) {
	seen := new(observer)
	b := open(t, binder.Config{Observer: seen})
	ep := at(t, "tcp/1", port())
	target := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), ep.First).String()

	if err := b.Bind(t.Context(), registry.Bind{Key: key(ep), Endpoint: ep, Options: opt}); errors.Is(err, registry.ErrUnsupported) {
		t.Skip(err)
	} else if err != nil {
		t.Fatal(err)
	}
	refused(t, target)
	const rounds = 3
	for round := range rounds {
		listen(t, b, ep)
		client := dial(t, target)
		server, _, err := unix.Accept4(seen.last[0].FD, unix.SOCK_CLOEXEC)
		if err != nil {
			t.Fatalf("round %d: accept: %v", round, err)
		}
		noDelay, err := unix.GetsockoptInt(server, unix.IPPROTO_TCP, unix.TCP_NODELAY)
		keepAlive, err2 := unix.GetsockoptInt(server, unix.SOL_SOCKET, unix.SO_KEEPALIVE)
		if noDelay != 1 || keepAlive != 1 {
			t.Errorf("round %d: TCP_NODELAY %d (%v), SO_KEEPALIVE %d (%v)", round, noDelay, err, keepAlive, err2)
		}
		waiting := dial(t, target)
		if err := b.Unlisten(key(ep)); err != nil {
			t.Fatal(err)
		}
		refused(t, target)
		for _, thief := range thieves(unix.SOCK_STREAM, ep.First) {
			tryThief(t, ep, thief)
		}
		if _, err := waiting.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
			t.Errorf("round %d: a connection that nobody had accepted: %v, want a reset", round, err)
		}
		// What was accepted goes on.
		if _, err := unix.Write(server, []byte("x")); err != nil {
			t.Errorf("round %d: write: %v", round, err)
		}
		if n, err := client.Read(make([]byte, 1)); n != 1 {
			t.Errorf("round %d: read: %v", round, err)
		}
		_ = unix.Close(server) // closed here first, so the next round is over its TIME_WAIT
		_ = client.Close()
		_ = waiting.Close()
	}
	if err := b.Unlisten(key(ep)); err != nil {
		t.Errorf("Unlisten of what does not listen: %v", err)
	}
	release(t, b, ep)
	var want []string
	for range rounds {
		want = append(want, "listening "+ep.String(), "closing "+ep.String())
	}
	if diff := cmp.Diff(want, seen.events); diff != "" {
		t.Errorf("the observer was told (-want +got):\n%s", diff)
	}
}

func TestReleaseFreesThePort(t *testing.T) {
	seen := new(observer)
	b := open(t, binder.Config{Observer: seen})
	for _, text := range []string{"tcp/1", "udp/1"} {
		ep := at(t, text, port())
		hold(t, b, ep)
		if ep.Proto.Streams() {
			listen(t, b, ep)
		}
		release(t, b, ep)
		release(t, b, ep) // again is no error
		// Without SO_REUSEADDR, so that nothing may be left.
		kind := unix.SOCK_DGRAM
		if ep.Proto.Streams() {
			kind = unix.SOCK_STREAM
		}
		stranger{Type: kind, At: netip.AddrPortFrom(ep.Addr, ep.First), Listen: kind == unix.SOCK_STREAM}.open(t)
	}
	if want := 2; len(seen.events) != want {
		t.Errorf("the observer was told %q", seen.events)
	}
}

func TestOptions(t *testing.T) {
	b := open(t, binder.Config{})
	for _, opt := range []registry.BindOptions{{}, {MPTCP: true}} {
		ep := at(t, "tcp/1", port())
		if err := b.Bind(t.Context(), registry.Bind{Key: key(ep), Endpoint: ep, Options: opt}); errors.Is(err, registry.ErrUnsupported) {
			t.Log(err)
			continue
		} else if err != nil {
			t.Fatal(err)
		}
		if _, err := b.Options(key(ep)); !errors.Is(err, registry.ErrNotFound) {
			t.Errorf("options of what does not listen: %v", err)
		}
		for _, c := range []struct{ asked, want registry.ListenOptions }{
			{registry.ListenOptions{}, registry.ListenOptions{Backlog: 4096}},
			{registry.ListenOptions{Backlog: 7, NoDelayOff: true}, registry.ListenOptions{Backlog: 7, NoDelayOff: true}},
			{registry.ListenOptions{Backlog: 1 << 20, KeepAliveOff: true}, registry.ListenOptions{Backlog: 4096, KeepAliveOff: true}},
		} {
			if err := b.Listen(t.Context(), key(ep), c.asked); err != nil {
				t.Fatal(err)
			}
			got, err := b.Options(key(ep))
			if err != nil {
				t.Fatal(err)
			}
			c.want.KeepAliveIdle, c.want.KeepAliveInterval, c.want.KeepAliveProbes = 2*time.Hour, 75*time.Second, 9 // the host's
			if got != c.want {
				t.Errorf("%+v: asked for %+v, the kernel has %+v, want %+v", opt, c.asked, got, c.want)
			}
		}
		release(t, b, ep)
	}
}

// Nobody can listen on a port that is held, unless a program that has the socket itself lets him in.
func TestListenIsAllOrNothing(t *testing.T) {
	seen := new(observer)
	b := open(t, binder.Config{Observer: seen})
	first := ports(3)
	ep := at(t, "tcp/127.0.0.1:1", first)
	ep.Last = first + 2
	hold(t, b, ep)
	lent, err := b.Lend(key(ep))
	if err != nil {
		t.Fatal(err)
	}
	// A program that has the socket itself can unlock it, and so let another one in.
	middle := lent[1]
	if err := unix.SetsockoptInt(middle.FD, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		t.Fatal(err)
	}
	stranger{Type: unix.SOCK_STREAM, At: netip.AddrPortFrom(ep.Addr, middle.Endpoint.First), RA: true, Listen: true}.open(t)
	for _, l := range lent {
		_ = unix.Close(l.FD)
	}
	b.Return(key(ep))

	err = b.Listen(t.Context(), key(ep), registry.ListenOptions{})
	if !errors.Is(err, registry.ErrTaken) {
		t.Fatalf("listen beside another listener: %v, want ErrTaken", err)
	}
	if len(seen.events) > 1 { // closing, for it is lent
		t.Errorf("the observer was told %q", seen.events)
	}
	for _, p := range []uint16{first, first + 2} {
		refused(t, netip.AddrPortFrom(ep.Addr, p).String())
		if fd, err := (stranger{Type: unix.SOCK_STREAM, At: netip.AddrPortFrom(ep.Addr, p), RA: true}).try(); !isInUse(err) {
			_ = unix.Close(fd)
			t.Errorf("port %d is not held any more: %v", p, err)
		}
	}
}

func dial(t testing.TB, to string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", to)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func refused(t testing.TB, to string) {
	t.Helper()
	c, err := net.Dial("tcp", to)
	if err == nil {
		_ = c.Close()
	}
	if !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("connect to %s: %v, want it refused", to, err)
	}
}
