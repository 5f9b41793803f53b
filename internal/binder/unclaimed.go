package binder

import (
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/asuser"
	"github.com/portd/portd/internal/registry"
)

// Unclaimed says that all is back that there was: reservations by Bind and Listen, programs that have sockets by Relend. It closes every
// socket of Config.Items that nobody took, which the keeper has let go of when it returns, and says where those were bound. What was
// taken is as it is to be from then on: what listens and nobody asked to listen stops, datagrams for programs that have not come back wait
// for Config.Grace. It is called once, before anything is released.
func (b *Binder) Unclaimed() (closed []registry.Endpoint) {
	if !b.coming.Load() {
		return nil
	}
	b.mu.Lock()
	left := b.leftLocked()
	for _, s := range left {
		if s.came == nil { // which the log knows of, or another one is
			continue
		}
		netns := registry.HostNetns
		if s.came.space != b.space {
			netns = registry.UnknownNetns
		}
		closed = append(closed, s.where(netns))
	}
	b.closeLeftLocked(left)
	b.coming.Store(false)
	var restless []registry.SocketKey
	for key, h := range b.held {
		if h.restless() {
			restless = append(restless, key)
		}
	}
	b.mu.Unlock()
	for _, key := range restless {
		if err := b.calm(key); err != nil {
			b.log.Error("a kept socket could not be set right", "err", err)
		}
	}
	if len(left) > 0 {
		b.kept.settle()
	}
	return closed
}

// leftLocked takes out what nobody has taken.
func (b *Binder) leftLocked() (left []*socket) {
	for _, some := range b.inherited {
		left = append(left, some...)
	}
	left = append(left, b.unknown...)
	b.inherited, b.unknown = nil, nil
	return left
}

// closeLeftLocked closes sockets that came and are nobody's, bag by bag, so that it takes no more descriptors than one bag does.
func (b *Binder) closeLeftLocked(left []*socket) {
	going := make(map[*socket]bool, len(left))
	for _, s := range left {
		going[s] = true
	}
	end := func(s *socket) {
		delete(going, s)
		b.busyLocked(s)
		b.parking.open--
		s.end()
		b.kept.drop(s)
		s.close()
		s.fd = -1
	}
	for _, s := range left {
		if s.bag == nil {
			end(s)
		}
	}
	for _, s := range left {
		in := s.bag
		if !going[s] {
			continue
		}
		all := in.sockets
		if !slices.ContainsFunc(all, func(s *socket) bool { return !going[s] || s.exposed }) {
			b.emptyLocked(in)
			for _, s := range all {
				s.bag = nil
				delete(going, s)
			}
			continue
		}
		open := func() error { return b.openSomeLocked(in, func(s *socket) bool { return going[s] }) }
		err := open()
		if errors.Is(err, registry.ErrExhausted) {
			withKeptBack(func() { err = open() })
		}
		if err != nil {
			b.log.Error("kept sockets that nobody wants stay open", "err", err)
			return
		}
		for _, s := range all {
			if going[s] {
				end(s)
			}
		}
	}
	b.parkLocked()
}

// end does to a socket that nobody has taken what Release would have done before it is closed.
func (s *socket) end() {
	switch {
	case s.came == nil:
	case s.adopted && s.came.accepts:
		s.giveBack(true)
	case s.exposed || s.adopted || s.came.accepts:
		s.revoke(true)
	}
	if s.came == nil || s.ep.Proto != registry.Unix {
		return
	}
	var st unix.Stat_t
	if unix.Lstat(s.ep.Path, &st) == nil && idOf(&st) == s.came.id {
		f := &file{path: s.ep.Path, uid: st.Uid, gid: st.Gid, dev: st.Dev, ino: st.Ino}
		_ = f.remove()
	}
}

func idOf(st *unix.Stat_t) fileID {
	return fileID{unix.Major(st.Dev), unix.Minor(st.Dev), uint32(st.Ino)}
}

// takePath is the socket that came for a path, if its file is there still and f's owner's; f is its file then.
func (b *Binder) takePath(ep registry.Endpoint, f *file) *socket {
	if !b.coming.Load() {
		return nil
	}
	b.mu.Lock()
	came := b.inherited[place{proto: registry.Unix, path: ep.Path}]
	delete(b.inherited, place{proto: registry.Unix, path: ep.Path})
	b.mu.Unlock()
	var mine *socket
	var misfits []*socket
	for _, s := range came {
		if mine == nil && s.isAt(f) {
			mine = s
		} else {
			misfits = append(misfits, s)
		}
	}
	b.mu.Lock()
	if mine != nil {
		mine.ep, mine.file, mine.listening = ep, f, mine.came.accepts
	}
	b.closeLeftLocked(misfits)
	b.mu.Unlock()
	if len(misfits) > 0 {
		b.kept.settle()
	}
	return mine
}

