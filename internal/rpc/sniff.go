package rpc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/registry"
	"github.com/portd/portd/internal/shortage"
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
	spares spares

	sorting   sync.WaitGroup
	mu        sync.Mutex
	open      map[uint32]*account // with connections
	apologies int
	warned    time.Time
}

// mostPerUser leaves descriptors for everybody: a user who floods the socket is refused before others notice. What a busy
// host needs is far below it.
func mostPerUser() int {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return 256
	}
	return int(min(limit.Cur/4, mostConns))
}

// mostConns are those of a user where descriptors are plenty.
const mostConns = 4096

// tooMany is why another connection of a user is not served.
func (s *sorter) tooMany(uid uint32) error {
	const text = "%w: %s has %d connections to portd, and %s: close some"
	if s.most == mostConns {
		return fmt.Errorf(text, registry.ErrExhausted, registry.UserName(uid), s.most, "no user gets more")
	}
	return fmt.Errorf(text+", or give portd more", registry.ErrExhausted, registry.UserName(uid), s.most, "no user gets more than a quarter of "+shortage.Descriptors())
}

// run accepts until ctx ends or ln is closed, and returns after all that it started. It outlives bad luck: where descriptors
// or memory have run out it waits for better times, and where that takes long says so to who comes.
func (s *sorter) run(ctx context.Context, ln *net.UnixListener) error {
	defer s.sorting.Wait()
	defer s.spares.close()
	var pause time.Duration
	for {
		s.spares.refill()
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
			c, ok := s.withoutDescriptors(ln, err, pause)
			if !ok {
				pause = min(max(2*pause, 5*time.Millisecond), longestPause)
				wait(ctx, pause)
			} else if c != nil {
				s.sorting.Go(func() { s.sort(ctx, c) })
			}
			continue
		}
		pause = 0
		if c := s.admit(raw); c != nil {
			s.sorting.Go(func() { s.sort(ctx, c) })
		}
	}
}

// longestPause is between two tries to accept; after the first one as long as that, those who wait are told.
const longestPause = 250 * time.Millisecond

// withoutDescriptors serves one who waits, after an accept that failed, where it has failed for a while. It says whether it has.
func (s *sorter) withoutDescriptors(ln *net.UnixListener, err error, pause time.Duration) (c *conn, ok bool) {
	if pause < longestPause {
		return nil, false
	}
	why := shortage.Of(err)
	if why == nil {
		why = err
	}
	if s.mayWarn() {
		s.log.Warn("cannot accept on the control socket; only who administers portd is answered", "err", why)
	}
	return s.squeeze(ln, fmt.Errorf("%w: %w", registry.ErrExhausted, why))
}

// mayWarn says whether to warn of what strangers can bring about, once a minute.
func (s *sorter) mayWarn() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.warned.IsZero() && time.Since(s.warned) < time.Minute {
		return false
	}
	s.warned = time.Now()
	return true
}

// admit settles who has connected. It closes raw and returns nil where the kernel does not say. Who has too many connections
// already is told so on one more, if not too many are being told.
func (s *sorter) admit(raw *net.UnixConn) *conn {
	who, leave, err := s.join.identify(raw)
	if err != nil {
		if s.mayWarn() {
			s.log.Warn("cannot tell who has connected", "err", err)
		}
		_ = raw.Close()
		return nil
	}
	in, nth := s.enter(who)
	if in == nil {
		if s.mayWarn() {
			s.log.Warn("a user has too many connections; more are refused", "uid", who.UID, "pid", who.PID, "most", s.most)
		}
		return s.apologize(raw, who, leave, s.tooMany(who.UID))
	}
	return &conn{Conn: raw, caller: who, account: in, counted: nth > uncounted, gone: sync.OnceFunc(func() {
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

// enter counts a connection of a user, and says which it is of his; nil where he has too many.
func (s *sorter) enter(who registry.Caller) (in *account, nth int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.open[who.UID]
	if a == nil {
		a = &account{most: int64(onEach * s.most)}
		s.open[who.UID] = a
	}
	if a.conns >= s.most {
		return nil, 0
	}
	a.conns++
	return a, a.conns
}

func (s *sorter) leave(who registry.Caller) {
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.open[who.UID]
	if a.conns--; a.conns == 0 {
		delete(s.open, who.UID)
	}
}

// A conn is a connection whose caller is known, with the bytes that were read to sort it.
type conn struct {
	net.Conn
	caller  registry.Caller
	account *account // of what he has of portd; nil where that is bounded otherwise
	counted bool     // his calls on it are
	refused error    // what every call on it is answered; nil where it is served
	head    []byte
	gone    func()
}

func (c *conn) Read(p []byte) (int, error) {
	if len(c.head) == 0 {
		n, err := c.Conn.Read(p)
		if c.account != nil {
			c.account.received.Add(int64(n))
		}
		return n, err
	}
	n := copy(p, c.head)
	c.head = c.head[n:]
	return n, nil
}

func (c *conn) Close() error {
	err := c.Conn.Close()
	c.gone()
	return err
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
