package handoff_test

import (
	"errors"
	"io"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/portd/portd/internal/handoff"
	"github.com/portd/portd/internal/nstest"
	"github.com/portd/portd/internal/registry"
	"github.com/portd/portd/internal/wire"
	"golang.org/x/sys/unix"
)

// Whatever a peer does, it is dropped after a bounded time and size, and a worker that behaves does not notice.
func TestBrokenPeers(t *testing.T) {
	nstest.Descriptors(t)
	h := newHost(t)
	defer h.stop()
	res := h.listen("127.0.0.1")
	good := h.join(res)
	go func() { _ = echo(good) }()

	header := wire.AppendReady(nil, 0)
	long := append([]byte(nil), header...)
	long[7] = 0xff
	for name, packet := range map[string][]byte{
		"garbage":           []byte(strings.Repeat("garbage ", 100)),
		"half a header":     header[:5],
		"READY first":       header,
		"a length too long": long,
		"64 KiB of nothing": make([]byte, 1<<16),
		"no wishes":         wire.AppendAttach(nil, wire.Attach{MinVersion: 1, MaxVersion: 1}),
		"an unknown want":   wire.AppendAttach(nil, wire.Attach{MinVersion: 1, MaxVersion: 1, Wishes: []wire.Wish{{Reference: res.ID, Want: 9}}}),
		"the same twice": wire.AppendAttach(nil, wire.Attach{
			MinVersion: 1, MaxVersion: 1, Wishes: []wire.Wish{connections(res.ID), connections(res.Name)},
		}),
	} {
		m, err := h.say(packet)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if r, err := wire.DecodeRefused(m.Message); m.Type != wire.TypeRefused || r.Code != wire.CodeInvalid || r.Text == "" {
			t.Errorf("%s: %v %+v %v", name, m.Type, r, err)
		}
	}
	// An empty message reads as an end of file.
	conn := h.dial()
	raw, _ := conn.SyscallConn()
	_ = raw.Control(func(fd uintptr) { _ = unix.Send(int(fd), nil, 0) })
	if _, err := receive(conn); err != io.EOF {
		t.Errorf("empty: %v", err)
	}
	// Descriptors that nobody asked for are not kept.
	conn = h.dial()
	for range 3 {
		_, _, err := conn.WriteMsgUnix(attachMessage(res.ID), unix.UnixRights(0, 1, 2), nil)
		if err != nil {
			t.Fatal(err)
		}
	}
	if m, err := receive(conn); err != nil || m.Type != wire.TypeAttached {
		t.Error(m.Type, err)
	} else {
		m.close()
	}
	conn.Close()
	// Garbage after a good start.
	w := h.attach(wire.Attach{Wishes: []wire.Wish{connections(res.ID)}})
	_, _ = w.Write([]byte("garbage"))
	if _, err := receive(w.UnixConn); err != io.EOF {
		t.Errorf("garbage from a worker: %v", err)
	}
	// Unknown messages are skipped.
	w = h.attach(wire.Attach{Wishes: []wire.Wish{connections(res.ID)}})
	unknown := wire.AppendReady(nil, 0)
	unknown[0] = 99
	_, _ = w.Write(unknown)
	_, _ = w.Write(wire.AppendReady(nil, 77)) // no such listener
	_, _ = w.Write(wire.AppendDrain(nil, wire.AllListeners))
	if m, err := receive(w.UnixConn); err != nil || m.Type != wire.TypeDrained {
		t.Errorf("after an unknown message: %v %v", m.Type, err)
	}
	w.Close()
	if err := ask(addrOf(res), 0); err != nil {
		t.Error(err)
	}
}

func TestSilence(t *testing.T) {
	h := newHost(t)
	h.stop()
	res := h.listen("127.0.0.1")
	h.startWith(handoff.Config{}, func(p *handoff.Pool) { p.SetPatience(50 * time.Millisecond) })
	conn := h.dial()
	if _, err := receive(conn); err != io.EOF {
		t.Errorf("a silent peer gets %v", err)
	}
	// A worker may be silent for as long as it likes.
	w := h.attach(wire.Attach{Wishes: []wire.Wish{connections(res.ID)}})
	_ = w.SetDeadline(time.Now().Add(150 * time.Millisecond))
	if _, err := receive(w.UnixConn); !errors.Is(err, syscall.ETIMEDOUT) && !timedOut(err) {
		t.Errorf("a silent worker gets %v", err)
	}
}

