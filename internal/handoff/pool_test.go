package handoff_test

import (
	"errors"
	"io"
	"net"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/portd/portd/internal/handoff"
	"github.com/portd/portd/internal/registry"
	"github.com/portd/portd/internal/wire"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

var noDeadline time.Time

func TestOneConnection(t *testing.T) {
	for _, addr := range []string{"127.0.0.1", "::1", "::"} {
		t.Run(addr, func(t *testing.T) {
			h := newHost(t)
			res := h.listen(addr)
			l := h.join(res)
			c, err := net.Dial("tcp", addrOf(res))
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			s, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			if s.RemoteAddr().String() != c.LocalAddr().String() || s.LocalAddr().String() != c.RemoteAddr().String() {
				t.Errorf("worker sees %v → %v, client %v → %v", s.RemoteAddr(), s.LocalAddr(), c.LocalAddr(), c.RemoteAddr())
			}
			if _, err := io.WriteString(s, "hello"); err != nil {
				t.Fatal(err)
			}
			buf := make([]byte, 5)
			if _, err := io.ReadFull(c, buf); err != nil || string(buf) != "hello" {
				t.Errorf("%q, %v", buf, err)
			}
		})
	}
}

// An engine that has let go of a listener does not touch its descriptor, whatever that is by then.
func TestClosingUnderLoad(t *testing.T) {
	h := newHost(t)
	always := h.join(h.listen("127.0.0.1"))
	go func() { _ = echo(always) }() // the engine is never without a worker
	for range repeat(10, 200) {
		res := h.listen("127.0.0.1")
		l := h.join(res)
		accepting := make(chan error, 1)
		go func() { accepting <- echo(l) }()
		load := make(chan struct{})
		go func() {
			defer close(load)
			for i := 0; ask(addrOf(res), i) == nil; i++ {
			}
		}()
		until(t, "there is load", func() bool { return h.Totals(keyOf(res)).HandedOver > 20 })

		// The listener's descriptor becomes that of a socket which the pool was never told of.
		other := h.reserve(registry.TCP, "127.0.0.1")
		if err := unix.Listen(h.fds[keyOf(other)], 16); err != nil {
			t.Fatal(err)
		}
		h.Closing(keyOf(res))
		if err := unix.Dup3(h.fds[keyOf(other)], h.fds[keyOf(res)], unix.O_CLOEXEC); err != nil {
			t.Fatal(err)
		}
		c, err := net.Dial("tcp", addrOf(other))
		if err != nil {
			t.Fatal(err)
		}
		<-load
		if n := backlog(t, h.fds[keyOf(other)]); n != 1 {
			t.Errorf("%d connections wait at the stranger's socket, want 1", n)
		}
		c.Close()
		h.Released(res.ID, "released")
		if err := <-accepting; err == nil || errors.Is(err, net.ErrClosed) || !strings.Contains(err.Error(), "released") {
			t.Errorf("Accept ends with %v", err)
		}
	}
}

// The worker reads what was sent before its listener went away.
func TestReleasedAfterWhatWasSent(t *testing.T) {
	h := newHost(t)
	res := h.listen("127.0.0.1")
	l := h.join(res)
	c, err := net.Dial("tcp", addrOf(res))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	until(t, "it is in the queue", func() bool { return h.Totals(keyOf(res)).HandedOver == 1 })
	h.release(res, "expired")
	until(t, "the attachment is gone", func() bool { return len(h.Workers()) == 0 })
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := l.Accept(); err == nil || !strings.Contains(err.Error(), "expired") {
		t.Errorf("Accept: %v", err)
	}
}

// A portd that restarts: the worker reads its old queue to the end, attaches again, and Accept goes on.
func TestRestart(t *testing.T) {
	h := newHost(t)
	res := h.listen("127.0.0.1")
	l := h.join(res)
	for i := range repeat(5, 100) {
		before, err := net.Dial("tcp", addrOf(res))
		if err != nil {
			t.Fatal(err)
		}
		defer before.Close()
		handed := uint64(min(i, 1) + 1) // this pool may have had the one that came while there was none
		until(t, "it is in the queue", func() bool { return h.Totals(keyOf(res)).HandedOver == handed })
		h.stop()
		after, err := net.Dial("tcp", addrOf(res)) // waits in the backlog
		if err != nil {
			t.Fatal(err)
		}
		defer after.Close()
		h.start(handoff.Config{})
		for _, c := range []net.Conn{before, after} {
			s, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			if s.RemoteAddr().String() != c.LocalAddr().String() {
				t.Errorf("restart %d: %v came, want %v", i, s.RemoteAddr(), c.LocalAddr())
			}
			s.Close()
		}
	}
}

// While portd is away, Close still ends Accept.
func TestCloseWhileAway(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	h := newHost(t)
	res := h.listen("127.0.0.1")
	l := h.join(res)
	accepting := make(chan error, 1)
	go func() { accepting <- echo(l) }()
	h.stop()
	h.ln.Close()
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if err := <-accepting; !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept: %v", err)
	}
}

