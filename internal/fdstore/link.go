package fdstore

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/fdpass"
)

// A link is the socket to a keeper: portd's own, or a service manager's.
type link struct {
	file   *os.File
	raw    syscall.RawConn
	own    bool     // it is portd's keeper at the other end
	keeps  bool     // what it is told; a service manager without an FD store does not
	keeper *os.File // pidfd of portd's keeper; nil: not known
	sender fdpass.Sender
}

func newLink(fd int, own, keeps bool) (*link, error) {
	unix.CloseOnExec(fd)
	if err := unix.SetNonblock(fd, true); err != nil {
		return nil, err
	}
	l := &link{file: os.NewFile(uintptr(fd), "keeper"), own: own, keeps: keeps}
	var err error
	if l.raw, err = l.file.SyscallConn(); err != nil {
		l.file.Close()
		return nil, err
	}
	return l, nil
}

func (l *link) send(words string, wait time.Duration, fds ...int) error {
	var err error
	if cerr := l.raw.Control(func(fd uintptr) { err = send(&l.sender, int(fd), words, wait, fds) }); cerr != nil {
		return cerr
	}
	return err
}

// send is fdpass.Send that waits for room as long as that, for the kernel to have fewer descriptors in messages too. Time in which this
// process is stopped does not count: whoever stopped it may have stopped the other one with it.
func send(s *fdpass.Sender, fd int, words string, left time.Duration, fds []int) error {
	for {
		err := s.Send(fd, []byte(words), fds)
		began := time.Now()
		switch {
		case err == nil:
			return nil
		case left <= 0 && errors.Is(err, unix.EAGAIN):
			return fmt.Errorf("it has read nothing for %v: %w", patience, os.ErrDeadlineExceeded)
		case left <= 0:
			return err
		case errors.Is(err, unix.EAGAIN):
			_, perr := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}, int(min(left, glance).Milliseconds())+1)
			if perr != nil && perr != unix.EINTR {
				return perr
			}
		case isFull(err), errors.Is(err, unix.ENOBUFS), errors.Is(err, unix.ENOMEM):
			time.Sleep(time.Millisecond) // the kernel does not say when there is room again
		default:
			return err
		}
		left -= min(time.Since(began), glance)
	}
}

// isFull says that this user has too many descriptors in messages, which another keeper would not change.
func isFull(err error) bool { return errors.Is(err, unix.ETOOMANYREFS) }

// close closes the link. A keeper of portd's is dead afterwards, and holds no port: its end of file alone does not say that.
func (l *link) close() {
	_ = l.file.Close()
	if l.keeper == nil {
		return
	}
	defer l.keeper.Close()
	pidfd := int(l.keeper.Fd())
	_ = unix.PidfdSendSignal(pidfd, unix.SIGKILL, nil, 0) // ESRCH: it is dead
	for range patience / glance {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, int(glance.Milliseconds()))
		if n > 0 || (err != nil && err != unix.EINTR) {
			return
		}
	}
}

// Attach makes the process at the other end of the socket fd the keeper, which gets all that is in the store; fd is the Store's from
// now on, whatever comes of it. pidfd, which may be -1, is the keeper's and becomes the Store's too.
func (s *Store) Attach(fd, pidfd int) error {
	return s.attach(fd, pidfd, true, true, false)
}

// AttachSame is Attach to a keeper that has everything: Inherit has been told what.
func (s *Store) AttachSame(fd, pidfd int) error {
	return s.attach(fd, pidfd, true, true, true)
}

// AttachManager makes the service manager the keeper, at NOTIFY_SOCKET (sd_notify(3)); most is how many descriptors it keeps. Where
// that is 0 it hears Notify only. What it gave to this process is to be Inherited before.
func (s *Store) AttachManager(socket string, most int) error {
	fd, err := dialManager(socket)
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.max = most
	s.mu.Unlock()
	return s.attach(fd, -1, false, most > 0, true)
}

