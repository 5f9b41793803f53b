package rpc

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/registry"
)

const (
	patience  = 5 * time.Second // for whoever has connected and says nothing
	maxHeader = 16 << 10        // bytes of a request's headers
)

// A sorter accepts connections and gives each to the lane of the protocol that it speaks.
type sorter struct {
	join   join
	h1, h2 *lane
	log    *slog.Logger
	most   int // connections of one user at a time
	hold   *hold

	sorting sync.WaitGroup
	mu      sync.Mutex
	open    map[uint32]int // connections by user
	warned  time.Time
}

// mostPerUser leaves descriptors for everybody: a user who floods the socket is refused before others notice. What a busy
// host needs is far below it.
func mostPerUser() int {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return 256
	}
	return int(min(limit.Cur/4, 4096))
}

// run accepts until ctx ends or ln is closed, and returns after all that it started. It outlives bad luck: where descriptors
// or memory have run out it waits for better times.
func (s *sorter) run(ctx context.Context, ln *net.UnixListener) error {
	defer s.sorting.Wait()
	var pause time.Duration
	for {
		raw, err := ln.AcceptUnix()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				_ = raw.Close()
			}
			return nil
		case errors.Is(err, net.ErrClosed):
			return err
		case errors.Is(err, os.ErrDeadlineExceeded): // they wait in the backlog
			_ = s.hold.pass(ctx, ctx)
			continue
		case err != nil:
			pause = min(max(2*pause, 5*time.Millisecond), time.Second)
			s.log.Warn("cannot accept on the control socket", "err", err, "pause", pause)
			wait(ctx, pause)
			continue
		}
		pause = 0
		if c := s.admit(raw); c != nil {
			s.sorting.Go(func() { s.sort(ctx, c) })
		}
	}
}

// admit settles who has connected. It closes raw and returns nil where the kernel does not say, or the user has too many
// connections already.
func (s *sorter) admit(raw *net.UnixConn) *conn {
	who, leave, err := s.join.identify(raw)
	if err != nil {
		s.log.Warn("cannot tell who has connected", "err", err)
		_ = raw.Close()
		return nil
	}
	if !s.enter(who) {
		leave()
		_ = raw.Close()
		return nil
	}
	return &conn{Conn: raw, caller: who, gone: sync.OnceFunc(func() {
		leave()
		s.leave(who)
	})}
}

// sort hands c to its lane, or closes it: the first three bytes of HTTP/2, which gRPC is, are "PRI" (RFC 9113 section 3.4);
// there is no such HTTP/1 method.
func (s *sorter) sort(ctx context.Context, c *conn) {
	head := make([]byte, 3)
	_ = c.SetReadDeadline(time.Now().Add(patience))
	hurry := context.AfterFunc(ctx, func() { _ = c.SetReadDeadline(time.Unix(1, 0)) })
	_, err := io.ReadFull(c, head)
	if !hurry() || err != nil {
		_ = c.Close()
		return
	}
	_ = c.SetReadDeadline(time.Time{})
	c.head = head
	if string(head) == "PRI" {
		s.h2.give(c)
	} else {
		s.h1.give(c)
	}
}

func (s *sorter) enter(who registry.Caller) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open[who.UID] < s.most {
		s.open[who.UID]++
		return true
	}
	if time.Since(s.warned) > time.Minute {
		s.warned = time.Now()
		s.log.Warn("a user has too many connections; more are refused", "uid", who.UID, "pid", who.PID, "most", s.most)
	}
	return false
}

func (s *sorter) leave(who registry.Caller) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open[who.UID]--; s.open[who.UID] == 0 {
		delete(s.open, who.UID)
	}
}

// A conn is a connection whose caller is known, with the bytes that were read to sort it.
type conn struct {
	net.Conn
	caller registry.Caller
	head   []byte
	gone   func()
}

func (c *conn) Read(p []byte) (int, error) {
	if len(c.head) == 0 {
		return c.Conn.Read(p)
	}
	n := copy(p, c.head)
	c.head = c.head[n:]
	return n, nil
}

func (c *conn) Close() error {
	c.gone()
	return c.Conn.Close()
}

// A lane is a net.Listener of connections that were accepted elsewhere.
type lane struct {
	addr   net.Addr
	conns  chan net.Conn
	closed chan struct{}
	close  func()
}

func newLane(addr net.Addr) *lane {
	l := &lane{addr: addr, conns: make(chan net.Conn), closed: make(chan struct{})}
	l.close = sync.OnceFunc(func() { close(l.closed) })
	return l
}

// give hands c over, or closes it where the lane is closed.
func (l *lane) give(c net.Conn) {
	select {
	case l.conns <- c:
	case <-l.closed:
		_ = c.Close()
	}
}

func (l *lane) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *lane) Addr() net.Addr { return l.addr }

func (l *lane) Close() error {
	l.close()
	return nil
}

// wait returns after d, or when ctx ends.
func wait(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