func TestRecord(t *testing.T) {
	h := newHost(t)
	res := h.listen("::")
	go func() { _ = echo(h.join(res)) }()
	var peers []string
	start := time.Now()
	for range 10 {
		c, err := net.Dial("tcp", addrOf(res))
		if err != nil {
			t.Fatal(err)
		}
		peers = append(peers, c.LocalAddr().String())
		_, _ = io.WriteString(c, "x")
		_, _ = io.ReadAll(c)
		c.Close()
	}
	got := recorded(t, h, handoff.ConnectionQuery{})
	w := h.Workers()
	if len(got) != 10 || len(w) != 1 {
		t.Fatalf("%d connections, %d workers", len(got), len(w))
	}
	for i, c := range got {
		if c.Peer.String() != peers[9-i] || c.Seq != uint64(10-i) || c.Key != keyOf(res) || c.Owner != res.Owner ||
			c.Worker != w[0].ID || c.PID != int32(os.Getpid()) || c.Redelivered ||
			c.Endpoint != res.Assigned[0].Endpoint || c.Accepted.Before(start) || c.Accepted.After(time.Now()) {
			t.Errorf("%d: %+v", i, c)
		}
	}
	until(t, "all are done", func() bool { return h.Workers()[0].Done == 10 })
	want := []handoff.WorkerListener{{
		Key: keyOf(res), Owner: res.Owner, Endpoint: res.Assigned[0].Endpoint, State: handoff.Ready, Room: 1, Weight: 1,
	}}
	if w[0].Sent != 10 || w[0].Caller.PID != int32(os.Getpid()) || w[0].Command == "" {
		t.Errorf("%+v", w[0])
	}
	if diff := cmp.Diff(want, w[0].Listeners, cmp.Comparer(func(a, b registry.Endpoint) bool { return a == b })); diff != "" {
		t.Error(diff)
	}
}

// Nothing is allocated in portd for a connection.
func TestNoAllocations(t *testing.T) {
	h := newHost(t)
	res := h.listen("127.0.0.1")
	h.worker("serve", res.ID)
	const n = 2000
	warm := func() {
		for i := range n {
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			sa := &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}, Port: int(res.Assigned[0].Endpoint.First)}
			if err := unix.Connect(fd, sa); err != nil {
				t.Fatal(i, err)
			}
			unix.Close(fd)
		}
	}
	warm()
	until(t, "the first are handed over", func() bool { return h.Totals(keyOf(res)).HandedOver == n })
	var was, is runtime.MemStats
	runtime.ReadMemStats(&was)
	warm()
	runtime.ReadMemStats(&is)
	until(t, "all are handed over", func() bool { return h.Totals(keyOf(res)).HandedOver == 2*n })
	// The client's side makes a sockaddr a connection in Go; the engine must add next to nothing.
	if per := float64(is.Mallocs-was.Mallocs) / n; per > 1.5 {
		t.Errorf("%.2f allocations for a connection", per)
	}
}

// A port of a range to which clients come without end holds up none of the others.
func TestPortsOfARangeTakeTurns(t *testing.T) {
	for _, strategy := range []registry.HandoffStrategy{registry.LeastActive, registry.ClientAddress} {
		t.Run(strategy.String(), func(t *testing.T) {
			h := newHost(t)
			busy, quiet := h.listen("127.0.0.1"), h.listen("127.0.0.1")
			h.Closing(keyOf(quiet))
			h.Listening(keyOf(busy), []registry.Socket{
				{Endpoint: busy.Assigned[0].Endpoint, FD: h.fds[keyOf(busy)]}, {Endpoint: quiet.Assigned[0].Endpoint, FD: h.fds[keyOf(quiet)]},
			}, registry.ListenOptions{Handoff: registry.HandoffOptions{Strategy: strategy}})
			const crowd = 2 * handoff.MostStaged
			for i := range crowd + 1 {
				to := addrOf(busy)
				if i == crowd {
					to = addrOf(quiet)
				}
				c, err := net.Dial("tcp", to)
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
			}
			w := h.attach(wire.Attach{Wishes: []wire.Wish{connections(busy.ID)}})
			for seen := 0; ; {
				_, conns, fds := w.take()
				answer{fds: fds}.close()
				if slices.ContainsFunc(conns, func(c wire.Connection) bool { return c.Local.Port == quiet.Assigned[0].Endpoint.First }) {
					break
				}
				if seen += len(conns); seen > crowd/2 {
					t.Fatalf("%d of the busy one's come first", seen)
				}
			}
		})
	}
}
