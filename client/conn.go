package client

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/portd/portd/internal/wire"
	"golang.org/x/sys/unix"
)

// A conn is a connection that came through portd. It begins as a bare descriptor: what is there already is read and what finds room
// is written without the netpoller, which most short connections then never need. The first call that has to wait, and whoever wants
// more than that, makes an os.File of it. (A net.FileConn would duplicate the descriptor and ask the kernel a dozen things
// that are known.)
type conn struct {
	file atomic.Pointer[os.File] // once there is one, it has the descriptor
	page *page

	// writing is held by one Write from its beginning to its end, so that two do not mix.
	writing sync.Mutex

	// mu guards what follows, and the calls on fd while there is no file. It is held for calls that do not wait.
	mu            sync.Mutex
	fd            int
	closed        bool
	readBy, until time.Time // deadlines for the file to come; zero where there is none
	forgotten     runtime.Cleanup

	local  atomic.Pointer[net.TCPAddr]
	remote net.TCPAddr
	ip     [16]byte  // what remote points to
	unix   *unixEnds // of a unix socket, whose addresses are these instead
}

// unixEnds are the ends of a connection over a unix socket: the client's mostly has no name.
type unixEnds struct{ local, remote net.UnixAddr }

var _ interface {
	net.Conn
	io.ReaderFrom
	io.WriterTo
	syscall.Conn
	CloseRead() error
	CloseWrite() error
} = (*conn)(nil)

// newConn takes ownership of fd, which portd made nonblocking.
func newConn(fd int, c *wire.Connection, p *page) *conn {
	t := &conn{page: p, fd: fd}
	runtime.SetFinalizer(t, (*conn).abandoned) // as net's connections have it
	if c.Peer.Family == wire.FamilyUnix {
		t.unix = &unixEnds{local: net.UnixAddr{Net: "unix", Name: string(c.Local.Path)}, remote: net.UnixAddr{Net: "unix", Name: string(c.Peer.Path)}}
		return t
	}
	setAddr(&t.remote, &t.ip, &c.Peer)
	if c.Local.Family == wire.FamilyIPv4 || c.Local.Family == wire.FamilyIPv6 {
		t.local.Store(tcpAddr(&c.Local))
	}
	return t
}

// abandoned closes a connection that was forgotten.
func (c *conn) abandoned() { _ = c.Close() }

func tcpAddr(a *wire.Addr) *net.TCPAddr {
	t := &struct {
		net.TCPAddr
		ip [16]byte
	}{}
	setAddr(&t.TCPAddr, &t.ip, a)
	return &t.TCPAddr
}

func setAddr(t *net.TCPAddr, ip *[16]byte, a *wire.Addr) {
	*ip = a.IP
	t.Port = int(a.Port)
	switch a.Family {
	case wire.FamilyIPv4:
		t.IP = ip[:4]
	case wire.FamilyIPv6:
		t.IP = ip[:]
		if a.Scope != 0 {
			t.Zone = zone(a.Scope)
		}
	}
}

// zone is the name of the interface that a scope id is the index of, or the index where it has none, as package net has it.
func zone(scope uint32) string {
	if i, err := net.InterfaceByIndex(int(scope)); err == nil {
		return i.Name
	}
	return strconv.Itoa(int(scope))
}

func (c *conn) Read(b []byte) (int, error) {
	f := c.file.Load()
	if f == nil {
		n, wait, err := c.readNow(b)
		if wait == nil {
			return n, err
		}
		f = wait
	}
	n, err := f.Read(b)
	if err != nil && err != io.EOF {
		err = c.opError("read", err)
	}
	return n, err
}

// readNow reads what is there. Where there is nothing yet it returns the file, to wait with.
func (c *conn) readNow(b []byte) (n int, wait *os.File, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.usable(c.readBy); err != nil || c.file.Load() != nil || len(b) == 0 {
		return 0, c.file.Load(), c.opErrorOrNil("read", err)
	}
	for {
		switch n, err := unix.Read(c.fd, b[:min(len(b), maxChunk)]); {
		case err == unix.EINTR:
		case err == unix.EAGAIN:
			return 0, c.fileLocked(), nil
		case err != nil:
			return 0, nil, c.opError("read", err)
		case n == 0:
			return 0, nil, io.EOF
		default:
			return n, nil, nil
		}
	}
}