// isAt says whether the file of one that came is where it was, and notes which that is.
func (s *socket) isAt(f *file) (is bool) {
	if s.came.accepts && isShut(s.fd) {
		return false
	}
	_ = asuser.Run(f.uid, f.gid, func() error {
		var st unix.Stat_t
		err := unix.Lstat(f.path, &st)
		if err == nil && st.Mode&unix.S_IFMT == unix.S_IFSOCK && st.Uid == f.uid && idOf(&st) == s.came.id {
			f.dev, f.ino, is = st.Dev, st.Ino, true
		}
		return err
	})
	return is
}

// restless says whether there is more to do for what came than to forget that it did; Binder.mu is held.
func (h *holding) restless() bool {
	for _, s := range h.sockets {
		if c := s.came; c != nil && (s.exposed || c.accepts && !c.asked) {
			return true
		}
	}
	for _, s := range h.sockets {
		s.came = nil
	}
	return false
}

// calm has the key's sockets that came as they are to be.
func (b *Binder) calm(key registry.SocketKey) error {
	h, _, err := b.use(key)
	if errors.Is(err, registry.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	defer b.leave(h)
	h.work.Lock()
	defer h.work.Unlock()
	if !b.has(key, h) {
		return nil
	}
	b.mu.Lock()
	h.still = false
	var unasked, returned []*socket
	for member := range max(h.group, 1) {
		queues := false
		for _, s := range h.lentWith(member) {
			c := s.came
			if s.came = nil; c == nil {
				continue
			}
			lent := h.loans(member) > 0
			if c.accepts && !c.asked {
				s.listening = false // it is the program's doing, or is to end
				if !lent {
					unasked = append(unasked, s)
				}
			}
			if s.exposed && !lent {
				returned = append(returned, s)
				queues = queues || !s.ep.Proto.Streams() && !c.dropping
			}
		}
		if queues && b.grace > 0 {
			h.keep(member, b.grace, func() { b.graceOver(h, member) })
		}
	}
	b.steerLocked(h)
	b.mu.Unlock()

	var errs []error
	for _, s := range unasked {
		errs = append(errs, s.unlisten())
		if s.door == parked {
			errs = append(errs, s.passAll())
		}
	}
	for _, s := range returned {
		errs = append(errs, b.comeBack(key, h, s))
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, s := range unasked {
		s.door = admitting
	}
	return errors.Join(errs...)
}

// comeBack does what Return does for a socket that a program had, which is gone.
func (b *Binder) comeBack(key registry.SocketKey, h *holding, s *socket) error {
	if s.file != nil {
		b.mend(key, h)
		return nil
	}
	dropping := s.drops()
	err := s.restore()
	if !s.ep.Proto.Streams() && (dropping || b.grace <= 0) {
		err = errors.Join(err, s.silence())
	}
	return err
}

// Relend counts again a loan that a Binder before this one gave, of the socket or sockets with that Member and Loan: a program goes on
// having what Lend gave out then. A Return follows, as after Lend. ErrNotFound where the key has no such sockets, or others than those, for they
// were bound anew; ErrExhausted where descriptors have run out. It comes before Unclaimed, but for what was lent meanwhile by the one
// before, in an upgrade.
func (b *Binder) Relend(key registry.SocketKey, lent ...registry.Socket) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	h := b.held[key]
	if h == nil {
		return notFound(key)
	}
	member, turn := loanOf(lent)
	if member < 0 || member >= max(h.group, 1) {
		return fmt.Errorf("lend number %d of %d again: %w", member, max(h.group, 1), notFound(key))
	}
	for _, s := range h.lentWith(member) {
		if !s.again {
			return fmt.Errorf("lend %v again, which was bound anew since: %w", s.ep, notFound(key))
		}
	}
	if err := b.unsettleLocked(h); err != nil {
		return err
	}
	b.kept.expose(h.lentWith(member)...)
	h.shared = true
	h.beginAgain(member, turn)
	for _, s := range h.lentWith(member) {
		if s.ep.Proto.Streams() || !s.drops() {
			continue
		}
		if err := s.passAll(); err != nil { // Unclaimed has taken it for nobody's
			b.log.Error("a program gets no datagrams on a socket that it has", "endpoint", s.ep, "err", err)
		}
	}
	b.steerLocked(h)
	return nil
}
