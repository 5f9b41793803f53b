package pidwatch

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"unicode"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/registry"
)

// Find is the process that a caller means by a pid: when it started, in clock ticks of boot time, and whose it is, by its
// real user. It is registry.ErrNotFound where there is none that still runs, and registry.ErrUnsupported where the caller
// lives in another pid namespace than portd: its numbers mean other processes here.
func (*Watcher) Find(c registry.Caller, pid int32) (start int64, uid uint32, err error) {
	if err := sameNamespace(c.PID); err != nil {
		return 0, 0, err
	}
	fd, s, err := open(pid)
	if err != nil {
		return 0, 0, err
	}
	return s.start, s.uid, unix.Close(fd)
}

// Command is the name that the process goes by that has this pid and started then (proc_pid_comm(5)), with '?' for what does not print. It
// is empty where that one has ended, and where /proc does not show it (hidepid).
func (*Watcher) Command(pid int32, start int64) string {
	comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	if err != nil {
		return ""
	}
	// After it, so that the name is not another's who has the number now.
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return ""
	}
	if began, err := startOf(stat); err != nil || began != start {
		return ""
	}
	return strings.Map(func(r rune) rune {
		if r == unicode.ReplacementChar || !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, strings.TrimSuffix(string(comm), "\n"))
}

// A snapshot is what /proc says of a process.
type snapshot struct {
	start int64 // in clock ticks after boot
	uid   uint32
}

// open is a pidfd of a process that runs, which the caller closes, and what there is to know of it.
func open(pid int32) (fd int, s snapshot, err error) {
	fd, err = unix.PidfdOpen(int(pid), 0)
	switch {
	case errors.Is(err, unix.ESRCH):
		return -1, s, noProcess(pid)
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOENT): // of a thread; the errno depends on the kernel's age
		return -1, s, noProcess(pid)
	case err != nil:
		return -1, s, failure(pid, err)
	}
	s, err = look(pid)
	// Only if it still runs was it this one that /proc told of.
	if exited(fd) || errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		err = noProcess(pid)
	}
	if err != nil {
		_ = unix.Close(fd)
		return -1, s, failure(pid, err)
	}
	return fd, s, nil
}

// failure says of an error what it was about, and that it is for want of descriptors (EMFILE, ENFILE) or of room in the
// epolls of this user (ENOSPC, epoll(7)), where it is.
func failure(pid int32, err error) error {
	if errors.Is(err, registry.ErrNotFound) {
		return err
	}
	for _, want := range []error{unix.EMFILE, unix.ENFILE, unix.ENOSPC} {
		if errors.Is(err, want) {
			return fmt.Errorf("watch process %d: %w: %w", pid, registry.ErrExhausted, err)
		}
	}
	return fmt.Errorf("watch process %d: %w", pid, err)
}

func look(pid int32) (s snapshot, err error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return s, err
	}
	if s.start, err = startOf(stat); err != nil {
		return s, fmt.Errorf("/proc/%d/stat: %w", pid, err)
	}
	uids, err := status(pid, "Uid:")
	if err != nil {
		return s, err
	}
	uid, err := strconv.ParseUint(uids[0], 10, 32)
	if err != nil {
		return s, fmt.Errorf("/proc/%d/status: %w", pid, err)
	}
	s.uid = uint32(uid)
	return s, nil
}

// startOf is field 22 of proc_pid_stat(5). Field 2 is the command in parentheses, which may have blanks and parentheses too.
func startOf(stat []byte) (int64, error) {
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:])) // from field 3 on
	if len(fields) < 20 {
		return 0, fmt.Errorf("%d fields after the command, want 20 or more", len(fields))
	}
	return strconv.ParseInt(fields[19], 10, 64)
}

// status is the words of a line of proc_pid_status(5), at least one.
func status(pid int32, line string) ([]string, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return nil, err
	}
	for l := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(l, line); ok {
			if words := strings.Fields(rest); len(words) > 0 {
				return words, nil
			}
		}
	}
	return nil, fmt.Errorf("/proc/%d/status has no %s", pid, line)
}

// sameNamespace refuses callers of other pid namespaces. NSpid has a number for each namespace from that of this /proc
// inwards, so that one of portd's own has just one.
func sameNamespace(caller int32) error {
	if caller != 0 { // else the kernel says that it cannot be seen from here
		ids, err := status(caller, "NSpid:")
		if err != nil {
			return fmt.Errorf("find the caller's pid namespace: %w", err)
		}
		if len(ids) == 1 {
			return nil
		}
	}
	return &registry.UnsupportedError{
		What: "process lease", Why: "you are in another pid namespace than portd, where your pids mean other processes; use a session or a time to live",
		Code: "PID_NAMESPACE",
	}
}

// noProcess says that nothing runs under a number.
func noProcess(pid int32) error { return &noSuch{pid} }

type noSuch struct{ pid int32 }

func (e *noSuch) Error() string        { return fmt.Sprintf("no process with the pid %d is running", e.pid) }
func (e *noSuch) Is(target error) bool { return target == registry.ErrNotFound }

// exited says whether the process of a pidfd has ended, reaped or not.
func exited(fd int) bool {
	for {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(fds, 0)
		if err != unix.EINTR {
			return n > 0 && fds[0].Revents&(unix.POLLIN|unix.POLLHUP) != 0
		}
	}
}
