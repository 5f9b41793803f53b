// Package holder keeps everything open that a process has open when it is killed, until its successor has taken what it wants.
//
// A holder is a child that shares the process's table of descriptors, not its memory (clone(2), CLONE_FILES). When the process dies, by
// whatever signal and between whatever two instructions, the table lives on, and no connection is reset. While it lives, the table is one:
// a close in the process is a close, and its peer sees the end of file at once. The holder answers on a socket whose other end somebody keeps
// who outlives the process: which numbers are open, and give me a descriptor of this one. It ends when nobody has the other end any
// more, or at the process's orderly stop, and only then the table is closed.
//
// It runs no Go: a few system calls in assembly, on a few pages of memory, without a stack. docs/HOLDER.md says why that is safe, and what may
// never be added. Where it cannot be had (another architecture, a limit on processes, a filter of system calls) Start fails, and
// its caller goes on without.
package holder

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Command is the name that a holder goes by in ps and in /proc/PID/comm.
const Command = "portd-holder"

// patience is how long a holder may take for an answer: it has nothing else to do, unless it was stopped (SIGSTOP).
var patience = 2 * time.Second

// A Holder is the child of this process that shares its descriptors. It must be closed, and before this process executes another
// program in its own place, which would leave the holder with the old table.
type Holder struct {
	pid     int
	process *os.File // its pidfd
	self    int      // pidfd of this process, by which the holder sees it die
	socket  int      // the holder's end; this process only must not close it
	outside int
	gone    chan struct{}
	once    sync.Once
}

// Start makes a holder. All that this process opens, before and after, is in the table that they share.
func Start() (_ *Holder, err error) {
	h := &Holder{self: -1, socket: -1, outside: -1, gone: make(chan struct{})}
	defer func() {
		if err != nil {
			h.closeAll()
			err = fmt.Errorf("start a holder of descriptors: %w", err)
		}
	}()
	ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("socketpair: %w", err)
	}
	h.socket, h.outside = ends[0], ends[1]
	if h.self, err = unix.PidfdOpen(os.Getpid(), 0); err != nil {
		return nil, fmt.Errorf("pidfd_open: %w", err)
	}
	var pidfd int
	if h.pid, pidfd, err = child(h.socket, h.outside, h.self); err != nil {
		return nil, err
	}
	_ = unix.SetNonblock(pidfd, true) // which makes os.NewFile hand it to the netpoller
	h.process = os.NewFile(uintptr(pidfd), Command)
	go h.wait()
	r := Rest{fd: h.outside}
	if _, err := r.ask(opGet, 0, nil); err != nil {
		_ = h.end()
		return nil, fmt.Errorf("it does not answer: %w", err)
	}
	return h, nil
}

// PID is the holder's process.
func (h *Holder) PID() int { return h.pid }

// Name is what Socket goes by among what is kept: it says which process this holder is.
func (h *Holder) Name() string { return prefix + strconv.Itoa(h.pid) }

const prefix = "holder."

// PIDOf is the process whose Name this is, 0 where it is nobody's.
func PIDOf(name string) int {
	digits, ok := strings.CutPrefix(name, prefix)
	pid, err := strconv.Atoi(digits)
	if !ok || err != nil || pid <= 1 {
		return 0
	}
	return pid
}

// Socket is the end that a successor asks on, for a duplicate to be kept elsewhere; it stays the Holder's. A copy of it in this
// process keeps nothing alive: at this process's death the holder closes that one.
func (h *Holder) Socket() int { return h.outside }

// Gone is closed when the holder has ended, by Close or by itself: somebody killed it.
func (h *Holder) Gone() <-chan struct{} { return h.gone }

// Close ends the holder, waits for its end and closes what this process has of it. What else is open is this process's alone again.
func (h *Holder) Close() error {
	err := h.end()
	h.once.Do(h.closeAll)
	return err
}

func (h *Holder) end() error {
	raw, err := h.process.SyscallConn()
	if err == nil {
		err = raw.Control(func(fd uintptr) { _ = unix.PidfdSendSignal(int(fd), unix.SIGKILL, nil, 0) })
	}
	select {
	case <-h.gone:
		return nil
	case <-time.After(patience):
		return errors.Join(fmt.Errorf("holder %d has not ended", h.pid), err)
	}
}

// wait reaps the holder.
func (h *Holder) wait() {
	defer close(h.gone)
	options := unix.WNOHANG
	reap := func(uintptr) bool {
		pid, err := unix.Wait4(h.pid, nil, options, nil)
		return pid == h.pid || err != nil && !errors.Is(err, unix.EINTR) // ECHILD: somebody who waits for any child was faster
	}
	raw, err := h.process.SyscallConn()
	if err == nil {
		err = raw.Read(reap)
	}
	if err != nil { // no netpoller for it, or Close gave up on it
		options = 0
		for !reap(0) {
		}
	}
}

func (h *Holder) closeAll() {
	for _, fd := range []*int{&h.outside, &h.socket, &h.self} {
		if *fd >= 0 {
			_ = unix.Close(*fd)
			*fd = -1
		}
	}
	if h.process != nil {
		_ = h.process.Close()
	}
}
