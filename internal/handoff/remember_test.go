package handoff_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/portd/portd/internal/handoff"
	"github.com/portd/portd/internal/nstest"
	"github.com/portd/portd/internal/registry"
	"golang.org/x/sys/unix"
)

func recorded(t testing.TB, h *host, q handoff.ConnectionQuery) []handoff.Connection {
	t.Helper()
	all, more, err := h.Connections(t.Context(), q)
	if err != nil || more {
		t.Fatal(more, err)
	}
	return all
}

func open(t testing.TB, h *host) []handoff.Connection {
	t.Helper()
	return recorded(t, h, handoff.ConnectionQuery{Open: true})
}

// states are the connections in a line each: the peer's port, the state, and with figures the bytes.
func states(all []handoff.Connection) (lines []string) {
	for _, c := range all {
		line := fmt.Sprintf("%d %s", c.Peer.Port(), c.State)
		if c.Figures {
			line += fmt.Sprintf(" %d in %d out", c.BytesReceived, c.BytesSent)
		}
		lines = append(lines, line)
	}
	return lines
}

// dialFrom connects from a port of 127.0.0.1, whatever that has to other addresses. Closed, it is reset, which leaves nothing behind.
func dialFrom(t testing.TB, from int, to string) *net.TCPConn {
	t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: from}}
	d.Control = func(_, _ string, raw syscall.RawConn) (err error) {
		return errors.Join(raw.Control(func(fd uintptr) {
			err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
		}), err)
	}
	c, err := d.Dial("tcp4", to)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.(*net.TCPConn).SetLinger(0); err != nil {
		t.Fatal(err)
	}
	return c.(*net.TCPConn)
}

func dial(t testing.TB, to string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", to)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// say sends a text and waits for its echo.
func say(t testing.TB, c net.Conn, text string) {
	t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, make([]byte, len(text))); err != nil {
		t.Fatal(err)
	}
}

func clientPort(c net.Conn) int { return c.LocalAddr().(*net.TCPAddr).Port }

// listenRange is listen for count ports from first on, on an IPv4 address.
func (h *host) listenRange(addr string, first, count uint16) *registry.Reservation {
	h.t.Helper()
	nstest.Need(h.t)
	e := registry.Endpoint{Netns: registry.HostNetns, Proto: registry.TCP, Addr: netip.MustParseAddr(addr), First: first, Last: first + count - 1}
	res := &registry.Reservation{
		ID: "rsv_" + addr + fmt.Sprint(first), Owner: registry.UIDPrincipal(uint32(os.Getuid())),
		Assigned: []registry.Assigned{{Endpoint: e, Listen: &registry.ListenOptions{}}},
	}
	var sockets []registry.Socket
	for port := e.First; port <= e.Last; port++ {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			h.t.Fatal(err)
		}
		h.t.Cleanup(func() { unix.Close(fd) })
		err = errors.Join( // also when the test is repeated
			unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1),
			unix.Bind(fd, &unix.SockaddrInet4{Addr: e.Addr.As4(), Port: int(port)}), unix.Listen(fd, 16),
		)
		if err != nil {
			h.t.Fatal(err)
		}
		one := e
		one.First, one.Last = port, port
		sockets = append(sockets, registry.Socket{Endpoint: one, FD: fd})
	}
	h.mu.Lock()
	h.table[res.ID] = res
	h.mu.Unlock()
	h.t.Cleanup(func() { h.Closing(keyOf(res)) })
	h.Listening(keyOf(res), sockets, *res.Assigned[0].Listen)
	return res
}

