package handoff

import (
	"context"
	"net"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/shortage"
	"github.com/portd/portd/internal/wire"
)

// mostSpares is how many descriptors are held for a time when there are no others: with them workers that want to attach are told so, when
// accept(2) fails for want of one.
const mostSpares = 4

// hearing is for how long somebody is listened to who is refused whatever he says.
const hearing = 50 * time.Millisecond

// spares are those descriptors.
type spares struct {
	mu   sync.Mutex
	held []int
	used int
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

// use gives one up, until back is called.
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
	closeEach(s.held)
	s.held, s.used = nil, mostSpares // refill takes none
}

// sendAway tells those who wait at ln that portd is out of what err says, as far as there are spares, after accept has failed for a while.
func (p *Pool) sendAway(ctx context.Context, ln *net.UnixListener, s *spares, err error, sessions *sync.WaitGroup) {
	why := shortage.Of(err)
	for why != nil && knocks(ln) {
		back, ok := s.use()
		if !ok {
			return
		}
		conn, err := ln.AcceptUnix() // who is there already, so that it does not wait
		if err != nil {
			back()
			return
		}
		sessions.Go(func() {
			defer back()
			defer p.hangUp(conn)
			stop := context.AfterFunc(ctx, func() { p.hangUp(conn) })
			defer stop()
			p.turnDown(conn, "portd cannot let workers attach: "+why.Error())
		})
	}
}

// turnDown refuses one that has not been heard. What it says is read first: where something is unread when a connection is closed, its peer is told
// of a reset in place of the answer.
func (p *Pool) turnDown(conn *net.UnixConn, text string) {
	_ = conn.SetReadDeadline(time.Now().Add(hearing))
	_, _ = conn.Read(make([]byte, 1))
	p.refuse(conn, wire.CodeExhausted, text)
}

// knocks says whether somebody waits to be accepted. accept(2) does not: without a descriptor it fails either way.
func knocks(ln *net.UnixListener) (yes bool) {
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

// limit is err with the name of the limit that it is about, if it is about one.
func limit(err error) error {
	if why := shortage.Of(err); why != nil {
		return why
	}
	return err
}