func (c *conn) Write(b []byte) (n int, err error) {
	c.writing.Lock()
	defer c.writing.Unlock()
	f := c.file.Load()
	if f == nil {
		if n, f, err = c.writeNow(b); f == nil {
			return n, err
		}
	}
	m, err := f.Write(b[n:])
	if err != nil {
		err = c.opError("write", err)
	}
	return n + m, err
}

// writeNow writes what there is room for. Where something is left it returns the file, to wait with.
func (c *conn) writeNow(b []byte) (n int, wait *os.File, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.usable(c.until); err != nil || c.file.Load() != nil {
		return 0, c.file.Load(), c.opErrorOrNil("write", err)
	}
	for len(b) > 0 {
		switch n, err := unix.Write(c.fd, b[:min(len(b), maxChunk)]); {
		case err == unix.EINTR:
		case err == unix.EAGAIN:
			return 0, c.fileLocked(), nil
		case err != nil:
			return 0, nil, c.opError("write", err)
		case n < len(b): // to go on here would keep readers and Close waiting for the lock
			return n, c.fileLocked(), nil
		default:
			return n, nil, nil
		}
	}
	return 0, nil, nil
}

// usable says what a call with this deadline fails with before it begins. With a file it is for the file to say.
func (c *conn) usable(deadline time.Time) error {
	switch {
	case c.file.Load() != nil:
	case c.closed:
		return net.ErrClosed
	case !deadline.IsZero() && !time.Now().Before(deadline):
		return os.ErrDeadlineExceeded
	}
	return nil
}

// fileLocked is the file, made now if there was none. The connection must not be closed.
func (c *conn) fileLocked() *os.File {
	if f := c.file.Load(); f != nil {
		return f
	}
	f := os.NewFile(uintptr(c.fd), "tcp")
	// The file closes itself where it is forgotten. Who has its RawConn has not forgotten it.
	runtime.SetFinalizer(c, nil)
	c.forgotten = runtime.AddCleanup(f, func(p *page) { p.AddDone(1) }, c.page)
	if !c.readBy.IsZero() {
		_ = f.SetReadDeadline(c.readBy)
	}
	if !c.until.IsZero() {
		_ = f.SetWriteDeadline(c.until)
	}
	c.file.Store(f)
	return f
}

func (c *conn) asFile() (*os.File, error) {
	if f := c.file.Load(); f != nil {
		return f, nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, net.ErrClosed
	}
	return c.fileLocked(), nil
}

// Close closes the connection and tells portd that this worker has one less.
func (c *conn) Close() error {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return c.opError("close", net.ErrClosed)
	}
	c.closed = true
	f := c.file.Load()
	var err error
	if f == nil {
		runtime.SetFinalizer(c, nil)
		err = unix.Close(c.fd)
	}
	c.mu.Unlock()
	if f != nil {
		c.forgotten.Stop()
		err = f.Close()
	}
	c.page.AddDone(1)
	runtime.KeepAlive(c.page) // its end unmaps it
	return c.opErrorOrNil("close", err)
}

func (c *conn) RemoteAddr() net.Addr {
	if c.unix != nil {
		return &c.unix.remote
	}
	return &c.remote
}

// LocalAddr asks the kernel when it is first called, unless portd knew.
func (c *conn) LocalAddr() net.Addr {
	if c.unix != nil {
		return &c.unix.local
	}
	if a := c.local.Load(); a != nil {
		return a
	}
	var a *net.TCPAddr
	_ = c.control(func(fd int) error {
		sa, err := unix.Getsockname(fd)
		if err != nil {
			return err
		}
		var w wire.Addr
		switch sa := sa.(type) {
		case *unix.SockaddrInet4:
			w = wire.Addr{Family: wire.FamilyIPv4, Port: uint16(sa.Port)}
			copy(w.IP[:4], sa.Addr[:])
		case *unix.SockaddrInet6:
			w = wire.Addr{Family: wire.FamilyIPv6, Port: uint16(sa.Port), Scope: sa.ZoneId, IP: sa.Addr}
			if ip4 := net.IP(sa.Addr[:]).To4(); ip4 != nil {
				w = wire.Addr{Family: wire.FamilyIPv4, Port: uint16(sa.Port)}
				copy(w.IP[:4], ip4)
			}
		}
		a = tcpAddr(&w)
		return nil
	})
	if a == nil {
		return &net.TCPAddr{} // closed before anybody asked
	}
	c.local.Store(a)
	return a
}

func (c *conn) SetDeadline(t time.Time) error {
	return c.deadline(func() { c.readBy, c.until = t, t }, func(f *os.File) error { return f.SetDeadline(t) })
}

