package binder

import (
	"context"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/asuser"
	"github.com/portd/portd/internal/registry"
)

// A program that had a path's socket itself may have taken the file away as it ended, as many do, or shut the socket down, which cannot
// be undone. Then there is a new one at the path; the Observer is told of it.

// mend sets right what has a file. It runs on its own, for it waits for the file system.
func (b *Binder) mend(key registry.SocketKey, h *holding) {
	b.mending.Go(func() {
		h.work.Lock()
		anew := b.has(key, h) && b.mendHeld(h)
		h.work.Unlock()
		if anew {
			b.observer.Closing(key)
			b.listenAnew(key, h)
		}
	})
}

// mendHeld says whether the socket is to listen and cannot as it is. The caller has the holding's work.
func (b *Binder) mendHeld(h *holding) (anew bool) {
	s := h.sockets[0]
	accepts, err := unix.GetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
	whole := err == nil && !s.broken() && s.file.isThere()
	switch {
	case s.listens() && (!whole || accepts == 0 || isShut(s.fd)):
		return true
	case s.listens():
		err = s.listen(s.opt) // with portd's backlog, as its owner
	case !whole || accepts != 0:
		err = s.holdPathAgain()
	}
	if err != nil {
		b.log.Error("a socket that came back could not be set right", "endpoint", s.ep, "err", err)
	}
	return false
}

func (b *Binder) listenAnew(key registry.SocketKey, h *holding) {
	h.work.Lock()
	s := h.sockets[0]
	if !b.has(key, h) || !s.listening {
		h.work.Unlock()
		return
	}
	err := s.holdPathAgain()
	if err == nil && s.listens() {
		err = s.listenExclusively(context.Background(), s.opt)
	}
	at, opt := registry.Socket{Endpoint: s.ep, FD: s.fd}, s.opt
	h.work.Unlock()
	if err != nil {
		b.log.Error("a program took a path away, and portd cannot have it back; close it and let it listen again", "endpoint", s.ep, "err", err)
		return
	}
	b.observer.Listening(key, []registry.Socket{at}, opt)
	b.mu.Lock()
	over := h.gone || h.closing || !s.listening
	b.mu.Unlock()
	if over { // the Observer was told so before it was told the contrary
		b.observer.Closing(key)
	}
}

// isThere says whether the path still leads to the file.
func (f *file) isThere() (is bool) {
	_ = asuser.Run(f.uid, f.gid, func() error {
		var st unix.Stat_t
		is = unix.Lstat(f.path, &st) == nil && st.Dev == f.dev && st.Ino == f.ino
		return nil
	})
	return is
}

// isShut says whether a listening unix socket has been shut down, of which nothing else speaks.
func isShut(fd int) bool {
	at := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
	n, err := unix.Poll(at, 0)
	return err == nil && n > 0 && at[0].Revents&(unix.POLLRDHUP|unix.POLLHUP) != 0
}
