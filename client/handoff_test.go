package client_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/portd/portd/client"
	"github.com/portd/portd/internal/fdpass"
	"github.com/portd/portd/internal/nstest"
	"github.com/portd/portd/internal/wire"
	pb "github.com/portd/portd/proto/portd/v1"
	"golang.org/x/sys/unix"
)

// A script is a hand-off socket at which the test itself answers, with what the protocol allows and this portd has no occasion to say.
type script struct {
	t    *testing.T
	path string
	ln   *net.UnixListener

	queues []int // portd's ends of them
}

func newScript(t *testing.T) *script {
	t.Helper()
	dir, err := os.MkdirTemp("", "portd") // t.TempDir's names may not fit into a socket address
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	s := &script{t: t, path: filepath.Join(dir, "handoff.sock")}
	if s.ln, err = net.ListenUnix("unixpacket", &net.UnixAddr{Net: "unixpacket", Name: s.path}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.end)
	return s
}

func (s *script) end() {
	s.ln.Close()
	s.hangUp()
}

// knock waits for a worker's ATTACH.
func (s *script) knock() *net.UnixConn {
	s.t.Helper()
	_ = s.ln.SetDeadline(time.Now().Add(20 * time.Second))
	conn, err := s.ln.AcceptUnix()
	if err != nil {
		s.t.Fatalf("no worker comes: %v", err)
	}
	s.t.Cleanup(func() { conn.Close() })
	buf := make([]byte, wire.MaxMessage)
	n, err := conn.Read(buf)
	if err != nil {
		s.t.Fatal(err)
	}
	if m, err := wire.Parse(buf[:n]); err != nil || m.Type != wire.TypeAttach {
		s.t.Fatalf("a worker begins with %v, %v", m.Type, err)
	}
	return conn
}

// grant answers with one listener, a queue and a page, and returns portd's end of the queue.
func (s *script) grant(conn *net.UnixConn, more bool) (ours int) {
	s.t.Helper()
	queue, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		s.t.Fatal(err)
	}
	s.queues = append(s.queues, queue[0])
	defer unix.Close(queue[1])
	fd, mem, err := fdpass.SealedPage(wire.PageSize)
	if err != nil {
		s.t.Fatal(err)
	}
	defer unix.Close(fd)
	page, err := wire.NewPage(mem)
	if err != nil {
		s.t.Fatal(err)
	}
	page.Init()
	_ = unix.Munmap(mem)
	s.say(conn, wire.AppendAttached(nil, wire.Attached{
		Version: wire.Version, Room: 1, ID: "wrk_test", Token: make([]byte, 16), More: more,
		Listeners: []wire.Listener{{Reservation: "rsv_test", Endpoint: "tcp/8080"}},
	}), queue[1], fd)
	return queue[0]
}

// leave ends a worker's attachment as a portd that stops does.
func (s *script) leave(conn *net.UnixConn) {
	conn.Close()
	s.hangUp()
}

func (s *script) hangUp() {
	for _, queue := range s.queues {
		_ = unix.Close(queue)
	}
	s.queues = nil
}

func (s *script) say(conn *net.UnixConn, message []byte, fds ...int) {
	s.t.Helper()
	if err := fdpass.SendConn(conn, message, fds); err != nil {
		s.t.Fatal(err)
	}
}

// extended is a message with an extension of so many bytes, which no worker knows.
func extended(message []byte, size int) []byte {
	message = wire.AppendTLV(message, 0x7777, make([]byte, size))
	binary.LittleEndian.PutUint32(message[4:], uint32(len(message)))
	return message
}

// join lets a worker come, who accepts until there is an error.
func (s *script) join() <-chan error {
	ended := make(chan error, 1)
	go func() {
		l, err := client.Join(s.t.Context(), client.AttachConfig{Socket: s.path, Wishes: []client.Wish{{Reference: "web"}}}, nil)
		if err == nil {
			defer l.Close()
			defer context.AfterFunc(s.t.Context(), func() { l.Close() })()
		}
		for err == nil {
			var c net.Conn
			if c, err = l.Accept(); err == nil {
				c.Close()
			}
		}
		ended <- err
	}()
	return ended
}

func wait(t *testing.T, ended <-chan error) error {
	t.Helper()
	select {
	case err := <-ended:
		return err
	case <-time.After(10 * time.Second):
		t.Fatal("the worker says nothing")
		return nil
	}
}

// Any message may carry extensions, and be as long as the protocol lets it.
func TestExtensionsOfPortd(t *testing.T) {
	for _, size := range []int{0, 1, 5000, wire.MaxMessage - 64} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			s := newScript(t)
			ended := s.join()
			conn := s.knock()
			s.grant(conn, true)
			s.say(conn, extended(wire.AppendSockets(nil, true), size))
			s.say(conn, extended(wire.AppendSockets(nil, false), size))
			s.say(conn, extended(wire.AppendDrained(nil, wire.Drained{}), size))
			s.say(conn, extended(wire.AppendListenerGone(nil, wire.ListenerGone{Reason: "expired"}), size))
			s.leave(conn)
			if err := wait(t, ended); !strings.Contains(err.Error(), "the listener is gone: expired") {
				t.Errorf("it ends with %v", err)
			}
		})
	}
}

