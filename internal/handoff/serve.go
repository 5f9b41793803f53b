package handoff

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/portd/portd/internal/peercred"
	"github.com/portd/portd/internal/registry"
	"github.com/portd/portd/internal/wire"
	"golang.org/x/sys/unix"
)

const (
	firstMessage = 5 * time.Second // in which a worker says what it wants, unless a test has less time
	maxKnocking  = 64              // handshakes of one user at a time
	// A worker that sends more messages than this within a second is broken, and is let go.
	maxPerSecond = 500
	// What comes after ATTACH is short; 4 KiB leaves room for extensions.
	maxLater = 4096
)

// Serve lets workers attach over ln, a unixpacket socket, until ctx ends or ln is closed; it closes their connections and waits
// for what it started. ln stays the caller's.
func (p *Pool) Serve(ctx context.Context, ln *net.UnixListener) error {
	if p.cfg.Keep != nil { // there may be workers already
		select {
		case <-p.begin:
		case <-ctx.Done():
			return nil
		}
	}
	ctx, cancel := context.WithCancel(ctx)
	var spare spares
	defer spare.close()
	spare.refill()
	var sessions sync.WaitGroup
	defer sessions.Wait()
	defer cancel()

	p.mu.Lock()
	p.attach = ln
	p.acceptWorkers(p.thawed == nil)
	for _, w := range p.returned {
		sessions.Go(func() { p.resumeSession(ctx, w) })
	}
	p.returned = nil
	p.mu.Unlock()
	defer p.halted()
	stop := context.AfterFunc(ctx, func() { _ = ln.SetDeadline(time.Unix(1, 0)) }) // after acceptWorkers, which would undo it
	defer stop()

	var pause rest
	for {
		conn, err := ln.AcceptUnix()
		switch {
		case err == nil:
			if pause.pause > 0 {
				pause.end()
				spare.refill()
			}
			p.beginHandshake()
			sessions.Go(func() { p.session(ctx, conn) })
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, os.ErrDeadlineExceeded): // frozen
			if !p.halt(ctx) {
				return nil
			}
		case errors.Is(err, net.ErrClosed):
			return err
		default:
			if pause.begin() {
				p.log.Warn("cannot accept workers; they wait", "err", limit(err))
			}
			if pause.pause == longestRest {
				p.sendAway(ctx, ln, &spare, err, &sessions)
			}
			select {
			case <-time.After(pause.pause):
			case <-ctx.Done():
			}
		}
	}
}

// session is the life of one connection to the hand-off socket.
func (p *Pool) session(ctx context.Context, conn *net.UnixConn) {
	defer p.hangUp(conn)
	stop := context.AfterFunc(ctx, func() { p.hangUp(conn) })
	defer stop()
	w, lent := p.attachWorker(ctx, conn)
	p.endHandshake()
	p.follow(ctx, conn, w, lent)
}

// resumeSession is the life of one that a portd before this one began.
func (p *Pool) resumeSession(ctx context.Context, w *worker) {
	defer p.hangUp(w.conn)
	stop := context.AfterFunc(ctx, func() { p.hangUp(w.conn) })
	defer stop()
	p.follow(ctx, w.conn, w, w.loans)
}

// attachWorker is the handshake. Without a worker there is none, and what was lent is still to be given back.
func (p *Pool) attachWorker(ctx context.Context, conn *net.UnixConn) (w *worker, lent []loan) {
	cred, err := peercred.Of(conn)
	if err != nil {
		return nil, nil
	}
	if !p.knock(cred.UID) {
		p.turnDown(conn, "too many workers of this user are attaching at this moment; try again")
		return nil, nil
	}
	defer p.knocked(cred.UID)
	return p.handshake(ctx, conn, cred)
}

// follow is the life of a session from when its worker has attached, until that is gone.
func (p *Pool) follow(ctx context.Context, conn *net.UnixConn, w *worker, lent []loan) {
	defer func() {
		if ctx.Err() == nil && !p.abandoned.Load() { // a portd that stops leaves the sockets as they are to who has them
			p.giveBack(lent)
		}
	}()
	if w == nil {
		return
	}
	defer func() {
		p.talk.RLock()
		defer p.talk.RUnlock()
		if p.abandoned.Load() {
			return
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		// A portd that stops leaves the queues to the workers, who are all still there.
		p.detach(w, ctx.Err() == nil, "its connection ended")
		p.tally(w.caller.UID, func(t *tally) { t.attached-- })
	}()

	// The process may be gone while a child of it keeps the connection: its pidfd tells at once.
	proc, err := peercred.Open(conn)
	switch {
	case err == nil:
		left := make(chan struct{})
		defer func() { <-left }()
		defer proc.Close()
		go func() {
			defer close(left)
			if proc.Wait(ctx) == nil {
				p.hangUp(conn)
			}
		}()
	case errors.Is(err, unix.ESRCH):
		return
	}
	p.listen(conn, w)
}

// listen follows what an attached worker says, until it has nothing more to say.
func (p *Pool) listen(conn *net.UnixConn, w *worker) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return
	}
	buf := make([]byte, maxLater)
	window, count := time.Now(), 0
	for p.hearOne(raw, buf, func(packet []byte) bool {
		if count++; count > maxPerSecond {
			if time.Since(window) < time.Second {
				p.log.Warn("worker floods portd with messages; it is let go", "worker", w.id, "pid", w.caller.PID)
				return false
			}
			window, count = time.Now(), 0
		}
		if err := p.said(w, packet); err != nil {
			p.log.Warn("worker breaks the protocol; it is let go", "worker", w.id, "pid", w.caller.PID, "err", err)
			return false
		}
		return true
	}) {
	}
}