func timedOut(err error) bool {
	var e net.Error
	return errors.As(err, &e) && e.Timeout()
}

func TestTooManyHandshakes(t *testing.T) {
	h := newHost(t)
	res := h.listen("127.0.0.1")
	for range handoff.MaxKnocking {
		h.dial()
	}
	until(t, "one more is refused", func() bool {
		m, err := receiveOrRefused(h)
		if err != nil || m.Type != wire.TypeRefused {
			return false // the earlier ones are still being counted
		}
		r, _ := wire.DecodeRefused(m.Message)
		return r.Code == wire.CodeExhausted
	})
	_ = res
}

func receiveOrRefused(h *host) (answer, error) {
	conn := h.dial()
	_ = conn.SetDeadline(time.Now().Add(100 * time.Millisecond))
	return receive(conn)
}

func TestTooManyWorkers(t *testing.T) {
	h := newHost(t)
	h.stop()
	res := h.listen("127.0.0.1")
	h.start(handoff.Config{MaxPerUser: 2})
	// Ours is portd's own user, who has three times as many.
	for range 6 {
		h.attach(wire.Attach{Wishes: []wire.Wish{connections(res.ID)}})
	}
	m, err := h.say(attachMessage(res.ID))
	if err != nil {
		t.Fatal(err)
	}
	if r, _ := wire.DecodeRefused(m.Message); r.Code != wire.CodeExhausted || !strings.Contains(r.Text, "RLIMIT_NOFILE") {
		t.Errorf("%+v", r)
	}
	if n := len(h.Workers()); n != 6 {
		t.Errorf("%d workers", n)
	}
}

func TestFlood(t *testing.T) {
	h := newHost(t)
	res := h.listen("127.0.0.1")
	w := h.attach(wire.Attach{Wishes: []wire.Wish{connections(res.ID)}})
	for i := 0; ; i++ {
		if _, err := w.Write(wire.AppendReady(nil, 0)); err != nil {
			break
		}
		if i > 1_000_000 {
			t.Fatal("a million messages were taken")
		}
	}
	until(t, "it is gone", func() bool { return len(h.Workers()) == 0 })
}

// A worker that shuts its queue is let go, and what was for it goes to another.
func TestShutQueue(t *testing.T) {
	h := newHost(t)
	res := h.listen("127.0.0.1")
	w := h.attach(wire.Attach{Wishes: []wire.Wish{connections(res.ID)}})
	if err := unix.Send(w.queue, []byte("back"), unix.MSG_NOSIGNAL); err != unix.EPIPE {
		t.Errorf("writing into the queue from the wrong end: %v", err)
	}
	_, failures := askMany(t, addrOf(res), 10)
	until(t, "its queue is full", func() bool { return h.Workers()[0].Sent > 0 })
	if err := unix.Shutdown(w.queue, unix.SHUT_RDWR); err != nil {
		t.Fatal(err)
	}
	go func() { _ = echo(h.join(res)) }()
	if n := failures(); n > 0 {
		t.Errorf("%d failed", n)
	}
	if n := len(h.Workers()); n != 1 {
		t.Errorf("%d workers", n)
	}
}

// A stranger is told no, in the registry's words, and has nothing.
func TestStranger(t *testing.T) {
	h := newHost(t)
	res := h.listen("127.0.0.1")
	attr := nstest.As(t, 65534, 65534)
	_, err := h.tryWorker("serve", res.ID, attr)
	if err == nil || !strings.Contains(err.Error(), "it belongs to") {
		t.Errorf("a stranger's attach: %v", err)
	}
	if n := len(h.Workers()); n != 0 {
		t.Errorf("%d workers", n)
	}
}