func (c *conn) SetReadDeadline(t time.Time) error {
	return c.deadline(func() { c.readBy = t }, func(f *os.File) error { return f.SetReadDeadline(t) })
}

func (c *conn) SetWriteDeadline(t time.Time) error {
	return c.deadline(func() { c.until = t }, func(f *os.File) error { return f.SetWriteDeadline(t) })
}

// deadline sets one now, or notes it for when somebody waits.
func (c *conn) deadline(note func(), set func(*os.File) error) error {
	c.mu.Lock()
	f := c.file.Load()
	switch {
	case c.closed:
		c.mu.Unlock()
		return c.opError("set", net.ErrClosed)
	case f == nil:
		note()
	}
	c.mu.Unlock()
	if f == nil {
		return nil
	}
	return c.opErrorOrNil("set", set(f))
}

// CloseRead shuts down the reading side.
func (c *conn) CloseRead() error {
	return c.opErrorOrNil("close", c.control(func(fd int) error { return shutdown(fd, unix.SHUT_RD) }))
}

// CloseWrite shuts down the writing side: the peer sees the end of the stream.
func (c *conn) CloseWrite() error {
	return c.opErrorOrNil("close", c.control(func(fd int) error { return shutdown(fd, unix.SHUT_WR) }))
}

func shutdown(fd, how int) error { return os.NewSyscallError("shutdown", unix.Shutdown(fd, how)) }

// SyscallConn gives access to the descriptor, which stays the connection's.
func (c *conn) SyscallConn() (syscall.RawConn, error) {
	raw, err := c.rawConn()
	return raw, c.opErrorOrNil("raw-control", err)
}

func (c *conn) rawConn() (syscall.RawConn, error) {
	f, err := c.asFile()
	if err != nil {
		return nil, err
	}
	return f.SyscallConn()
}

// control lets f use the descriptor, for a call that does not wait.
func (c *conn) control(f func(fd int) error) error {
	c.mu.Lock()
	file := c.file.Load()
	if file == nil {
		defer c.mu.Unlock()
		if c.closed {
			return net.ErrClosed
		}
		return f(c.fd)
	}
	c.mu.Unlock()
	raw, err := file.SyscallConn()
	if err != nil {
		return err
	}
	var ferr error
	if err := raw.Control(func(fd uintptr) { ferr = f(int(fd)) }); err != nil {
		return err
	}
	return ferr
}

func (c *conn) opErrorOrNil(op string, err error) error {
	if err == nil {
		return nil
	}
	return c.opError(op, err)
}

// opError makes what package os says look as if package net had said it.
func (c *conn) opError(op string, err error) error {
	var path *os.PathError
	if errors.As(err, &path) {
		err = path.Err
	}
	var errno syscall.Errno
	switch {
	case errors.Is(err, os.ErrClosed), errors.Is(err, net.ErrClosed):
		err = net.ErrClosed
	case errors.Is(err, os.ErrDeadlineExceeded):
		err = os.ErrDeadlineExceeded
	case errors.As(err, &errno):
		err = os.NewSyscallError(op, errno)
	case c.file.Load() != nil && c.isClosed(): // the poller's own error for that cannot be named from here
		err = net.ErrClosed
	}
	if c.unix != nil {
		return &net.OpError{Op: op, Net: "unix", Source: &c.unix.local, Addr: &c.unix.remote, Err: err}
	}
	return &net.OpError{Op: op, Net: "tcp", Source: c.local.Load(), Addr: &c.remote, Err: err}
}

func (c *conn) isClosed() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.closed
}

// TCPConn makes a *net.TCPConn of a connection that a Listener's Accept returned, for programs that insist on the type. It takes c's
// place: c is closed, and portd counts it as done. Any *net.TCPConn is returned as it is.
func TCPConn(c net.Conn) (*net.TCPConn, error) {
	switch c := c.(type) {
	case *net.TCPConn:
		return c, nil
	case *conn:
		if c.unix != nil {
			return nil, fmt.Errorf("the connection to %v is no TCP connection", c.LocalAddr())
		}
		f, err := c.asFile()
		if err != nil {
			return nil, err
		}
		t, err := net.FileConn(f)
		if err != nil {
			return nil, err
		}
		_ = c.Close()
		tcp, ok := t.(*net.TCPConn)
		if !ok {
			_ = t.Close()
			return nil, fmt.Errorf("%v is not a TCP connection", c.RemoteAddr())
		}
		return tcp, nil
	}
	return nil, fmt.Errorf("%T did not come from a portd listener", c)
}
