package fdstore

import (
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/fdpass"
)

// Given is what a keeper or a predecessor gave. All descriptors are the receiver's to close, and close-on-exec.
type Given struct {
	Items  []Item
	due    []string // names that a predecessor's keeper has not heard of, or is to let go of
	Link   int      // the socket to the keeper, from a predecessor; else -1
	Keeper int      // pidfd of the keeper, -1 where it is not known
}

// Close closes all that was given.
func (g *Given) Close() {
	for _, it := range g.Items {
		_ = unix.Close(it.FD)
	}
	for _, fd := range []int{g.Link, g.Keeper} {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
	}
	*g = Given{Link: -1, Keeper: -1}
}

// Give sends all that is in the store, and the socket to portd's keeper, over conn, a SEQPACKET socket, to a process that calls Receive.
// Whatever is put or removed afterwards it does not learn; so who gives is to be muted, until it is known which of the two goes on. An
// error is a receiver that has not read for two seconds, or is gone.
func (s *Store) Give(conn int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := GiveItems(conn, s.itemsLocked()); err != nil {
		return err
	}
	var out fdpass.Sender
	for _, name := range s.due {
		if err := send(&out, conn, "FDSTOREREMOVE=1\nFDNAME="+name, patience, nil); err != nil {
			return fmt.Errorf("give: %w", err)
		}
	}
	if l := s.link; l != nil && l.own {
		var err error
		cerr := l.raw.Control(func(fd uintptr) {
			if err = send(&out, conn, "LINK=1", patience, []int{int(fd)}); err == nil && l.keeper != nil {
				err = send(&out, conn, "KEEPER=1", patience, []int{int(l.keeper.Fd())})
			}
		})
		if err := errors.Join(cerr, err); err != nil {
			return fmt.Errorf("give the socket to the keeper: %w", err)
		}
	}
	return GiveEnd(conn)
}

// Succeed makes the Store that of a process which takes the place of the one that gave, with the same keeper, where that was portd's. It
// is muted: the keeper is the predecessor's still. The socket to the keeper is the Store's from now on.
func (s *Store) Succeed(g *Given) error {
	s.Mute()
	s.Inherit(g.Items)
	if g.Link < 0 {
		return nil
	}
	if err := s.AttachSame(g.Link, g.Keeper); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, name := range g.due {
		if it, ok := s.items[name]; ok {
			it.told = false
			s.items[name] = it
		}
		s.dueLocked(name, true)
	}
	return nil
}

// GiveItems sends items as Receive expects them, without the end. The descriptors stay the caller's.
func GiveItems(conn int, items []Item) error {
	var out fdpass.Sender
	for _, it := range items {
		if err := send(&out, conn, "FDSTORE=1\nFDNAME="+it.Name, patience, []int{it.FD}); err != nil {
			return fmt.Errorf("give %s: %w", it.Name, err)
		}
	}
	return nil
}

// GiveEnd says that that was all.
func GiveEnd(conn int) error {
	var out fdpass.Sender
	if err := send(&out, conn, "READY=1", patience, nil); err != nil {
		return fmt.Errorf("give: %w", err)
	}
	return nil
}

// Receive takes what Give, or a keeper, sends over conn, and leaves what is said after it in the queue. With an error it has what has
// come until then: that it is not all is no reason to lose it. There must be a message every ten seconds.
func Receive(conn int) (*Given, error) {
	g := &Given{Link: -1, Keeper: -1}
	var r fdpass.Receiver
	buf := make([]byte, maxWords)
	for {
		n, fds, err := receive(&r, conn, buf)
		if err != nil {
			if words, perr := Parse(buf[:n]); errors.Is(err, fdpass.ErrFDsTruncated) && perr == nil && words.Store && len(fds) < len(words.Names) {
				g.take(words.Names[:len(fds)], fds) // the last ones are those that are missing
				fds = nil
			}
			closeAll(fds)
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return g, fmt.Errorf("receive descriptors: %w", err)
		}
		words, err := Parse(buf[:n])
		switch {
		case err != nil:
			closeAll(fds)
			return g, fmt.Errorf("receive descriptors: %w", err)
		case words.Ready:
			closeAll(fds)
			return g, nil
		case words.Store && len(words.Names) > 0 && len(words.Names) == len(fds):
			g.take(words.Names, fds)
		case words.Store && len(words.Names) == 0 && len(fds) == 1:
			g.Items = append(g.Items, Item{words.Name, fds[0]})
		case words.Remove:
			g.due = append(g.due, words.Name)
		case words.Keeper && len(fds) == 1 && g.Keeper < 0:
			g.Keeper = fds[0]
		case words.Link && len(fds) == 1 && g.Link < 0:
			g.Link = fds[0]
		default:
			closeAll(fds)
		}
	}
}

func (g *Given) take(names []string, fds []int) {
	for i, name := range names {
		g.Items = append(g.Items, Item{name, fds[i]})
	}
}

// receive is fdpass.Recv that waits.
func receive(r *fdpass.Receiver, conn int, buf []byte) (int, []int, error) {
	until := time.Now().Add(10 * time.Second)
	for {
		n, fds, err := r.Recv(conn, buf)
		if !errors.Is(err, unix.EAGAIN) {
			return n, fds, err
		}
		left := time.Until(until)
		if left <= 0 {
			return 0, nil, os.ErrDeadlineExceeded
		}
		_, err = unix.Poll([]unix.PollFd{{Fd: int32(conn), Events: unix.POLLIN}}, int(left.Milliseconds())+1)
		if err != nil && err != unix.EINTR {
			return 0, nil, err
		}
	}
}
