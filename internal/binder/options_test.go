package binder_test

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/binder"
	"github.com/portd/portd/internal/registry"
)

// everyOption asks for something of each that a connection inherits.
var everyOption = registry.ListenOptions{
	Backlog: 33, NoDelayOff: true, KeepAliveIdle: 77 * time.Second, KeepAliveInterval: 11 * time.Second, KeepAliveProbes: 3,
	UserTimeout: 4321 * time.Millisecond, Mark: 99, ReceiveBuffer: 100_000, SendBuffer: 90_000,
}

// inherited are those of them that a connection can be asked for.
var inherited = []struct {
	name         string
	level, opt   int
	plain, tuned int // without anything asked for, and with everyOption; 0: not to be compared
}{
	{"SO_KEEPALIVE", unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1, 1},
	{"TCP_NODELAY", unix.IPPROTO_TCP, unix.TCP_NODELAY, 1, 0},
	{"TCP_KEEPIDLE", unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 7200, 77},
	{"TCP_KEEPINTVL", unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, 75, 11},
	{"TCP_KEEPCNT", unix.IPPROTO_TCP, unix.TCP_KEEPCNT, 9, 3},
	{"TCP_USER_TIMEOUT", unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, 0, 4321},
	{"SO_MARK", unix.SOL_SOCKET, unix.SO_MARK, 0, 99},
	{"SO_BUF_LOCK", unix.SOL_SOCKET, 72, 0, 3},
}

// A connection has the options of its listener as they were when it was made; a change is for those to come.
func TestConnectionsInheritOptions(t *testing.T) {
	b := open(t, binder.Config{})
	for _, kind := range []struct {
		text string
		opt  registry.BindOptions
	}{{"tcp/127.0.0.1:1", registry.BindOptions{}}, {"tcp/[::1]:1", registry.BindOptions{}}, {"tcp/1", registry.BindOptions{}}, {"tcp/1", registry.BindOptions{MPTCP: true}}} {
		t.Run(fmt.Sprintf("%s %+v", kind.text, kind.opt), func(t *testing.T) {
			ep, ask := at(t, kind.text, port()), everyOption
			err := b.Bind(t.Context(), registry.Bind{Key: key(ep), Endpoint: ep, Options: kind.opt})
			if errors.Is(err, registry.ErrUnsupported) {
				t.Skip(err)
			}
			if err != nil {
				t.Fatal(err)
			}
			defer release(t, b, ep)
			if kind.opt.MPTCP {
				err := b.Listen(t.Context(), key(ep), ask)
				if !errors.Is(err, registry.ErrUnsupported) || !strings.Contains(err.Error(), "user_timeout: this kernel does not have it for Multipath TCP") {
					t.Errorf("a user timeout with Multipath TCP: %v", err)
				}
				ask.UserTimeout = 0
			}
			// Twice each, for what is undone must be so again.
			for _, opt := range []registry.ListenOptions{{}, ask, {}, ask} {
				if err := b.Listen(t.Context(), key(ep), opt); err != nil {
					t.Fatal(err)
				}
				fd := acceptOne(t, b, ep)
				for _, o := range inherited {
					want := o.plain
					if opt == ask {
						want = o.tuned
					}
					if kind.opt.MPTCP && (o.name == "TCP_USER_TIMEOUT" || o.name == "SO_BUF_LOCK") {
						continue // it has no user timeout, and once a size is set one stays
					}
					if got, err := unix.GetsockoptInt(fd, o.level, o.opt); err != nil || got != want {
						t.Errorf("with %+v a connection has %s %d (%v), want %d", opt, o.name, got, err, want)
					}
				}
				if opt == ask {
					for opt, asked := range map[int]int{unix.SO_RCVBUF: ask.ReceiveBuffer, unix.SO_SNDBUF: ask.SendBuffer} {
						if got, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, opt); err != nil || got != 2*asked {
							t.Errorf("a buffer of %d was asked for, the connection's is %d (%v)", asked, got, err)
						}
					}
				}
				_ = unix.Close(fd)
			}
			got, err := b.Options(key(ep))
			if diff := cmp.Diff(ask, got); err != nil || diff != "" {
				t.Errorf("the kernel has something else than was asked for (%v, -asked +has)\n%s", err, diff)
			}
		})
	}
}