// What was handed over is joined with the kernel's table, whichever way that speaks of an address.
func TestConnectionsInTheKernel(t *testing.T) {
	for _, tt := range []struct{ listen, dial string }{
		{"127.0.0.1", "127.0.0.1"}, {"0.0.0.0", "127.0.0.1"}, {"::", "127.0.0.1"}, {"::", "::1"}, {"::1", "::1"},
	} {
		t.Run(tt.listen+" from "+tt.dial, func(t *testing.T) {
			h := newHost(t)
			res, other := h.listen(tt.listen), h.listen(tt.listen)
			worker := h.worker("echo", res.ID)
			h.worker("echo", other.ID)
			at := func(res *registry.Reservation) netip.AddrPort {
				return netip.AddrPortFrom(netip.MustParseAddr(tt.dial), res.Assigned[0].Endpoint.First)
			}
			over := dial(t, at(res).String())
			say(t, over, "over")
			mine := dial(t, at(res).String())
			say(t, mine, "mine!")
			others := dial(t, at(other).String())
			say(t, others, "others")
			over.Close()
			want := []string{
				fmt.Sprintf("%d ESTABLISHED 6 in 6 out", clientPort(others)),
				fmt.Sprintf("%d ESTABLISHED 5 in 5 out", clientPort(mine)),
				fmt.Sprintf("%d ", clientPort(over)),
			}
			until(t, "the first one is over", func() bool { return recorded(t, h, handoff.ConnectionQuery{})[2].State == "" })
			all := recorded(t, h, handoff.ConnectionQuery{})
			if diff := cmp.Diff(want, states(all)); diff != "" {
				t.Fatal(diff)
			}
			if c := all[1]; c.Local != at(res) || c.RTT <= 0 || c.PID != int32(worker.Process.Pid) || c.Endpoint != res.Assigned[0].Endpoint {
				t.Errorf("%+v, want local address %v and pid %d", c, at(res), worker.Process.Pid)
			}
			for _, q := range []handoff.ConnectionQuery{{Reservation: res.ID}, {Worker: all[1].Worker}} {
				if diff := cmp.Diff(want[1:], states(recorded(t, h, q))); diff != "" {
					t.Errorf("%+v: %s", q, diff)
				}
				q.Open = true
				if diff := cmp.Diff(want[1:2], states(recorded(t, h, q))); diff != "" {
					t.Errorf("%+v: %s", q, diff)
				}
			}
			shown := handoff.ConnectionQuery{Shown: func(id string, owner registry.Principal) bool {
				return id == other.ID && owner == registry.UIDPrincipal(uint32(os.Getuid()))
			}}
			if diff := cmp.Diff(want[:1], states(recorded(t, h, shown))); diff != "" {
				t.Errorf("shown: %s", diff)
			}
		})
	}
}

// The addresses and ports of a connection that is over are free for another one, whose figures are not the first one's.
func TestConnectionsOfOneFlow(t *testing.T) {
	nstest.Need(t)
	h := newHost(t)
	res := h.listen("0.0.0.0")
	h.worker("echo", res.ID)
	first := dialFrom(t, 20_001, addrOf(res))
	say(t, first, "12345")
	first.Close()
	until(t, "it is over", func() bool { return len(open(t, h)) == 0 })
	second := dialFrom(t, 20_001, addrOf(res))
	say(t, second, "1234567")
	want := []string{"20001 ESTABLISHED 7 in 7 out", "20001 "}
	if diff := cmp.Diff(want, states(recorded(t, h, handoff.ConnectionQuery{}))); diff != "" {
		t.Error(diff)
	}
}

// A client that has one port to two addresses of a listener on every address: which is which is not known.
func TestConnectionsThatCannotBeToldApart(t *testing.T) {
	nstest.Need(t)
	h := newHost(t)
	res := h.listen("0.0.0.0")
	h.worker("echo", res.ID)
	port := res.Assigned[0].Endpoint.First
	say(t, dialFrom(t, 20_002, fmt.Sprint("127.0.0.1:", port)), "1")
	say(t, dialFrom(t, 20_002, fmt.Sprint("127.0.0.2:", port)), "12")
	want := []string{"20002 ESTABLISHED", "20002 ESTABLISHED"}
	if diff := cmp.Diff(want, states(open(t, h))); diff != "" {
		t.Error(diff)
	}
	// To listeners on an address each it is.
	for _, addr := range []string{"127.0.0.1", "127.0.0.2"} {
		res := h.listenRange(addr, 20_100, 1)
		h.worker("echo", res.ID)
		say(t, dialFrom(t, 20_003, addr+":20100"), addr[8:])
	}
	all := open(t, h)
	want = append([]string{"20003 ESTABLISHED 1 in 1 out", "20003 ESTABLISHED 1 in 1 out"}, want...)
	if diff := cmp.Diff(want, states(all)); diff != "" {
		t.Error(diff)
	}
	if all[0].Local.String() != "127.0.0.2:20100" || all[1].Local.String() != "127.0.0.1:20100" {
		t.Errorf("%v and %v", all[0].Local, all[1].Local)
	}
}

