// Package pidwatch tells when processes end: those that were named by their pids, and no others that get the numbers later.
//
// A process is known by its pid and the time it started, which together do not come again within one boot, and is watched by a
// pidfd (pidfd_open(2)), which stays with it. One goroutine waits for all of them.
package pidwatch

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/registry"
)

// A Watcher is a registry.Processes. It must be closed.
type Watcher struct {
	log     *slog.Logger
	epoll   *os.File
	stopped chan struct{} // closed when its goroutine has ended

	mu      sync.Mutex // guards all below
	watched map[identity]*process
	byFD    map[int]*process
	closed  bool
}

type identity struct {
	pid   int32
	start int64
}

// A process has not been seen to end. Any number may wait for that.
type process struct {
	identity
	fd   int
	gone map[*watch]func()
}

type watch struct{ _ byte } // not empty, for each is to have an address of its own

// New makes a Watcher. log is told of what cannot happen.
func New(log *slog.Logger) (*Watcher, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("watch processes: %w", err)
	}
	// Nonblocking is what makes os.NewFile hand it to the netpoller: a parked goroutine waits, not a thread.
	if err := unix.SetNonblock(fd, true); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("watch processes: %w", err)
	}
	w := &Watcher{
		log: log, epoll: os.NewFile(uintptr(fd), "epoll of pidfds"), stopped: make(chan struct{}),
		watched: map[identity]*process{}, byFD: map[int]*process{},
	}
	raw, err := w.epoll.SyscallConn()
	if err != nil {
		_ = w.epoll.Close()
		return nil, fmt.Errorf("watch processes: %w", err)
	}
	go w.run(raw)
	return w, nil
}

// Watch calls gone once, when the process has ended, until stop is called. It is registry.ErrNotFound where the process has
// ended already, registry.ErrExhausted where no descriptor is left for it. gone may still be on its way when stop returns.
func (w *Watcher) Watch(pid int32, start int64, gone func()) (stop func(), err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return nil, os.ErrClosed
	}
	p := w.watched[identity{pid, start}]
	if p == nil {
		if p, err = w.add(identity{pid, start}); err != nil {
			return nil, err
		}
	}
	me := new(watch)
	p.gone[me] = gone
	return func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		delete(p.gone, me)
		if len(p.gone) == 0 && w.watched[p.identity] == p {
			w.drop(p)
		}
	}, nil
}

// add begins to watch a process. mu is held.
func (w *Watcher) add(id identity) (*process, error) {
	fd, s, err := open(id.pid)
	if err != nil {
		return nil, err
	}
	if s.start != id.start {
		_ = unix.Close(fd)
		return nil, noProcess(id.pid) // another has the number now
	}
	p := &process{identity: id, fd: fd, gone: map[*watch]func(){}}
	err = w.control(func(epoll int) error {
		return unix.EpollCtl(epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)})
	})
	if err != nil {
		_ = unix.Close(fd)
		return nil, failure(id.pid, err)
	}
	w.watched[id], w.byFD[fd] = p, p
	return p, nil
}

// drop ends watching a process; closing the last descriptor of it takes it out of the epoll too. mu is held.
func (w *Watcher) drop(p *process) {
	delete(w.watched, p.identity)
	delete(w.byFD, p.fd)
	_ = unix.Close(p.fd)
}

func (w *Watcher) control(f func(epoll int) error) error {
	raw, err := w.epoll.SyscallConn()
	if err != nil {
		return err
	}
	if cerr := raw.Control(func(fd uintptr) { err = f(int(fd)) }); cerr != nil {
		return cerr
	}
	return err
}

// run waits for ends until the epoll is closed.
func (w *Watcher) run(raw syscall.RawConn) {
	defer close(w.stopped)
	events := make([]unix.EpollEvent, 256)
	for {
		n := 0
		var failure error
		err := raw.Read(func(fd uintptr) bool {
			n, failure = unix.EpollWait(int(fd), events, 0)
			return n > 0 || failure != nil && !errors.Is(failure, unix.EINTR)
		})
		if err != nil {
			return // closed
		}
		if failure != nil {
			w.log.Error("cannot see any more when processes end", "err", failure)
			return
		}
		for _, ev := range events[:n] {
			w.ended(int(ev.Fd))
		}
	}
}

// ended tells those who wait. The event may be of a process that was dropped meanwhile, and the descriptor another's.
func (w *Watcher) ended(fd int) {
	w.mu.Lock()
	p := w.byFD[fd]
	if p == nil || !exited(fd) {
		w.mu.Unlock()
		return
	}
	w.drop(p)
	all := p.gone
	p.gone = nil // deleting from it does nothing
	w.mu.Unlock()
	for _, gone := range all {
		gone()
	}
}

// Close stops watching, and returns when nobody is told any more.
func (w *Watcher) Close() error {
	w.mu.Lock()
	w.closed = true
	for _, p := range w.watched {
		w.drop(p)
	}
	w.mu.Unlock()
	err := w.epoll.Close()
	<-w.stopped
	return err
}

var _ registry.Processes = (*Watcher)(nil)