func TestRefusals(t *testing.T) {
	h := newHost(t)
	tcp, udp := h.reserve(registry.TCP, "127.0.0.1"), h.reserve(registry.UDP, "127.0.0.1")
	recorded := h.reserve(registry.TCP, "127.0.0.1")
	recorded.Spec.Mode = registry.Recorded
	for _, tt := range []struct {
		name string
		wish wire.Wish
		code wire.Code
		text string
	}{
		{"unknown", connections("nobody"), wire.CodeNotFound, "nobody"},
		{"does not listen", connections(tcp.ID), wire.CodeFailedPrecondition, "portctl listen " + tcp.Endpoints()},
		{"socket that does not listen", wire.Wish{Reference: tcp.ID, Want: wire.WantSocket}, wire.CodeFailedPrecondition, "portctl listen"},
		{"connections of UDP", connections(udp.Endpoints()), wire.CodeFailedPrecondition, "take the socket itself"},
		{"recorded", connections(recorded.ID), wire.CodeFailedPrecondition, "recorded only"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m, err := h.say(wire.AppendAttach(nil, wire.Attach{MinVersion: 1, MaxVersion: 1, Wishes: []wire.Wish{tt.wish}}))
			if err != nil {
				t.Fatal(err)
			}
			if r, err := wire.DecodeRefused(m.Message); err != nil || r.Code != tt.code || !strings.Contains(r.Text, tt.text) {
				t.Errorf("%v %+v %v", m.Type, r, err)
			}
		})
	}
	m, err := h.say(wire.AppendAttach(nil, wire.Attach{MinVersion: 7, MaxVersion: 9, Wishes: []wire.Wish{connections(tcp.ID)}}))
	if err != nil {
		t.Fatal(err)
	}
	if r, _ := wire.DecodeRefused(m.Message); r.Code != wire.CodeVersion {
		t.Errorf("%+v", r)
	}
	for _, res := range []*registry.Reservation{tcp, udp, recorded} {
		if n := h.loans(keyOf(res)); n != 0 {
			t.Errorf("%v is still lent %d times", res.Endpoints(), n)
		}
	}
}

func TestLentSocket(t *testing.T) {
	nstest.Descriptors(t)
	h := newHost(t)
	defer h.stop()
	udp, tcp := h.reserve(registry.UDP, "127.0.0.1"), h.listen("127.0.0.1")
	w := h.attach(wire.Attach{Wishes: []wire.Wish{
		{Reference: udp.ID, Want: wire.WantSocket}, {Reference: tcp.ID, Want: wire.WantSocket},
	}})
	if len(w.fds) != 2 || w.got.Listeners[0].Sockets != 1 || w.got.Listeners[1].Endpoint != tcp.Endpoints() {
		t.Fatalf("%d sockets, %+v", len(w.fds), w.got.Listeners)
	}
	c, err := net.Dial("udp", addrOf(udp))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, "datagram"); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 100)
	n, _, err := unix.Recvfrom(w.fds[0], buf, 0)
	if err != nil || string(buf[:n]) != "datagram" {
		t.Errorf("%q, %v", buf[:n], err)
	}
	if h.loans(keyOf(udp)) != 1 || h.loans(keyOf(tcp)) != 1 {
		t.Error("they do not count as lent")
	}
	// It has the socket, not the connections: nothing is accepted for it.
	user, err := net.Dial("tcp", addrOf(tcp))
	if err != nil {
		t.Fatal(err)
	}
	defer user.Close()
	fd, _, err := unix.Accept4(w.fds[1], unix.SOCK_CLOEXEC)
	if err != nil {
		t.Error(err)
	}
	unix.Close(fd)
	w.Close()
	until(t, "both are given back", func() bool { return h.loans(keyOf(udp)) == 0 && h.loans(keyOf(tcp)) == 0 })
}

