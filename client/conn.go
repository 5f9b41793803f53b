package client

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/portd/portd/internal/wire"
	"golang.org/x/sys/unix"
)

// A conn is a connection that came through portd. It stands on os.File rather than on net.FileConn, which makes a duplicate of the
// descriptor and asks the kernel a dozen things that are known: a third of the cost of a short connection.
type conn struct {
	file   *os.File
	page   *page
	closed atomic.Bool
	local  atomic.Pointer[net.TCPAddr]
	remote net.TCPAddr
	ip     [16]byte // what remote points to
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
	t := &conn{page: p, file: os.NewFile(uintptr(fd), "tcp")}
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
	n, err := c.file.Read(b)
	if err != nil && err != io.EOF {
		err = c.opError("read", err)
	}
	return n, err
}

func (c *conn) Write(b []byte) (int, error) {
	n, err := c.file.Write(b)
	if err != nil {
		err = c.opError("write", err)
	}
	return n, err
}

// Close closes the connection and tells portd that this worker has one less.
func (c *conn) Close() error {
	if !c.closed.CompareAndSwap(false, true) {
		return c.opError("close", os.ErrClosed)
	}
	err := c.file.Close()
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

func (c *conn) SetDeadline(t time.Time) error { return c.opErrorOrNil("set", c.file.SetDeadline(t)) }

func (c *conn) SetReadDeadline(t time.Time) error {
	return c.opErrorOrNil("set", c.file.SetReadDeadline(t))
}

func (c *conn) SetWriteDeadline(t time.Time) error {
	return c.opErrorOrNil("set", c.file.SetWriteDeadline(t))
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
	raw, err := c.file.SyscallConn()
	return raw, c.opErrorOrNil("raw-control", err)
}

func (c *conn) control(f func(fd int) error) error {
	raw, err := c.file.SyscallConn()
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
	case errors.Is(err, os.ErrClosed):
		err = net.ErrClosed
	case errors.Is(err, os.ErrDeadlineExceeded):
		err = os.ErrDeadlineExceeded
	case errors.As(err, &errno):
		err = os.NewSyscallError(op, errno)
	case c.closed.Load(): // the poller's own error for that cannot be named from here
		err = net.ErrClosed
	}
	if c.unix != nil {
		return &net.OpError{Op: op, Net: "unix", Source: &c.unix.local, Addr: &c.unix.remote, Err: err}
	}
	return &net.OpError{Op: op, Net: "tcp", Source: c.local.Load(), Addr: &c.remote, Err: err}
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
		t, err := net.FileConn(c.file)
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