// What a later portd says besides, before its answer or after it, is skipped, and what comes with that is closed.
func TestMessagesOfLaterPortds(t *testing.T) {
	s := newScript(t)
	sink, ours, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer sink.Close()
	unknown := wire.AppendGiveBack(nil)
	binary.LittleEndian.PutUint16(unknown, 99)
	say := func(conn *net.UnixConn) {
		s.say(conn, extended(bytes.Clone(unknown), 5), int(ours.Fd()), int(ours.Fd()))
	}

	ended := s.join()
	conn := s.knock()
	say(conn)
	s.grant(conn, true)
	say(conn)
	s.say(conn, wire.AppendSockets(nil, false))
	say(conn)
	s.say(conn, wire.AppendListenerGone(nil, wire.ListenerGone{Reason: "expired"}))
	s.leave(conn)
	if err := wait(t, ended); !strings.Contains(err.Error(), "the listener is gone: expired") {
		t.Errorf("it ends with %v", err)
	}
	ours.Close()
	_ = sink.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := sink.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the worker keeps a descriptor that it has no use for: %v", err)
	}
}

// After portd has gone away, a worker takes no for an answer where the protocol says that there is no use in trying again.
func TestAttachAgain(t *testing.T) {
	for _, tt := range []struct {
		code wire.Code
		last error // nil where it tries again
	}{
		{wire.CodeInvalid, client.ErrInvalid},
		{wire.CodeNotFound, client.ErrNotFound},
		{wire.CodeDenied, client.ErrDenied},
		{wire.CodeExhausted, nil},
		{wire.CodeFailedPrecondition, nil},
		{wire.CodeVersion, client.ErrUnsupported},
		{wire.CodeInternal, nil},
		{wire.CodeUnavailable, nil},
	} {
		t.Run(tt.code.String(), func(t *testing.T) {
			s := newScript(t)
			ended := s.join()
			conn := s.knock()
			s.grant(conn, false)
			s.leave(conn)
			conn = s.knock()
			s.say(conn, wire.AppendRefused(nil, wire.Refused{Code: tt.code, Text: "no, for a reason"}))
			s.leave(conn)
			if tt.last != nil {
				if err := wait(t, ended); !errors.Is(err, tt.last) || !strings.Contains(err.Error(), "no, for a reason") {
					t.Errorf("it ends with %v, want %v", err, tt.last)
				}
				return
			}
			conn = s.knock()
			s.grant(conn, false)
			s.say(conn, wire.AppendListenerGone(nil, wire.ListenerGone{Reason: "released"}))
			s.leave(conn)
			if err := wait(t, ended); !strings.Contains(err.Error(), "the listener is gone: released") {
				t.Errorf("it ends with %v", err)
			}
		})
	}
}

// handOver sends connections in one message, as portd does.
func handOver(t *testing.T, queue int, sequence uint64, conns ...*net.TCPConn) {
	t.Helper()
	frame := wire.BeginFrame(nil, sequence)
	var fds []int
	for _, c := range conns {
		raw, err := c.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		if err := raw.Control(func(fd uintptr) { fds = append(fds, int(fd)) }); err != nil {
			t.Fatal(err)
		}
		frame = wire.AppendConnection(frame, &wire.Connection{})
	}
	var out fdpass.Sender
	if err := out.Send(queue, wire.EndFrame(frame), fds); err != nil {
		t.Fatal(err)
	}
	runtime.KeepAlive(conns)
}

// limits sets how many descriptors this process may have, until the test ends.
func limits(t *testing.T) (set func(n uint64)) {
	t.Helper()
	var was unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
		t.Fatal(err)
	}
	set = func(n uint64) {
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: n, Max: was.Max}); err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(func() { set(was.Cur) })
	return set
}

// listener joins, and returns what it has and portd's ends of it.
func (s *script) listener() (l *client.Listener, conn *net.UnixConn, queue int) {
	s.t.Helper()
	joined := make(chan error)
	go func() {
		var err error
		l, err = client.Join(s.t.Context(), client.AttachConfig{Socket: s.path, Wishes: []client.Wish{{Reference: "web"}}}, nil)
		joined <- err
	}()
	conn = s.knock()
	queue = s.grant(conn, false)
	if err := wait(s.t, joined); err != nil {
		s.t.Fatal(err)
	}
	return l, conn, queue
}