// A connection that its worker did not take is there twice, and open once.
func TestConnectionsRedelivered(t *testing.T) {
	h := newHost(t)
	res := h.listen("127.0.0.1")
	dead := h.worker("ignore", res.ID)
	c := dial(t, addrOf(res))
	until(t, "it is handed over", func() bool { return h.Totals(keyOf(res)).HandedOver == 1 })
	dead.kill(t)
	until(t, "it is held", func() bool { return h.Totals(keyOf(res)).Held == 1 })
	alive := h.worker("echo", res.ID)
	say(t, c, "again")
	all := recorded(t, h, handoff.ConnectionQuery{})
	want := []string{fmt.Sprintf("%d ESTABLISHED 5 in 5 out", clientPort(c)), fmt.Sprintf("%d ", clientPort(c))}
	if diff := cmp.Diff(want, states(all)); diff != "" {
		t.Fatal(diff)
	}
	if !all[0].Redelivered || all[0].PID != int32(alive.Process.Pid) || all[1].Redelivered || !all[0].Accepted.Equal(all[1].Accepted) {
		t.Errorf("%+v", all)
	}
	if got := h.Totals(keyOf(res)); got.Held != 0 || got.HandedOver != 2 || got.Redelivered != 1 {
		t.Errorf("%+v", got)
	}
	// What a listener has counted outlives it.
	h.listen("127.0.0.1")
	h.release(res, "released")
	until(t, "the workers are gone", func() bool { return len(h.Workers()) == 0 })
	if got := h.Sum(); got.Held != 0 || got.HandedOver != 2 || got.Redelivered != 1 {
		t.Errorf("of all listeners: %+v", got)
	}
}

// The record is bounded. What is still open outlives its place in it.
func TestRecordIsSwept(t *testing.T) {
	h := newHost(t)
	h.stop()
	const size = 16
	h.startWith(handoff.Config{}, func(p *handoff.Pool) { p.SetRecord(size) })
	res := h.listen("::")
	h.worker("echo", res.ID)
	n := uint64(0)
	greet := func() net.Conn {
		c := dial(t, addrOf(res))
		say(t, c, "hello")
		if n++; n%(size/2) == 0 {
			until(t, "the record is swept", func() bool { return h.Swept() == n })
		}
		return c
	}
	long := []net.Conn{greet(), greet(), greet()}
	var want []string
	for _, c := range slices.Backward(long) {
		want = append(want, fmt.Sprintf("%d ESTABLISHED 5 in 5 out", clientPort(c)))
	}
	pass := func(count int) { // that many come, and go before the next sweep but one
		for range count {
			greet().Close()
			until(t, "it is over", func() bool { return len(open(t, h)) == len(want) })
		}
	}
	pass(5 * size)
	if diff := cmp.Diff(want, states(open(t, h))); diff != "" {
		t.Error(diff)
	}
	all := recorded(t, h, handoff.ConnectionQuery{})
	if len(all) < size+3 || all[0].Seq != n || all[size-1].Seq != n-size+1 || all[len(all)-1].Seq != 1 {
		t.Errorf("%d in the record of %d: %v", len(all), n, states(all))
	}
	// Page by page it is the same, though more come meanwhile.
	for most := 1; most <= len(all); most++ {
		var paged []handoff.Connection
		q := handoff.ConnectionQuery{Most: most, Before: n + 1}
		_, _, _ = h.Connections(t.Context(), handoff.ConnectionQuery{Most: 1}) // what the next pages are of
		for more := true; more; {
			some, again, err := h.Connections(t.Context(), q)
			if err != nil || len(some) > most || again && len(some) < most || len(some) == 0 {
				t.Fatal(len(some), again, err)
			}
			paged, more, q.Before = append(paged, some...), again, some[len(some)-1].Seq
		}
		if diff := cmp.Diff(states(all), states(paged)); diff != "" {
			t.Errorf("in pages of %d: %s", most, diff)
		}
	}
	// One that is over now is forgotten in its turn.
	long[0].Close()
	want = want[:2]
	until(t, "it is over", func() bool { return len(open(t, h)) == 2 })
	pass(size)
	if all := recorded(t, h, handoff.ConnectionQuery{}); all[len(all)-1].Seq != 2 {
		t.Errorf("%d in the record of %d: %v", len(all), n, states(all))
	}
}

