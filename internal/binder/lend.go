package binder

import (
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/registry"
)

// Lend gives out duplicates of the key's sockets, to be passed to a program; they are the caller's to close. Each Lend that
// succeeded is followed by a Return. Of a group it is one socket: one that nobody has, first of all one that somebody left with
// datagrams in it; where all are lent it is shared with whoever shares with the fewest. While a key is lent its datagram sockets queue what
// arrives, and for Config.Grace after it. A program can do anything to a socket that it has, so lend to those only who may have the port
// anyway. ErrNotFound where the key has no sockets, ErrExhausted where descriptors have run out.
func (b *Binder) Lend(key registry.SocketKey) (lent []registry.Socket, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	h := b.held[key]
	if h == nil {
		return nil, notFound(key)
	}
	if err := b.unsettleLocked(h); err != nil {
		return nil, err
	}
	defer func() {
		if err == nil {
			h.shared = true
			return
		}
		b.settleLocked(h)
		for _, l := range lent {
			_ = unix.Close(l.FD)
		}
		lent = nil
	}()
	member := h.choose()
	turn := h.turn + 1
	for _, s := range h.lentWith(member) {
		fd, err := unix.FcntlInt(uintptr(s.fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return lent, fmt.Errorf("duplicate the socket of %v: %w", s.ep, ranOut(err))
		}
		lent = append(lent, registry.Socket{Endpoint: s.ep, FD: fd, Member: member, Loan: turn})
	}
	b.kept.expose(h.lentWith(member)...)
	for _, s := range h.lentWith(member) {
		if s.adopted {
			// As all that portd lends are, and as they stay (restore): from here on the port is more than the first program's.
			_ = unix.SetNonblock(s.fd, true)
		}
		if s.ep.Proto.Streams() {
			continue
		}
		if err := s.passAll(); err != nil {
			return lent, err
		}
	}
	h.begin(member)
	if err := h.steer(); err != nil { // only in a group
		if h.end(member, turn) {
			err = errors.Join(err, h.sockets[member].silence())
		}
		return lent, err
	}
	return lent, nil
}

// Return ends a loan: of lent, whose descriptors may be closed by then. With the last one of a socket it is again as Bind and Listen left
// it, as far as the kernel lets that be undone; but datagrams go on queueing for Config.Grace, for a program that takes the place of
// the one that has gone. Then they are dropped. A key that was released meanwhile is no error.
func (b *Binder) Return(key registry.SocketKey, lent ...registry.Socket) {
	h, _, err := b.use(key)
	if err != nil {
		return
	}
	defer b.leave(h)
	h.work.Lock()
	defer h.work.Unlock()
	b.mu.Lock()
	defer b.mu.Unlock()
	member, turn := loanOf(lent)
	if b.held[key] != h || h.loans(member) == 0 {
		return
	}
	if !h.end(member, turn) {
		b.steerLocked(h) // the others may have drained
		return
	}
	for _, s := range h.lentWith(member) {
		if s.grouped && s.connected() {
			b.log.Error("a program connected a socket of a group, which took it out of the group: datagrams go astray until the port is "+
				"released and reserved anew", "endpoint", s.ep)
		}
		err := s.restore()
		if !s.ep.Proto.Streams() && b.grace <= 0 {
			err = errors.Join(err, s.silence())
		}
		if err != nil {
			b.log.Error("a socket that came back could not be set right", "endpoint", s.ep, "err", err)
		}
	}
	if h.sockets[0].file != nil {
		b.mend(key, h)
	}
	if h.sockets[0].ep.Proto.Streams() || b.grace <= 0 {
		return
	}
	h.keep(member, b.grace, func() { b.graceOver(h, member) })
	b.steerLocked(h)
}

// loanOf is what was lent with what, and when.
func loanOf(lent []registry.Socket) (member int, turn uint64) {
	if len(lent) == 0 {
		return 0, 0
	}
	return lent[0].Member, lent[0].Loan
}

// Drain says that who has a socket of a group takes no more of what arrives, or does so again after all: others get it, where there are
// any. What is in the socket's queue stays there.
func (b *Binder) Drain(key registry.SocketKey, on bool, lent ...registry.Socket) {
	b.mu.Lock()
	defer b.mu.Unlock()
	member, turn := loanOf(lent)
	if h := b.held[key]; h != nil && h.loans(member) > 0 {
		h.loanOf(member).drain(turn, on)
		b.steerLocked(h)
	}
}

func (b *Binder) steerLocked(h *holding) {
	if err := h.steer(); err != nil {
		b.log.Error("the datagrams of a group of sockets go where they went before", "endpoint", h.sockets[0].ep, "err", err)
	}
}

// graceOver drops what has queued for nobody.
func (b *Binder) graceOver(h *holding, member int) {
	h.work.Lock()
	defer h.work.Unlock()
	b.mu.Lock()
	defer b.mu.Unlock()
	if !h.graceEnded(member) {
		return
	}
	for _, s := range h.lentWith(member) {
		if err := s.silence(); err != nil {
			b.log.Error("a socket that came back could not be set right", "endpoint", s.ep, "err", err)
		}
	}
	b.settleLocked(h)
}

// silence drops what is in a datagram socket's queue, and what arrives.
func (s *socket) silence() error { return errors.Join(s.dropAll(), s.drain()) }

// restore undoes what a program may have done to a socket that it had. All of this is shared with its duplicates.
func (s *socket) restore() error {
	var errs []error
	errs = append(errs,
		unix.SetNonblock(s.fd, true), // else our accept would block
		s.set(unix.SOL_SOCKET, unix.SO_REUSEPORT, btoi(s.grouped)),
		s.reuse(s.listens() && s.ep.Proto == registry.TCP))
	if s.ep.Proto.Streams() {
		return errors.Join(append(errs, s.restoreStream())...)
	}
	return errors.Join(append(errs, s.disconnect(), s.passAll())...) // a filter of the program's goes with it
}

func (s *socket) restoreStream() error {
	if s.file != nil {
		return nil // mend does that
	}
	accepts, err := unix.GetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
	switch {
	case err != nil:
		return fmt.Errorf("SO_ACCEPTCONN of %v: %w", s.ep, err)
	case s.listens():
		if s.door == parked {
			if err := s.dropAll(); err != nil {
				return fmt.Errorf("park clients of %v again: %w", s.ep, err)
			}
		}
		return errors.Join(s.inherit(s.opt, true), s.listen(s.opt)) // it may have been shut down
	case accepts != 0:
		return s.unlisten()
	}
	return nil
}

func (s *socket) connected() bool {
	_, err := unix.Getpeername(s.fd)
	return !errors.Is(err, unix.ENOTCONN)
}

// disconnect undoes a connect(2), which narrows the address that the socket is bound to.
func (s *socket) disconnect() error {
	if !s.connected() {
		return nil
	}
	to := unix.RawSockaddr{Family: unix.AF_UNSPEC}
	if _, _, errno := unix.Syscall(unix.SYS_CONNECT, uintptr(s.fd), uintptr(unsafe.Pointer(&to)), unsafe.Sizeof(to)); errno != 0 {
		return fmt.Errorf("disconnect %v: %w", s.ep, errno)
	}
	if s.ep.Device == "" {
		return nil
	}
	// Disconnecting unbinds from the device (__udp_disconnect in the kernel).
	if err := unix.BindToDevice(s.fd, s.ep.Device); err != nil {
		return fmt.Errorf("bind %v to its device again: %w", s.ep, err)
	}
	return nil
}

// drain drops what queued before the filter was on again. It gives up where a duplicate has taken the filter off.
func (s *socket) drain() error {
	for range 1 << 16 {
		_, _, err := unix.Recvfrom(s.fd, nil, unix.MSG_DONTWAIT|unix.MSG_TRUNC)
		if errors.Is(err, unix.EAGAIN) {
			return nil
		}
	}
	return fmt.Errorf("queue of %v does not end: a program that still has the socket took its filter off", s.ep)
}
