package binder

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/registry"
)

// A door is what becomes of clients of a socket that is to listen. The hand-off turns it, where it has no worker for them; Listen and
// Unlisten go on as they are.
type door uint8

const (
	admitting door = iota
	refusing       // it does not listen, so that the kernel refuses
	parked         // a filter drops what clients send: their SYN is sent again until it is off
)

// Admit lets clients connect to the key's sockets again. A key that does not listen is no error for any of the three, nor is a socket
// that a program had first: its clients are the program's.
func (b *Binder) Admit(key registry.SocketKey) error {
	_, err := b.turn(key, admitting)
	return err
}

// Refuse has the kernel refuse clients of the key's sockets, with the ports held. Who was connected and waited to be accepted is reset;
// Refuse says how many these are, 0 where the protocol does not tell.
func (b *Binder) Refuse(key registry.SocketKey) (reset int, err error) { return b.turn(key, refusing) }

// Park leaves clients of the key's sockets without an answer until Admit. Who waits to be accepted goes on waiting. ErrUnsupported where
// the sockets have no filters.
func (b *Binder) Park(key registry.SocketKey) error {
	_, err := b.turn(key, parked)
	return err
}

func (b *Binder) turn(key registry.SocketKey, to door) (reset int, err error) {
	h, socks, err := b.use(key)
	if errors.Is(err, registry.ErrNotFound) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer b.leave(h)
	h.work.Lock()
	defer h.work.Unlock()
	if !b.has(key, h) { // released meanwhile: the descriptors are others' by now
		return 0, nil
	}
	err = b.in(socks[0].ep.Netns, func() error {
		for _, s := range socks {
			b.mu.Lock()
			idle := !s.listening || s.adopted || s.door == to && !s.broken()
			b.mu.Unlock()
			if idle {
				continue
			}
			n, err := s.turn(to)
			if err != nil {
				return fmt.Errorf("%v: %w", s.ep, err)
			}
			reset += n
			b.mu.Lock()
			s.door = to
			b.mu.Unlock()
		}
		return nil
	})
	return reset, err
}

// turn changes what is so to what is to be. No client meets the state between the two, but for one who is refused before he is parked.
func (s *socket) turn(to door) (reset int, err error) {
	if to == parked && s.ep.Proto == registry.Unix {
		return 0, &registry.UnsupportedError{What: "park clients", Why: "a unix socket has no filter that could keep them unanswered", Code: "PARK"}
	}
	if to == parked {
		if err := s.dropAll(); err != nil {
			return 0, fmt.Errorf("park clients: %w", err)
		}
	}
	switch {
	case to == refusing:
		reset = s.backlog()
		if err := s.unlisten(); err != nil {
			return 0, err
		}
	case s.door == refusing, s.broken():
		if s.broken() {
			if err := s.holdPathAgain(); err != nil {
				return 0, err
			}
		}
		if err := s.listenExclusively(context.Background(), s.opt); err != nil {
			return 0, err
		}
		if to == parked { // to listen takes the filter off
			return 0, s.dropAll()
		}
		return 0, nil
	}
	if s.door == parked {
		return reset, s.passAll()
	}
	return reset, nil
}

// listens says whether the socket listens just now.
func (s *socket) listens() bool { return s.listening && s.door != refusing }

// backlog is how many connections wait to be accepted.
func (s *socket) backlog() int {
	if s.ep.Proto != registry.TCP {
		return 0
	}
	info, err := unix.GetsockoptTCPInfo(s.fd, unix.IPPROTO_TCP, unix.TCP_INFO)
	if err != nil {
		return 0
	}
	return int(info.Unacked) // of a listener that is its backlog's length (tcp_get_info in the kernel)
}
