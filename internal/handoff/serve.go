package handoff

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
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
	ctx, cancel := context.WithCancel(ctx)
	var sessions sync.WaitGroup
	defer sessions.Wait()
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = ln.SetDeadline(time.Unix(1, 0)) })
	defer stop()

	var pause rest
	for {
		conn, err := ln.AcceptUnix()
		switch {
		case err == nil:
			pause.end()
			sessions.Go(func() { p.session(ctx, conn) })
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, net.ErrClosed):
			return err
		default:
			if pause.begin() {
				p.log.Warn("cannot accept workers; they wait", "err", err)
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
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()

	cred, err := peercred.Of(conn)
	if err != nil {
		return
	}
	if !p.knock(cred.UID) {
		p.refuse(conn, wire.CodeExhausted, "too many workers of this user are attaching at this moment; try again")
		return
	}
	w, lent := p.handshake(ctx, conn, cred)
	p.knocked(cred.UID)
	defer func() {
		if ctx.Err() == nil { // a portd that stops leaves the sockets as they are to who has them
			p.giveBack(lent)
		}
	}()
	if w == nil {
		return
	}
	defer func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		// A portd that stops leaves the queues to the workers, who are all still there.
		p.detach(w, ctx.Err() == nil, "its connection ended")
		p.tally(cred.UID, func(t *tally) { t.attached-- })
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
				_ = conn.Close()
			}
		}()
	case errors.Is(err, unix.ESRCH):
		return
	}
	p.listen(conn, w)
}

// listen follows what an attached worker says, until it has nothing more to say.
func (p *Pool) listen(conn *net.UnixConn, w *worker) {
	buf := make([]byte, maxLater)
	window, count := time.Now(), 0
	for {
		n, err := conn.Read(buf)
		if err != nil {
			return
		}
		if count++; count > maxPerSecond {
			if time.Since(window) < time.Second {
				p.log.Warn("worker floods portd with messages; it is let go", "worker", w.id, "pid", w.caller.PID)
				return
			}
			window, count = time.Now(), 0
		}
		if err := p.said(w, buf[:n]); err != nil {
			p.log.Warn("worker breaks the protocol; it is let go", "worker", w.id, "pid", w.caller.PID, "err", err)
			return
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