func TestReadyAndDrain(t *testing.T) {
	h := newHost(t)
	one, two := h.listen("127.0.0.1"), h.listen("127.0.0.1")
	w := h.attach(wire.Attach{Room: 2, Wishes: []wire.Wish{{Reference: one.Name, Want: wire.WantConnections}, connections(two.Name)}})
	if len(w.got.Listeners) != 2 || w.got.Room != 2 || len(w.got.Token) < 16 || w.got.Kept {
		t.Fatalf("%+v", w.got)
	}
	first, err := net.Dial("tcp", addrOf(one))
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	second, err := net.Dial("tcp", addrOf(two))
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	sequence, conns, fds := w.take()
	answer{fds: fds}.close()
	if sequence != 1 || len(conns) != 1 || conns[0].Listener != 1 {
		t.Fatalf("message %d: %+v; only the second listener was ready", sequence, conns)
	}
	if _, err := w.Write(wire.AppendReady(nil, 0)); err != nil {
		t.Fatal(err)
	}
	until(t, "the first one's is in the queue", func() bool { return h.Totals(keyOf(one)).HandedOver == 1 })
	// It is not drained before it has taken what lies there.
	if _, err := w.Write(wire.AppendDrain(nil, 0)); err != nil {
		t.Fatal(err)
	}
	until(t, "it drains", func() bool { return h.Workers()[0].Listeners[0].State == handoff.Draining })
	_ = w.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
	if m, err := receive(w.UnixConn); !timedOut(err) {
		t.Errorf("%v, %v", m.Type, err)
	}
	_ = w.SetReadDeadline(time.Now().Add(20 * time.Second))
	sequence, conns, fds = w.take()
	answer{fds: fds}.close()
	if sequence != 2 || conns[0].Listener != 0 || conns[0].Peer.AddrPort().String() != first.LocalAddr().String() {
		t.Errorf("message %d: %+v", sequence, conns)
	}
	m, err := receive(w.UnixConn)
	if err != nil {
		t.Fatal(err)
	}
	if d, err := wire.DecodeDrained(m.Message); err != nil || d.Listener != 0 || d.Sent != 1 {
		t.Errorf("%v: %+v %v", m.Type, d, err)
	}
	if sent, messages := w.page.LoadSent(); sent != 2 || messages != 2 {
		t.Errorf("the page says %d in %d messages", sent, messages)
	}
	h.release(two, "released")
	m, err = receive(w.UnixConn)
	if err != nil {
		t.Fatal(err)
	}
	if g, err := wire.DecodeListenerGone(m.Message); err != nil || g.Listener != 1 || g.Reason != "released" {
		t.Errorf("%v: %+v %v", m.Type, g, err)
	}
	h.release(one, "released")
	if m, err = receive(w.UnixConn); err != nil || m.Type != wire.TypeListenerGone {
		t.Errorf("%v, %v", m.Type, err)
	}
	if _, err = receive(w.UnixConn); err != io.EOF {
		t.Errorf("with nothing left: %v", err)
	}
}

// With room for more, as many messages wait as were granted.
func TestRoom(t *testing.T) {
	for _, room := range []int{1, 2, 7} {
		h := newHost(t)
		res := h.listen("127.0.0.1")
		w := h.attach(wire.Attach{Room: uint16(room), Wishes: []wire.Wish{connections(res.ID)}})
		messages := func() uint64 { _, n := w.page.LoadSent(); return n }
		for i := range room + 2 {
			c, err := net.Dial("tcp", addrOf(res))
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if i < room {
				until(t, "it is sent", func() bool { return messages() == uint64(i+1) })
			}
		}
		until(t, "the rest waits", func() bool { return backlog(t, h.fds[keyOf(res)]) == 2 })
		if n := messages(); n != uint64(room) {
			t.Errorf("room %d: %d messages wait", room, n)
		}
		_, _, fds := w.take()
		answer{fds: fds}.close()
		until(t, "the next message follows", func() bool { return messages() == uint64(room+1) })
	}
}

// Out of descriptors portd pauses, does not spin, and goes on when there are some again.
func TestOutOfDescriptors(t *testing.T) {
	h := newHost(t)
	res := h.listen("127.0.0.1")
	h.worker("serve", res.ID)
	addr := addrOf(res)
	users := make([]net.Conn, 10)
	for i := range users {
		var err error
		if users[i], err = net.Dial("tcp", addr); err != nil {
			t.Fatal(err)
		}
		defer users[i].Close()
	}
	until(t, "all are handed over", func() bool { return h.Totals(keyOf(res)).HandedOver == 10 })

	var was unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
		t.Fatal(err)
	}
	late, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(late)
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 3, Max: was.Max}); err != nil {
		t.Fatal(err)
	}
	restore := func() {
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
			t.Error(err)
		}
	}
	defer restore()
	e := res.Assigned[0].Endpoint
	if err := unix.Connect(late, &unix.SockaddrInet4{Addr: e.Addr.As4(), Port: int(e.First)}); err != nil {
		t.Fatal(err)
	}
	var start, end unix.Rusage
	_ = unix.Getrusage(unix.RUSAGE_SELF, &start)
	<-time.After(300 * time.Millisecond) // the time over which it must not spin
	_ = unix.Getrusage(unix.RUSAGE_SELF, &end)
	if used := time.Duration(end.Utime.Nano() + end.Stime.Nano() - start.Utime.Nano() - start.Stime.Nano()); used > 200*time.Millisecond {
		t.Errorf("used %v of processor time in 300ms of nothing to do", used)
	}
	if n := h.Totals(keyOf(res)).HandedOver; n != 10 {
		t.Fatalf("%d were handed over without a descriptor to accept them with", n)
	}
	restore()
	until(t, "the late one is handed over", func() bool { return h.Totals(keyOf(res)).HandedOver == 11 })
}