// hearOne waits for a message and has do do what it says. It is false where there will be none, or where do is. A message is read only
// when it can be acted upon at once: while the Pool is suspended it stays in the connection, for whoever goes on.
func (p *Pool) hearOne(raw syscall.RawConn, buf []byte, do func(packet []byte) bool) bool {
	for {
		n, suspended := 0, false
		err := raw.Read(func(fd uintptr) bool {
			if suspended = !p.talk.TryRLock(); suspended {
				return true
			}
			if suspended = p.abandoned.Load(); suspended { // it may hear only now what it was woken up for
				p.talk.RUnlock()
				return true
			}
			got, _, err := unix.Recvfrom(int(fd), buf, unix.MSG_DONTWAIT)
			if n = max(0, got); n == 0 {
				p.talk.RUnlock()
			}
			return !errors.Is(err, unix.EAGAIN)
		})
		switch {
		case suspended && err == nil:
			p.talk.RLock()
			p.talk.RUnlock()
			if p.abandoned.Load() {
				return false
			}
		case err != nil || n == 0:
			return false
		default:
			defer p.talk.RUnlock()
			return do(buf[:n])
		}
	}
}

func (p *Pool) said(w *worker, packet []byte) error {
	m, err := wire.Parse(packet)
	if err != nil {
		return err
	}
	if m.Type == wire.TypeGiveBack {
		p.givesBack(w)
		return nil
	}
	if m.Type != wire.TypeReady && m.Type != wire.TypeDrain {
		return nil
	}
	number, err := wire.DecodeNumber(m)
	if err != nil {
		return err
	}
	p.drainSockets(w, number, m.Type == wire.TypeDrain) // before it is told that it is drained
	p.mu.Lock()
	defer p.mu.Unlock()
	if w.gone {
		return nil
	}
	for _, s := range w.serves {
		if !s.gone && (number == wire.AllListeners || number == s.number) {
			p.change(s, m.Type)
		}
	}
	p.checkDrained(w)
	return nil
}

// change makes a worker take connections of a listener, or no more of them: then checkDrained is to follow.
func (p *Pool) change(s *serving, t wire.Type) {
	defer p.changed()
	defer p.attend(s.listener)
	w := s.worker
	if t == wire.TypeReady {
		if s.owes {
			s.owes = false
			w.draining--
		}
		s.state = Ready
		p.offer(s)
		p.wakeUp()
		return
	}
	s.state, s.drainSeq = Draining, w.sequence
	p.unstage(s)
	if !s.owes {
		s.owes = true
		w.draining++
	}
}

// knock counts a handshake that begins, and says whether it may.
func (p *Pool) knock(uid uint32) (ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.tally(uid, func(t *tally) {
		t.knocking++
		ok = t.knocking <= maxKnocking
		if !ok {
			t.knocking--
		}
	})
	return ok
}

func (p *Pool) knocked(uid uint32) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.tally(uid, func(t *tally) { t.knocking-- })
}

func (p *Pool) tally(uid uint32, change func(*tally)) {
	t := p.perUser[uid]
	if t == nil {
		t = &tally{}
		p.perUser[uid] = t
	}
	if change(t); *t == (tally{}) {
		delete(p.perUser, uid)
	}
}

// refuse answers an attach that is not granted. A peer that does not take even that has nothing to complain about.
func (p *Pool) refuse(conn *net.UnixConn, code wire.Code, text string) {
	_ = conn.SetWriteDeadline(time.Now().Add(time.Second))
	_, _ = conn.Write(wire.AppendRefused(nil, wire.Refused{Code: code, Text: text}))
}

// caller is the registry's word for a peer, whose network namespace is kept known until leave is called.
func (p *Pool) caller(conn *net.UnixConn, cred peercred.Cred) (c registry.Caller, leave func(), err error) {
	c = registry.Caller{UID: cred.UID, GID: cred.GID, PID: cred.PID, Netns: registry.HostNetns}
	if p.cfg.Join == nil {
		return c, func() {}, nil
	}
	c.Netns, leave, err = p.cfg.Join(conn)
	return c, leave, err
}

// command is the name of a process as /proc has it now, safe to print: a process may call itself anything.
func command(pid int32) string {
	name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	if err != nil || len(name) == 0 {
		return ""
	}
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) || r == utf8.RuneError {
			return '?'
		}
		return r
	}, string(name[:len(name)-1]))
}