// A message for which this process has no descriptors is left where it is, and portd is told. Accept says what net's listener says then:
// a server waits a moment, and goes on. When there are descriptors again it takes what comes, and leaves nothing open.
func TestAcceptOutOfDescriptors(t *testing.T) {
	nstest.Descriptors(t)
	s := newScript(t)
	defer s.end()
	limit := limits(t)
	limit(60) // near from the start
	l, conn, queue := s.listener()
	defer l.Close()
	var mine, theirs [2]*net.TCPConn
	for i := range mine {
		var err error
		if mine[i], theirs[i], err = tcpPair(); err != nil {
			t.Fatal(err)
		}
		defer mine[i].Close()
		defer theirs[i].Close()
	}
	accepted := func() (net.Conn, error) {
		got := make(chan error, 1)
		var c net.Conn
		go func() {
			var err error
			c, err = l.Accept()
			got <- err
		}()
		return c, wait(t, got)
	}
	handOver(t, queue, 1, theirs[0], theirs[1])
	lowest, err := unix.FcntlInt(os.Stdout.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	unix.Close(lowest)
	// One of the two would fit; and once more, when none does, it does not even look.
	for _, n := range []int{lowest + 1, 3} {
		limit(uint64(n))
		_, err := accepted()
		var passing interface{ Temporary() bool } // what net/http asks
		if !errors.Is(err, unix.EMFILE) || !errors.As(err, &passing) || !passing.Temporary() {
			t.Errorf("Accept: %v", err)
		}
	}
	buf := make([]byte, wire.MaxMessage)
	_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	if n, err := conn.Read(buf); err != nil || !bytes.Equal(buf[:n], wire.AppendGiveBack(nil)) {
		t.Errorf("portd hears %x, %v", buf[:n], err)
	}
	limit(60)
	for i := range mine {
		c, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(mine[i], "hello"); err != nil {
			t.Fatal(err)
		}
		if n, err := io.ReadFull(c, buf[:5]); err != nil || string(buf[:n]) != "hello" {
			t.Errorf("%q, %v", buf[:n], err)
		}
		c.Close()
	}
	_ = conn.SetReadDeadline(time.Now())
	if n, err := conn.Read(buf); err == nil {
		t.Errorf("portd hears %x too", buf[:n])
	}
}

// Messages that a worker does not know, and those without connections, are skipped.
func TestProbesAreSkipped(t *testing.T) {
	s := newScript(t)
	l, _, queue := s.listener()
	defer l.Close()
	mine, theirs, err := tcpPair()
	if err != nil {
		t.Fatal(err)
	}
	defer mine.Close()
	defer theirs.Close()
	var out fdpass.Sender
	if err := out.Send(queue, append(wire.AppendProbe(nil), make([]byte, 1192)...), nil); err != nil {
		t.Fatal(err)
	}
	handOver(t, queue, 7, theirs)
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
}

func tcpPair() (user, server *net.TCPConn, err error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, nil, err
	}
	defer ln.Close()
	c, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		return nil, nil, err
	}
	s, err := ln.Accept()
	if err != nil {
		c.Close()
		return nil, nil, err
	}
	return c.(*net.TCPConn), s.(*net.TCPConn), nil
}

// A program that has a UDP socket itself goes on receiving while portd stops, and after that: a stop takes nothing from anybody.
func TestLentDatagramsOutlivePortd(t *testing.T) {
	p := newPortd(t)
	res, err := p.dial().Reservations.Reserve(t.Context(), &pb.ReserveRequest{
		Spec: &pb.ReservationSpec{Endpoints: []*pb.EndpointSpec{{
			Protocols: []pb.Protocol{pb.Protocol_PROTOCOL_UDP}, Addresses: []string{"127.0.0.1"},
			Choice: &pb.EndpointSpec_Any{Any: &pb.AnyPorts{}},
		}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	a, err := client.Attach(t.Context(), client.AttachConfig{
		Socket: filepath.Join(filepath.Dir(p.cfg.Socket), "handoff.sock"),
		Wishes: []client.Wish{{Reference: res.GetReservation().GetId(), Socket: true}},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	if len(a.Listeners) != 1 || len(a.Listeners[0].Sockets) != 1 {
		t.Fatalf("attached to %+v", a.Listeners)
	}
	file := a.Listeners[0].Sockets[0]
	defer file.Close()
	socket, err := net.FilePacketConn(file)
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	user, err := net.Dial("udp", socket.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer user.Close()
	exchange := func(text string) {
		t.Helper()
		if _, err := io.WriteString(user, text); err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		_ = socket.SetReadDeadline(time.Now().Add(5 * time.Second))
		buf := make([]byte, 100)
		n, _, err := socket.ReadFrom(buf)
		if err != nil || string(buf[:n]) != text {
			t.Fatalf("%s: received %q, %v", text, buf[:n], err)
		}
	}
	exchange("while portd runs")
	// What came last before the stop is still there after it.
	if _, err := io.WriteString(user, "waits"); err != nil {
		t.Fatal(err)
	}
	p.stop()
	if err := a.Wait(); err != nil {
		t.Errorf("the attachment ends with %v", err)
	}
	buf := make([]byte, 100)
	_ = socket.SetReadDeadline(time.Now().Add(5 * time.Second))
	if n, _, err := socket.ReadFrom(buf); err != nil || string(buf[:n]) != "waits" {
		t.Errorf("what waited is %q, %v", buf[:n], err)
	}
	exchange("after portd has stopped")
}