func (s *Store) attach(fd, pidfd int, own, keeps, same bool) error {
	l, err := newLink(fd, own, keeps)
	if err != nil {
		_ = unix.Close(fd)
		if pidfd >= 0 {
			_ = unix.Close(pidfd)
		}
		return fmt.Errorf("attach to the keeper: %w", err)
	}
	if pidfd >= 0 {
		l.keeper = os.NewFile(uintptr(pidfd), "pidfd")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || s.leaving {
		l.close()
		return errors.New("attach to the keeper: this process stops")
	}
	s.link, s.broken = l, nil
	if own {
		s.keepers++
		go s.watch(l)
	}
	if !same {
		s.startOverLocked()
	}
	for _, it := range s.itemsLocked() {
		if same && !s.items[it.Name].told {
			s.dueLocked(it.Name, false)
		}
	}
	s.tellLocked()
	if s.link != l {
		return errors.New("attach to the keeper: it went away")
	}
	return nil
}

// OnLost has f called, in a goroutine of its own, each time that a keeper of portd's is given up; f is to Attach another one.
func (s *Store) OnLost(f func(error)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lost = f
}

// Close ends what there is with the keeper, which keeps what it has. It is for a process that has a successor.
func (s *Store) Close() {
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	if l := s.link; l != nil {
		s.link = nil
		_ = l.file.Close()
		if l.keeper != nil {
			_ = l.keeper.Close()
		}
	}
}

// watch waits for the keeper's end of file, and reads what a new one says of itself.
func (s *Store) watch(l *link) {
	var r fdpass.Receiver
	for {
		buf := make([]byte, maxWords)
		var n int
		var fds []int
		var err error
		rerr := l.raw.Read(func(fd uintptr) bool {
			n, fds, err = r.Recv(int(fd), buf)
			return !errors.Is(err, unix.EAGAIN)
		})
		if rerr != nil {
			return // closed by us
		}
		if errors.Is(err, io.EOF) || (err != nil && n == 0 && len(fds) == 0) {
			s.mu.Lock()
			s.loseLocked(l, err)
			s.mu.Unlock()
			return
		}
		words, perr := Parse(buf[:n])
		s.mu.Lock()
		if perr == nil && words.Keeper && len(fds) == 1 && s.link == l && l.keeper == nil {
			l.keeper = os.NewFile(uintptr(fds[0]), "pidfd")
			fds = nil
		}
		s.mu.Unlock()
		closeAll(fds)
	}
}

// loseLocked gives l up, if it is the keeper's still, and has it replaced, now or when the Store speaks again.
func (s *Store) loseLocked(l *link, why error) {
	if s.link != l {
		return
	}
	s.broken = why
	if l != nil && !l.own { // there is no other service manager; it may hear the next word
		s.log.Warn("the service manager could not be told", "err", why)
		s.broken = nil
		return
	}
	if l != nil {
		l.close()
		s.link = nil
	}
	if s.muted {
		return
	}
	s.broken = nil
	if s.lost != nil && !s.leaving {
		go s.lost(why)
	}
}

// passBarrier returns when the keeper has done what it was told before, or is given up.
func (s *Store) passBarrier() {
	s.mu.Lock()
	l := s.link
	quiet := l == nil || !l.keeps || s.muted
	s.mu.Unlock()
	if quiet {
		return
	}
	if err := s.await(l); err != nil {
		s.log.Warn("the keeper does not say whether it has done what it was told", "err", err)
	}
}

// await says BARRIER=1 and waits until the keeper has closed the descriptor that comes with it. A keeper that does not is given up.
func (s *Store) await(l *link) error {
	ours, theirs, err := os.Pipe()
	if err != nil {
		return err
	}
	defer ours.Close()
	s.mu.Lock()
	err = l.send("BARRIER=1", patience, int(theirs.Fd()))
	s.mu.Unlock()
	_ = theirs.Close()
	if err == nil {
		for range patience / glance {
			_ = ours.SetReadDeadline(time.Now().Add(glance))
			if _, err = ours.Read(make([]byte, 1)); errors.Is(err, io.EOF) {
				return nil
			}
		}
		err = fmt.Errorf("it has not done what it was told for %v: %w", patience, err)
	}
	if !isFull(err) {
		s.mu.Lock()
		s.loseLocked(l, err)
		s.mu.Unlock()
	}
	return err
}

// Notify says words of sd_notify(3), such as READY=1, STOPPING=1 or STATUS=, to portd's keeper, which passes them on to a service manager
// where there is one, or to the service manager itself. Without either, and while muted, nobody is told. A keeper that goes away after
// STOPPING=1 is not replaced: another one would start the daemon again.
func (s *Store) Notify(words string) {
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.muted {
		s.leaving = s.leaving || words == "STOPPING=1"
		s.sayLocked(words)
	}
}

// Successor tells portd's keeper of a process that may take this one's place. If this one dies before that, or that one soon after, the
// keeper ends what is left of the two before it starts another daemon. A service manager is not told.
func (s *Store) Successor(pid int) error {
	if s == nil {
		return nil
	}
	_, err := s.sayPID("SUCCESSOR=", pid, true)
	return err
}

// MainPID says that the process pid is the daemon from now on, and returns once the keeper has taken that; also while muted. Portd's
// keeper hears it from the successor, and then it is so, whichever of the two dies. With an error it may be so or not. A service manager
// listens to the one that was before, unless its unit says NotifyAccess=all. Without a keeper there is nothing to say.
func (s *Store) MainPID(pid int) error {
	if s == nil {
		return nil
	}
	l, err := s.sayPID("MAINPID=", pid, false)
	if l != nil && err == nil && l.keeps { // else nobody starts another one with what is kept
		err = s.await(l)
	}
	if err != nil {
		return fmt.Errorf("tell the keeper that process %d is the daemon: %w", pid, err)
	}
	return nil
}

// sayPID returns the keeper that was told, nil where there is none.
func (s *Store) sayPID(word string, pid int, ownOnly bool) (*link, error) {
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(pidfd)
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.link
	if l == nil || (ownOnly && !l.own) {
		return nil, s.broken
	}
	var with []int
	if l.own {
		with = append(with, pidfd)
	}
	if err := l.send(word+strconv.Itoa(pid), patience, with...); err != nil {
		s.loseLocked(l, err)
		return l, err
	}
	return l, nil
}

// Binary says which program is to be started when this process dies; an absolute path. A service manager knows by its unit.
func (s *Store) Binary(path string) {
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.link != nil && s.link.own {
		s.sayLocked("BINARY=" + path)
	}
}

// UpgradeKeeper makes portd's keeper the program at path, an absolute one, in place: with all that it keeps, and the same pid. It stays
// what it is where that program cannot be started; one that ends at once is lost as any keeper is, and replaced.
func (s *Store) UpgradeKeeper(path string) {
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.link != nil && s.link.own && !s.muted {
		s.sayLocked("UPGRADE=1\nBINARY=" + path)
	}
}

func closeAll(fds []int) {
	for _, fd := range fds {
		_ = unix.Close(fd)
	}
}