// acceptOne makes a connection to ep and accepts it by a duplicate of the listening socket; it is the caller's to close.
func acceptOne(t testing.TB, b *binder.Binder, ep registry.Endpoint) int {
	t.Helper()
	c := dial(t, loopbackOf(ep))
	t.Cleanup(func() { _ = c.Close() })
	lent, err := b.Lend(key(ep))
	if err != nil {
		t.Fatal(err)
	}
	defer b.Return(key(ep))
	defer unix.Close(lent[0].FD)
	readable(t, lent[0].FD)
	fd, _, err := unix.Accept4(lent[0].FD, unix.SOCK_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	return fd
}

func readable(t testing.TB, fd int) {
	t.Helper()
	p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	if n, err := unix.Poll(p, 5000); n != 1 {
		t.Fatalf("nothing arrived within 5 s (%v)", err)
	}
}

func loopbackOf(ep registry.Endpoint) string {
	addr := ep.Addr
	if addr.IsUnspecified() {
		addr = netip.MustParseAddr("127.0.0.1")
	}
	return netip.AddrPortFrom(addr, ep.First).String()
}

// The kernel rounds, caps and makes its own numbers, which is what is told.
func TestOptionsAsTheKernelHasThem(t *testing.T) {
	b := open(t, binder.Config{})
	ep := at(t, "tcp/127.0.0.1:1", port())
	hold(t, b, ep)
	most := sysctl(t, "net/core/rmem_max")
	for _, c := range []struct{ asked, want registry.ListenOptions }{
		{registry.ListenOptions{DeferAccept: 5 * time.Second}, registry.ListenOptions{DeferAccept: 7 * time.Second}}, // 1+2+4
		{registry.ListenOptions{ReceiveBuffer: 1 << 29}, registry.ListenOptions{ReceiveBuffer: most}},
		{registry.ListenOptions{SendBuffer: 1}, registry.ListenOptions{SendBuffer: 2304}}, // SOCK_MIN_SNDBUF
		{registry.ListenOptions{FastOpen: 1 << 20}, registry.ListenOptions{FastOpen: 4096}},
	} {
		c.want.Backlog = 4096
		c.want.KeepAliveIdle, c.want.KeepAliveInterval, c.want.KeepAliveProbes = 2*time.Hour, 75*time.Second, 9
		if err := b.Listen(t.Context(), key(ep), c.asked); err != nil {
			t.Fatal(err)
		}
		got, err := b.Options(key(ep))
		if err != nil {
			t.Fatal(err)
		}
		if c.want.SendBuffer != 0 && got.SendBuffer < 1024 || c.want.SendBuffer == 0 && got.SendBuffer != 0 {
			t.Errorf("asked for a send buffer of %d, the kernel has %d", c.asked.SendBuffer, got.SendBuffer)
		}
		got.SendBuffer = c.want.SendBuffer // its least differs from kernel to kernel
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("asked for %+v (-want +got)\n%s", c.asked, diff)
		}
	}
}

