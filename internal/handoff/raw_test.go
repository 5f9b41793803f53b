package handoff_test

import (
	"net"
	"testing"
	"time"

	"github.com/portd/portd/internal/fdpass"
	"github.com/portd/portd/internal/wire"
	"golang.org/x/sys/unix"
)

// attachMessage is the ATTACH of a worker that wants a listener's connections at once.
func attachMessage(ref string) []byte {
	return wire.AppendAttach(nil, wire.Attach{
		MinVersion: 1, MaxVersion: 1, Wishes: []wire.Wish{{Reference: ref, Want: wire.WantConnections, Ready: true}},
	})
}

// An answer is one message of portd's and what came with it.
type answer struct {
	wire.Message
	fds []int
}

func (a answer) close() {
	for _, fd := range a.fds {
		unix.Close(fd)
	}
}

// receive reads one message. A peer that is gone gives an error.
func receive(conn *net.UnixConn) (answer, error) {
	buf := make([]byte, wire.MaxMessage)
	n, fds, err := fdpass.RecvConn(conn, buf)
	if err != nil {
		return answer{}, err
	}
	m, err := wire.Parse(buf[:n])
	return answer{m, append([]int(nil), fds...)}, err
}

// A rawWorker speaks the protocol by its bytes.
type rawWorker struct {
	*net.UnixConn
	t     testing.TB
	queue int
	page  wire.Page
	got   wire.Attached
	fds   []int // sockets
}

func (h *host) dial() *net.UnixConn {
	h.t.Helper()
	conn, err := net.Dial("unixpacket", h.socket)
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	return conn.(*net.UnixConn)
}

// say sends bytes of any kind and returns what portd answers.
func (h *host) say(packet []byte) (answer, error) {
	h.t.Helper()
	conn := h.dial()
	if _, err := conn.Write(packet); err != nil {
		h.t.Fatal(err)
	}
	return receive(conn)
}

func (h *host) attach(a wire.Attach) *rawWorker {
	h.t.Helper()
	a.MinVersion, a.MaxVersion = 1, 1
	conn := h.dial()
	if _, err := conn.Write(wire.AppendAttach(nil, a)); err != nil {
		h.t.Fatal(err)
	}
	m, err := receive(conn)
	if err != nil {
		h.t.Fatal(err)
	}
	w := &rawWorker{UnixConn: conn, t: h.t}
	if m.Type != wire.TypeAttached {
		h.t.Fatal(wire.DecodeRefused(m.Message))
	}
	if w.got, err = wire.DecodeAttached(m.Message); err != nil {
		h.t.Fatal(err)
	}
	mem, err := fdpass.MapPage(m.fds[1], wire.PageSize)
	if err != nil {
		h.t.Fatal(err)
	}
	w.page, _ = wire.NewPage(mem)
	w.queue, w.fds = m.fds[0], m.fds[2:]
	unix.Close(m.fds[1])
	h.t.Cleanup(func() {
		unix.Close(w.queue)
		_ = unix.Munmap(mem)
		answer{fds: w.fds}.close()
	})
	return w
}

// take receives one frame from the queue and returns its connections.
func (w *rawWorker) take() (sequence uint64, conns []wire.Connection, fds []int) {
	w.t.Helper()
	var in fdpass.Receiver
	buf := make([]byte, wire.MaxMessage)
	n := 0
	until(w.t, "a message comes", func() (ok bool) {
		var err error
		n, fds, err = in.Recv(w.queue, buf)
		return err == nil
	})
	m, err := wire.Parse(buf[:n])
	if err != nil {
		w.t.Fatal(err)
	}
	f, err := wire.DecodeFrame(m)
	if err != nil {
		w.t.Fatal(err)
	}
	for c := (wire.Connection{}); f.Next(&c); {
		conns = append(conns, c)
	}
	return f.Sequence, conns, fds
}

func connections(ref string) wire.Wish {
	return wire.Wish{Reference: ref, Want: wire.WantConnections, Ready: true}
}