// Each connection of a range is of its own port, though one message has several, and after its first worker has died, too.
func TestConnectionsOfARange(t *testing.T) {
	h := newHost(t)
	res := h.listenRange("0.0.0.0", 20_200, 4)
	want := map[uint16]uint16{}
	for port := uint16(20_200); port < 20_204; port++ {
		want[uint16(clientPort(dial(t, fmt.Sprint("127.0.0.1:", port))))] = port
	}
	until(t, "they wait", func() bool { return h.Totals(keyOf(res)).Waiting == 4 })
	dead := h.worker("ignore", res.ID)
	check := func() {
		t.Helper()
		for _, c := range open(t, h) {
			if e := c.Endpoint; e.First != e.Last || e.First != want[c.Peer.Port()] || c.Local.Port() != e.First {
				t.Errorf("%v to %v is of %v", c.Peer, c.Local, e)
			}
		}
	}
	until(t, "all are handed over", func() bool { return len(open(t, h)) == 4 })
	check()
	dead.kill(t)
	h.worker("echo", res.ID)
	until(t, "all are handed over again", func() bool { return h.Totals(keyOf(res)).Redelivered == 4 })
	check()
}

// How long a connection waited is known from the kernel, and so is how many wait.
func TestWaits(t *testing.T) {
	for _, addr := range []string{"127.0.0.1", "::"} {
		h := newHost(t)
		res := h.listen(addr)
		const n, wait = 3, 60 * time.Millisecond
		for range n {
			dial(t, addrOf(res))
		}
		until(t, "they wait", func() bool { return h.Totals(keyOf(res)).Waiting == n })
		<-time.After(wait)
		h.worker("echo", res.ID)
		until(t, "they are handed over", func() bool { return h.Totals(keyOf(res)).HandedOver == n })
		got := h.Totals(keyOf(res))
		if got.Waiting != 0 || got.Held != 0 || got.PerSecond <= 0 || got.PerSecond > n || h.Workers()[0].PerSecond != got.PerSecond {
			t.Errorf("%+v", got)
		}
		samples := uint64(0)
		for _, b := range got.Waits {
			samples += b.Count
			if b.AtMost > 0 && b.AtMost < wait-10*time.Millisecond && b.Count > 0 {
				t.Errorf("%d waited at most %v, of %v", b.Count, b.AtMost, wait)
			}
		}
		if samples == 0 || samples > n {
			t.Errorf("%d samples of %d connections", samples, n)
		}
	}
}

// Nobody is told that nothing is open where that cannot be known.
func TestConnectionsElsewhere(t *testing.T) {
	h := newHost(t)
	h.stop()
	gone := errors.New("gone")
	h.startWith(handoff.Config{Enter: func(name string, _ func() error) error {
		return fmt.Errorf("network namespace %s: %w", name, gone)
	}}, func(*handoff.Pool) {})
	res := h.reserve(registry.TCP, "127.0.0.1")
	res.Assigned[0].Endpoint.Netns = "elsewhere"
	if err := unix.Listen(h.fds[keyOf(res)], 16); err != nil {
		t.Fatal(err)
	}
	res.Assigned[0].Listen = &registry.ListenOptions{}
	h.Listening(keyOf(res), []registry.Socket{{Endpoint: res.Assigned[0].Endpoint, FD: h.fds[keyOf(res)]}}, *res.Assigned[0].Listen)
	h.worker("echo", res.ID)
	c := dial(t, addrOf(res))
	say(t, c, "x")
	if diff := cmp.Diff([]string{fmt.Sprintf("%d ", clientPort(c))}, states(recorded(t, h, handoff.ConnectionQuery{}))); diff != "" {
		t.Error(diff)
	}
	_, _, err := h.Connections(t.Context(), handoff.ConnectionQuery{Open: true})
	if !errors.Is(err, registry.ErrUnsupported) || !strings.Contains(err.Error(), "network namespace elsewhere: gone") {
		t.Errorf("open ones: %v", err)
	}
}