func TestDeferAccept(t *testing.T) {
	b := open(t, binder.Config{})
	ep := at(t, "tcp/127.0.0.1:1", port())
	hold(t, b, ep)
	if err := b.Listen(t.Context(), key(ep), registry.ListenOptions{DeferAccept: 30 * time.Second}); err != nil {
		t.Fatal(err)
	}
	fd := lendOne(t, b, ep)
	c := dial(t, loopbackOf(ep))
	defer c.Close()
	if _, _, err := unix.Accept4(fd, 0); !errors.Is(err, unix.EAGAIN) {
		t.Fatalf("accepted a connection that has sent nothing (%v)", err)
	}
	if _, err := c.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	readable(t, fd)
	conn, _, err := unix.Accept4(fd, unix.SOCK_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	_ = unix.Close(conn)
}

// With fast open a client's first packet brings data; where the host does not let servers have it that is said.
func TestFastOpen(t *testing.T) {
	b := open(t, binder.Config{})
	const file = "/proc/sys/net/ipv4/tcp_fastopen"
	before, err := os.ReadFile(file)
	if err != nil {
		t.Skip(err)
	}
	set := func(flags string) {
		if err := os.WriteFile(file, []byte(flags), 0); err != nil {
			t.Skip(err)
		}
	}
	set("1")
	defer set(strings.TrimSpace(string(before)))
	want := registry.ListenOptions{FastOpen: 16}
	err = b.MayListen(registry.HostNetns, want)
	if !errors.Is(err, registry.ErrUnsupported) || !strings.Contains(err.Error(), "sysctl net.ipv4.tcp_fastopen=3") {
		t.Errorf("fast open where only clients may: %v", err)
	}
	set("519") // clients, servers, no cookies asked for on either side (ip-sysctl)
	if err := b.MayListen(registry.HostNetns, want); err != nil {
		t.Error(err)
	}
	ep := at(t, "tcp/127.0.0.1:1", port())
	hold(t, b, ep)
	for _, opt := range []registry.ListenOptions{want, {}} {
		if err := b.Listen(t.Context(), key(ep), opt); err != nil {
			t.Fatal(err)
		}
		c, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		if err := unix.Sendto(c, []byte("early"), unix.MSG_FASTOPEN, sockaddr(netip.AddrPortFrom(ep.Addr, ep.First))); err != nil {
			t.Fatal(err)
		}
		fd := lendOne(t, b, ep)
		readable(t, fd)
		conn, _, err := unix.Accept4(fd, unix.SOCK_CLOEXEC)
		if err != nil {
			t.Fatal(err)
		}
		info, err := unix.GetsockoptTCPInfo(conn, unix.IPPROTO_TCP, unix.TCP_INFO)
		const synData = 32 // TCPI_OPT_SYN_DATA
		if early := err == nil && info.Options&synData != 0; early != (opt.FastOpen > 0) {
			t.Errorf("with %+v data came with the SYN: %v (%v)", opt, early, err)
		}
		_, _ = unix.Close(c), unix.Close(conn)
		b.Return(key(ep))
	}
}

// What a program did to a socket that it had is undone, with what had been asked for before.
func TestReturnRestoresOptions(t *testing.T) {
	b := open(t, binder.Config{})
	ep := at(t, "tcp/127.0.0.1:1", port())
	hold(t, b, ep)
	asked := registry.ListenOptions{KeepAliveIdle: time.Minute, SendBuffer: 50_000}
	if err := b.Listen(t.Context(), key(ep), asked); err != nil {
		t.Fatal(err)
	}
	before, err := b.Options(key(ep))
	if err != nil {
		t.Fatal(err)
	}
	fd := lendOne(t, b, ep)
	for _, o := range []struct{ level, opt, n int }{
		{unix.SOL_SOCKET, unix.SO_RCVBUF, 5000},
		{unix.SOL_SOCKET, unix.SO_SNDBUF, 5000},
		{unix.SOL_SOCKET, unix.SO_MARK, 7},
		{unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 5},
		{unix.IPPROTO_TCP, unix.TCP_KEEPCNT, 5},
		{unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, 5},
		{unix.IPPROTO_TCP, unix.TCP_DEFER_ACCEPT, 5},
		{unix.IPPROTO_TCP, unix.TCP_FASTOPEN, 5},
	} {
		if err := unix.SetsockoptInt(fd, o.level, o.opt, o.n); err != nil {
			t.Fatal(err)
		}
	}
	b.Return(key(ep))
	after, err := b.Options(key(ep))
	if diff := cmp.Diff(before, after); err != nil || diff != "" {
		t.Errorf("%v (-before +after)\n%s", err, diff)
	}
}

// Without the capability that a mark takes it says so, and everything else is as before.
func TestMarkWithoutCapability(t *testing.T) {
	if !isNobody() {
		asNobody(t)
		return
	}
	b := open(t, binder.Config{})
	ep := at(t, "tcp/127.0.0.1:1", port())
	hold(t, b, ep)
	listen(t, b, ep)
	before, err := b.Options(key(ep))
	if err != nil {
		t.Fatal(err)
	}
	err = b.Listen(t.Context(), key(ep), registry.ListenOptions{Mark: 1, KeepAliveOff: true, NoDelayOff: true, Backlog: 3})
	if !errors.Is(err, registry.ErrUnsupported) || !strings.Contains(err.Error(), "mark: portd may not set it without CAP_NET_ADMIN") {
		t.Errorf("a mark: %v", err)
	}
	after, err := b.Options(key(ep))
	if diff := cmp.Diff(before, after); err != nil || diff != "" {
		t.Errorf("%v (-before +after)\n%s", err, diff)
	}
}

func sysctl(t testing.TB, name string) (n int) {
	t.Helper()
	text, err := os.ReadFile("/proc/sys/" + name)
	if err == nil {
		_, err = fmt.Sscan(string(text), &n)
	}
	if err != nil {
		t.Skip(err)
	}
	return n
}
