package binder

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/registry"
)

// Listen makes all sockets of the key listen, or none: then those that listened before go on with their old options. The
// Observer is told also of those that listen already, for the options. ErrNotFound where the key has no sockets.
func (b *Binder) Listen(ctx context.Context, key registry.SocketKey, opt registry.ListenOptions) error {
	h, socks, err := b.use(key)
	if err != nil {
		return err
	}
	defer b.leave(h)
	if ep := socks[0].ep; !ep.Proto.Streams() {
		return &registry.UnsupportedError{
			What: "listen on " + ep.String(), Why: fmt.Sprintf("%v has no connections; a program can have the socket itself", ep.Proto),
			Code: "NOT_A_STREAM",
		}
	}
	h.work.Lock()
	err = b.in(socks[0].ep.Netns, func() error {
		if !b.has(key, h) {
			return notFound(key)
		}
		return b.listen(ctx, h, socks, opt)
	})
	h.work.Unlock()
	if err != nil {
		return fmt.Errorf("listen on %w", err)
	}
	all := make([]registry.Socket, len(socks))
	for i, s := range socks {
		all[i] = registry.Socket{Endpoint: s.ep, FD: s.fd, Adopted: s.adopted}
	}
	b.observer.Listening(key, all, opt)
	return nil
}

func (b *Binder) listen(ctx context.Context, h *holding, socks []*socket, opt registry.ListenOptions) (err error) {
	var asked []*socket // for the first time, of those that came
	b.mu.Lock()
	others := h.shared
	for _, s := range socks {
		if c := s.came; c != nil && !c.asked {
			c.asked, others = true, true // with whatever options it was left
			asked = append(asked, s)
			// It was refusing: else it would be listening. Who looks after the door opens it, or leaves it so.
			if !c.accepts && !s.adopted {
				s.listening, s.door = true, refusing
			}
		}
	}
	b.mu.Unlock()
	defer func() {
		if err == nil {
			return
		}
		b.mu.Lock()
		defer b.mu.Unlock()
		for _, s := range asked {
			if s.came.asked = false; !s.came.accepts {
				s.listening, s.door = false, admitting
			}
		}
	}()
	done := 0
	defer func() {
		if err == nil {
			return
		}
		for i, s := range socks[:min(done+1, len(socks))] { // the one that failed has some of the options
			switch {
			case s.listening:
				err = errors.Join(err, s.inherit(s.opt, others))
				if s.listens() && i < done {
					err = errors.Join(err, s.listen(s.opt))
				}
			case i < done:
				err = errors.Join(err, s.unlisten())
			}
		}
	}()
	for _, s := range socks {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("%v: %w", s.ep, err)
		}
		if s.broken() {
			if err := s.holdPathAgain(); err != nil {
				return fmt.Errorf("%v: %w", s.ep, err)
			}
		}
		// Before it listens, so that the first connection has them too.
		if err := s.inherit(opt, others); err != nil {
			return fmt.Errorf("%v: %w", s.ep, err)
		}
		if s.door == refusing { // the backlog is set when it listens again
			done++
			continue
		}
		if err := s.listenExclusively(ctx, opt); err != nil {
			return fmt.Errorf("%v: %w", s.ep, err)
		}
		done++
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, s := range socks {
		s.listening, s.opt = true, opt
	}
	return nil
}

// Unlisten tells the Observer, then stops listening: clients are refused, connections that nobody had accepted are reset, and
// the ports stay held. A key of which nothing listens is no error.
func (b *Binder) Unlisten(key registry.SocketKey) error {
	h, socks, err := b.use(key)
	if err != nil {
		return nil
	}
	defer b.leave(h)
	socks = slices.DeleteFunc(socks, func(s *socket) bool { return !s.listening })
	if len(socks) == 0 {
		return nil
	}
	b.mu.Lock()
	h.closing = true
	b.mu.Unlock()
	b.observer.Closing(key)
	h.work.Lock()
	defer h.work.Unlock()
	if !b.has(key, h) { // released meanwhile
		return nil
	}
	var errs []error
	for _, s := range socks {
		if s.listens() {
			errs = append(errs, s.unlisten())
		}
		if s.door == parked {
			errs = append(errs, s.passAll())
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	h.closing = false
	for _, s := range socks {
		s.listening, s.door = false, admitting
	}
	return errors.Join(errs...)
}

// Options are those of the key's first listening socket; all have the same. ErrNotFound where none listens.
func (b *Binder) Options(key registry.SocketKey) (registry.ListenOptions, error) {
	// Under the lock, for without it the descriptor could be another's by then.
	b.mu.Lock()
	defer b.mu.Unlock()
	if h := b.held[key]; h != nil {
		for _, s := range h.sockets {
			if s.listening {
				return s.readOptions()
			}
		}
	}
	return registry.ListenOptions{}, fmt.Errorf("it does not listen: %w", notFound(key))
}

// listenExclusively makes the socket listen, over leftovers of earlier connections too. For that it must let SO_REUSEADDR in
// for a moment; a stranger who binds and listens in it makes our listen fail, and the hold is then as it was.
//
// Once it listens the socket refuses everybody, SO_REUSEADDR or not, and keeps it on: its connections inherit that, and one
// without would keep us from binding the port again after a restart, for as long as it lasts and a minute more.
func (s *socket) listenExclusively(ctx context.Context, opt registry.ListenOptions) (err error) {
	if s.listens() || s.ep.Proto != registry.TCP {
		return s.listen(opt)
	}
	// Nobody connects before SO_REUSEADDR is on: a client that tries is not answered, and tries again in a second. MPTCP has
	// no filters (EOPNOTSUPP); there a connection may slip through.
	if s.dropAll() == nil {
		defer func() { err = errors.Join(err, s.passAll()) }()
	}
	err = s.listen(opt)
	if errors.Is(err, registry.ErrTaken) {
		if err := onlyLeftovers(ctx, s); err != nil {
			return err
		}
		if err := s.reuse(true); err != nil {
			return err
		}
		if err = s.listen(opt); err != nil {
			err = errors.Join(err, s.reuse(false))
		}
	}
	if err != nil {
		return err
	}
	return s.reuse(true)
}

// listen on a socket that listens already sets the backlog only.
func (s *socket) listen(opt registry.ListenOptions) error {
	backlog := cmp.Or(opt.Backlog, 4096)
	if s.file != nil {
		return s.file.listen(s.fd, backlog)
	}
	err := unix.Listen(s.fd, backlog)
	if errors.Is(err, unix.EADDRINUSE) {
		return registry.ErrTaken
	}
	return ranOut(err)
}

// unlisten keeps the port. SO_REUSEADDR must go before the shutdown, for a socket that has it and does not listen holds nothing.
func (s *socket) unlisten() error {
	if s.file != nil {
		return s.holdPathAgain()
	}
	if s.ep.Proto != registry.TCP {
		return unix.Listen(s.fd, 0) // RFC 6458, section 3.1.3: a backlog of zero ends it
	}
	at, err := unix.Getsockname(s.fd)
	if err != nil {
		return fmt.Errorf("address of %v: %w", s.ep, err)
	}
	if err := s.reuse(false); err != nil {
		return err
	}
	if err := unix.Shutdown(s.fd, unix.SHUT_RD); err != nil {
		return fmt.Errorf("stop listening on %v: %w", s.ep, err)
	}
	if s.adopted {
		return s.bindAgain(at)
	}
	return nil
}
