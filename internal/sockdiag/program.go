package sockdiag

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// A Program is one process, held by descriptors: when it has ended and its pid is another's, it says ESRCH, and never speaks of
// the other. It must be closed.
type Program struct {
	pid   int
	dir   int // of it in /proc
	pidfd int
}

// OpenProgram finds the process that has a pid now. ESRCH where there is none in sight, or the number is a thread's.
func OpenProgram(pid int) (*Program, error) {
	dir, err := unix.Open("/proc/"+strconv.Itoa(pid), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) {
		err = unix.ESRCH
	}
	if err != nil {
		return nil, fmt.Errorf("process %d: %w", pid, err)
	}
	p := &Program{pid: pid, dir: dir, pidfd: -1}
	p.pidfd, err = unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
		err = unix.ESRCH // a thread; the errno depends on the kernel's age
	}
	if err == nil {
		// The directory is of a process that still runs, so the number was its own when the pidfd was made.
		_, err = readAt(dir, "stat")
	}
	if err != nil {
		p.Close()
		return nil, fmt.Errorf("process %d: %w", pid, gone(err))
	}
	return p, nil
}

// Close lets go of the process.
func (p *Program) Close() {
	_ = unix.Close(p.dir)
	if p.pidfd >= 0 {
		_ = unix.Close(p.pidfd)
	}
}

// Rights are what ptrace(2) goes by when it lets another process attach to one (PTRACE_MODE_ATTACH_REALCREDS).
type Rights struct {
	Process
	GID uint32 // the effective group
	// Changed says that its users, or its groups, are not all the same: real, effective and saved.
	Changed bool
	// Privileged says that it has capabilities, be it none that are in effect.
	Privileged bool
}

// Rights are the process's, now.
func (p *Program) Rights() (Rights, error) {
	r, err := p.rights()
	if err != nil {
		return r, fmt.Errorf("process %d: %w", p.pid, gone(err))
	}
	return r, nil
}

func (p *Program) rights() (r Rights, err error) {
	// Only to see whose it is, which everybody may; what is in it may not be for us to see.
	fds, err := unix.Openat(p.dir, "fd", unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return r, err
	}
	defer unix.Close(fds)
	if r.Process, err = describe(p.dir, fds); err != nil {
		return r, err
	}
	r.PID = p.pid
	status, err := readAt(p.dir, "status")
	if err != nil {
		return r, err
	}
	for line := range strings.Lines(status) {
		key, rest, _ := strings.Cut(line, ":")
		words := strings.Fields(rest)
		switch {
		case (key == "Uid" || key == "Gid") && len(words) == 4:
			r.Changed = r.Changed || words[0] != words[1] || words[1] != words[2]
			id, err := strconv.ParseUint(words[1], 10, 32)
			if err != nil {
				return r, err
			}
			if key == "Gid" {
				r.GID = uint32(id)
			}
		case key == "CapPrm" && len(words) == 1:
			r.Privileged = strings.Trim(words[0], "0") != ""
		}
	}
	return r, nil
}

// Descriptors are the numbers by which the process has the sockets with the given inodes. EACCES where this process may not see
// what that one has open.
func (p *Program) Descriptors(inodes ...uint64) (map[uint64]int, error) {
	fds, err := p.descriptors(inodes)
	if err != nil {
		return nil, fmt.Errorf("descriptors of process %d: %w", p.pid, gone(err))
	}
	return fds, nil
}

func (p *Program) descriptors(inodes []uint64) (map[uint64]int, error) {
	dir, err := unix.Openat(p.dir, "fd", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(dir), "fd")
	defer f.Close()
	names, err := f.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	found := make(map[uint64]int)
	link := make([]byte, 64)
	for _, name := range names {
		n, err := unix.Readlinkat(dir, name, link)
		if errors.Is(err, unix.ENOENT) {
			continue // closed meanwhile
		}
		if err != nil {
			return nil, err
		}
		inode, isSocket := socketInode(string(link[:n]))
		for _, want := range inodes {
			if !isSocket || inode != want {
				continue
			}
			if found[want], err = strconv.Atoi(name); err != nil {
				return nil, err
			}
		}
	}
	return found, nil
}

// Duplicate is a duplicate of one of the process's descriptors, the caller's to close (pidfd_getfd(2)). EPERM where the kernel
// does not let this process attach to that one, EBADF where it has no such descriptor any more.
func (p *Program) Duplicate(fd int) (int, error) {
	own, err := unix.PidfdGetfd(p.pidfd, fd, 0)
	if err != nil {
		return -1, fmt.Errorf("descriptor %d of process %d: %w", fd, p.pid, err)
	}
	return own, nil
}

// gone says ESRCH of a process that ended, as which it shows in several ways in /proc.
func gone(err error) error {
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESRCH) {
		return unix.ESRCH
	}
	return err
}
