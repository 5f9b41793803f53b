package client

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/portd/portd/internal/paths"
	"github.com/portd/portd/internal/peercred"
)

// find connects to the first portd that answers.
func find(ctx context.Context, socket string) (*net.UnixConn, string, error) {
	if socket == "" {
		socket = os.Getenv(paths.SocketEnv)
	}
	tried := []string{socket}
	if socket == "" {
		tried = paths.Controls(os.Geteuid(), os.Getenv)
	}
	for _, path := range tried {
		c, err := connect(ctx, path)
		if err == nil {
			return c, path, nil
		}
		if errors.Is(err, syscall.EAGAIN) { // as many wait already as the socket takes (unix(7))
			return nil, "", silence(path, 0)
		}
		if !nobody(err) {
			return nil, "", err
		}
	}
	return nil, "", fmt.Errorf("%w at %s", ErrNoDaemon, strings.Join(tried, " or "))
}

// nobody says that no socket is there, or one that a dead daemon has left behind.
func nobody(err error) bool {
	return errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.ECONNREFUSED)
}

// connect opens a connection to what is at path, if it is one's own or root's: anybody else could play portd there.
func connect(ctx context.Context, path string) (*net.UnixConn, error) {
	var dir syscall.Stat_t
	if err := syscall.Stat(filepath.Dir(path), &dir); err != nil {
		return nil, &os.PathError{Op: "stat", Path: filepath.Dir(path), Err: err}
	}
	if !trusted(dir.Uid) {
		return nil, untrusted(dir.Uid, "%s belongs to uid %d, neither to root nor to you", filepath.Dir(path), dir.Uid)
	}
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	conn := c.(*net.UnixConn)
	server, err := peercred.Of(conn)
	if err == nil && !trusted(server.UID) {
		err = untrusted(server.UID, "%s is served by uid %d, neither root nor you", path, server.UID)
	}
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	return conn, nil
}

// untrusted is the refusal of what somebody else could have put there.
func untrusted(uid uint32, format string, args ...any) error {
	e := &Error{text: ErrUntrusted.Error() + ": " + fmt.Sprintf(format, args...), is: []error{ErrUntrusted}, Metadata: map[string]string{"uid": fmt.Sprint(uid)}}
	e.status = status.New(codes.PermissionDenied, e.text)
	return e
}

func trusted(uid uint32) bool { return uid == 0 || int(uid) == os.Geteuid() }

// A line is the way to one portd, for gRPC to connect by again and again.
type line struct {
	path string

	mu    sync.Mutex
	first *net.UnixConn // made by Dial, for the first time; nil after it
	last  error         // of the last attempt to connect
	conn  *hearing      // of the last one that succeeded
}

func (l *line) dial(ctx context.Context, _ string) (net.Conn, error) {
	l.mu.Lock()
	c := l.first
	l.first = nil
	l.mu.Unlock()
	var err error
	if c == nil {
		c, err = connect(ctx, l.path)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.last = err; err != nil {
		return nil, err
	}
	l.conn = listenTo(c)
	return l.conn, nil
}

// gone says of an answer that is not portd's that nobody answers, and why where it is not just that nobody is there.
func (l *line) gone(e *Error) *Error {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.last == nil && l.conn != nil && !l.conn.heard.Load():
		return silence(l.path, l.conn.by)
	case errors.Is(l.last, syscall.EAGAIN):
		return silence(l.path, 0)
	}
	e.is = append(e.is, ErrNoDaemon)
	e.text = "no portd answers at " + l.path
	if l.last != nil && !nobody(l.last) {
		e.text += ": " + l.last.Error()
	}
	return e
}

func (l *line) unary(ctx context.Context, method string, req, reply any, conn *grpc.ClientConn, call grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	req = identified(req)
	for wait := firstRetry; ; wait *= 2 {
		err := l.explain(call(ctx, method, req, reply, conn, opts...))
		if !handedOver(err) || wait > lastRetry {
			return err
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return err
		}
	}
}

// What came to a portd that was giving way to another one has not begun, so that every call may be repeated.
const (
	firstRetry = 10 * time.Millisecond
	lastRetry  = time.Second // 1.3 s in all, for one that gives way where the machine is busy
)

func handedOver(err error) bool {
	var e *Error
	return errors.As(err, &e) && e.Reason == "HANDED_OVER"
}

func (l *line) stream(ctx context.Context, desc *grpc.StreamDesc, conn *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	s, err := open(ctx, desc, conn, method, opts...)
	if err != nil {
		return nil, l.explain(err)
	}
	return explained{s, l}, nil
}

type explained struct {
	grpc.ClientStream
	line *line
}

func (s explained) RecvMsg(m any) error { return s.line.explain(s.ClientStream.RecvMsg(m)) }

// SendMsg fails with more than io.EOF where portd goes away while gRPC tries the call again.
func (s explained) SendMsg(m any) error { return s.line.explain(s.ClientStream.SendMsg(m)) }

// identified is the request with a request id where it has room for one and none yet. The caller's own stays as it is, to be
// used again.
func identified(req any) any {
	m, ok := req.(proto.Message)
	if !ok {
		return req
	}
	id := m.ProtoReflect().Descriptor().Fields().ByName("request_id")
	if id == nil || m.ProtoReflect().Has(id) {
		return req
	}
	m = proto.Clone(m)
	m.ProtoReflect().Set(id, protoreflect.ValueOfString(rand.Text()))
	return m
}
