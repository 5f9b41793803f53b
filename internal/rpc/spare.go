package rpc

import (
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/registry"
)

// mostSpares is how many descriptors are held for a time when there are no others: with them portd answers those who administer it, and
// tells everybody else why he is not answered, when accept(2) fails for want of one.
const mostSpares = 8

// spares are those descriptors. One that is given up may be had by another part of portd before accept(2) has it; then the caller
// waits as before.
type spares struct {
	mu   sync.Mutex
	held []int
	used int // by connections that were accepted with them
}

// refill takes as many as are missing and can be had.
func (s *spares) refill() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.held)+s.used < mostSpares {
		fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
		if err != nil {
			return
		}
		s.held = append(s.held, fd)
	}
}

// use gives one up for a descriptor that is about to be made. back is called when that is closed again.
func (s *spares) use() (back func(), ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	last := len(s.held) - 1
	if last < 0 {
		return nil, false
	}
	_ = unix.Close(s.held[last])
	s.held = s.held[:last]
	s.used++
	return func() {
		s.mu.Lock()
		s.used--
		s.mu.Unlock()
		s.refill()
	}, true
}

func (s *spares) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, fd := range s.held {
		_ = unix.Close(fd)
	}
	s.held, s.used = nil, mostSpares // refill takes none
}

// squeeze accepts with a spare descriptor who waits at ln, after an accept that failed for the reason why. It says whether there was one.
func (s *sorter) squeeze(ln *net.UnixListener, why error) (c *conn, ok bool) {
	if !waits(ln) {
		return nil, false
	}
	back, ok := s.spares.use()
	if !ok {
		return nil, false
	}
	raw, err := ln.AcceptUnix() // who is there already, so that it does not wait
	if err != nil {
		back()
		return nil, false
	}
	who, leave, err := s.join.identify(raw)
	if err != nil {
		_ = raw.Close()
		back()
		return nil, true
	}
	gone := func() {
		leave()
		back() // after the descriptor has been closed: see conn.Close
	}
	if who.UID == 0 || int(who.UID) == os.Geteuid() {
		return &conn{Conn: raw, caller: who, gone: sync.OnceFunc(gone)}, true
	}
	return s.apologize(raw, who, gone, why), true
}

// waits says whether somebody waits to be accepted.
func waits(ln *net.UnixListener) (yes bool) {
	raw, err := ln.SyscallConn()
	if err != nil {
		return false
	}
	_ = raw.Control(func(fd uintptr) {
		poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, _ := unix.Poll(poll, 0)
		yes = n == 1
	})
	return yes
}

// How many are told at a time why they are not served, and for how long such a connection is kept for it. Who comes when so many are being told
// is closed without a word.
const (
	mostApologies = 6
	apology       = 2 * time.Second
)

// apologize makes raw a connection on which every call is answered with why, or closes it and returns nil.
func (s *sorter) apologize(raw *net.UnixConn, who registry.Caller, gone func(), why error) *conn {
	s.mu.Lock()
	told := s.apologies < mostApologies
	if told {
		s.apologies++
	}
	s.mu.Unlock()
	if !told {
		_ = raw.Close()
		gone()
		return nil
	}
	c := &conn{Conn: raw, caller: who, refused: why, gone: sync.OnceFunc(func() {
		gone()
		s.mu.Lock()
		defer s.mu.Unlock()
		s.apologies--
	})}
	time.AfterFunc(apology, func() { _ = c.Close() })
	return c
}
