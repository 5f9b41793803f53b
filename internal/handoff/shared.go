package handoff

import (
	"sync"
	"syscall"
	"time"

	"github.com/portd/portd/internal/wire"
	"golang.org/x/sys/unix"
)

// Sockets that a program has too. O_NONBLOCK belongs to the open file description, which is one for both, and accept(2) knows no
// MSG_DONTWAIT: what the program does between our setting the flag and our accept makes the engine wait, and everybody with it.
// So a guard pulls the engine out, and a socket that costs it too much time is left alone.

const (
	acceptPatience = 20 * time.Millisecond // with an accept that should not wait
	maxDebt        = 200 * time.Millisecond
	forgiveness    = 100 // a hundredth of the time that passes
)

// A guard ends waits in accept.
type guard struct {
	timer *time.Timer

	mu  sync.Mutex
	fd  int // that is being accepted from, or -1
	tid int // of the engine's thread
}

func newGuard() *guard {
	g := &guard{fd: -1}
	g.timer = time.AfterFunc(time.Hour, g.pull)
	g.timer.Stop()
	return g
}

func (g *guard) begin(fd, tid int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.fd, g.tid = fd, tid
	g.timer.Reset(acceptPatience)
}

// end returns when the guard uses the descriptor no more.
func (g *guard) end() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.fd = -1
	g.timer.Stop()
}

// pull interrupts the accept, which the kernel then begins anew (SA_RESTART) and which finds O_NONBLOCK set, unless the program was
// faster once more. SIGURG is what Go's runtime sends to its threads itself: it costs nothing where it is not needed.
func (g *guard) pull() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.fd < 0 {
		return
	}
	_ = unix.SetNonblock(g.fd, true)
	_ = unix.Tgkill(unix.Getpid(), g.tid, unix.SIGURG)
	g.timer.Reset(time.Millisecond)
}

// acceptShared accepts from a socket that a program has too. Where that has cost too much, s is gone when it returns.
func (e *engine) acceptShared(s *socket) (int, syscall.Errno) {
	p := e.pool
	blocks := s.adopted && blocking(s.fd)
	if blocks && p.hasRing() {
		return p.ring.accept(s.fd, &e.out.from)
	}
	var before, after unix.Rusage
	_ = unix.Getrusage(unix.RUSAGE_THREAD, &before)
	start := time.Now()
	p.guard.begin(s.fd, e.tid)
	_ = unix.SetNonblock(s.fd, true)
	fd, errno := accept(s.fd, &e.out.from, true)
	p.guard.end()
	if blocks {
		// If the program calls accept just now it is told EAGAIN; if it waits in accept already it goes on waiting.
		_ = unix.SetNonblock(s.fd, false)
	}
	// A thread that was preempted for long has not waited (getrusage(2), ru_nvcsw).
	took := time.Since(start)
	if took < time.Millisecond {
		return fd, errno
	}
	if _ = unix.Getrusage(unix.RUSAGE_THREAD, &after); after.Nvcsw == before.Nvcsw {
		return fd, errno
	}
	s.debt = max(0, s.debt-start.Sub(s.delayed)/forgiveness) + took
	s.delayed = start
	if s.debt > maxDebt {
		p.log.Error("a program that has this socket keeps making it block; its connections are not handed over until it listens anew",
			"endpoint", s.endpoint)
		p.abandon(s)
	}
	return fd, errno
}

// hasRing says whether there is a ring, and makes it when one is first needed. Programs whose sockets are adopted know nothing of
// portd, and many have no use for an EAGAIN.
func (p *Pool) hasRing() bool {
	if p.ring == nil && !p.ringless {
		var err error
		if p.ring, err = newRing(); err != nil {
			p.ringless = true
			p.log.Warn("programs that wait in accept on an adopted socket may be told EAGAIN while workers serve on it too", "err", err)
		}
	}
	return p.ring != nil
}

// drainSockets passes on what a worker says of sockets that it was lent. It is called by the worker's session, which alone returns them.
func (p *Pool) drainSockets(w *worker, number uint32, on bool) {
	for _, s := range w.serves {
		if s.socket && (number == wire.AllListeners || number == s.number) {
			p.cfg.Lender.Drain(s.listener.key, on, s.lent...)
		}
	}
}

// blocking says whether accept on fd waits. Where that cannot be told it does not.
func blocking(fd int) bool {
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	return err == nil && flags&unix.O_NONBLOCK == 0
}
