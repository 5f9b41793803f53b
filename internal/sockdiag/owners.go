package sockdiag

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"unicode"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A Process has a socket open.
type Process struct {
	PID int
	// UID is the effective user.
	UID uint32
	// Viewer is the user who, beside root, may see what the process has open (proc(5)): UID, or 0 if it changed its user since it started or guards
	// its memory in another way. For asking on behalf of someone.
	Viewer uint32
	// Command is the name that the process goes by (comm), at most 15 bytes. The process chooses it; what would not print is
	// replaced by '?'.
	Command string
	// Cgroup is the process's control group as this process sees it, such as /system.slice/nginx.service; Container and Unit are
	// what its name says of a container (its id, 64 digits) and a systemd unit. Empty where there is none, or none to be read.
	Cgroup, Container, Unit string
}

// Owners tells which processes have the sockets with the given inodes open, by PID; inherited and passed sockets have several. It sees what
// this process may see in /proc: complete is false if there was a process that it could not look into, who may then be an
// owner too. A socket without owners, when complete, is in flight between processes or belongs to the kernel or to another pid namespace.
// A process that shares its parent's table of descriptors for portd (portd-holder) is no owner where the parent is one.
func Owners(ctx context.Context, inodes ...uint64) (owners map[uint64][]Process, complete bool, err error) {
	proc, err := os.Open("/proc")
	if err != nil {
		return nil, false, fmt.Errorf("owners of sockets: %w", err)
	}
	defer proc.Close()
	names, err := proc.Readdirnames(-1)
	if err != nil {
		return nil, false, fmt.Errorf("owners of sockets: %w", err)
	}
	s := search{
		proc: int(proc.Fd()), want: make(map[uint64]bool, len(inodes)), owners: make(map[uint64][]Process, len(inodes)),
		parents: make(map[int]int), names: make([]byte, 64<<10), link: make([]byte, 64),
		// Process 1 is always there. Where it is not to be seen, /proc hides other users' processes (hidepid).
		complete: slices.Contains(names, "1"),
	}
	for _, inode := range inodes {
		s.want[inode] = inode != 0
	}
	for _, name := range names {
		if err := ctx.Err(); err != nil {
			return nil, false, fmt.Errorf("owners of sockets: %w", err)
		}
		pid, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		switch err := s.look(pid, name); {
		case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ESRCH):
			// It ended while we looked.
		case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
			s.complete = false
		case err != nil:
			return nil, false, fmt.Errorf("sockets of process %d: %w", pid, err)
		}
	}
	for inode, all := range s.owners {
		processes := slices.DeleteFunc(slices.Clone(all), func(p Process) bool {
			parent, ok := s.parents[p.PID]
			return ok && slices.ContainsFunc(all, func(q Process) bool { return q.PID == parent })
		})
		s.owners[inode] = processes
		slices.SortFunc(processes, func(a, b Process) int { return cmp.Compare(a.PID, b.PID) })
	}
	return s.owners, s.complete, nil
}

// A search goes through /proc by descriptors of its directories: a pid that is given to a new process meanwhile is not
// mistaken for the old one.
type search struct {
	proc        int
	want        map[uint64]bool
	owners      map[uint64][]Process
	complete    bool
	parents     map[int]int // of those that go by the name of tableHolder
	names, link []byte      // buffers
}

// tableHolder is what portd calls the process that keeps its descriptors open when it is killed. Anybody may go by that name, so nobody is
// passed over for it who has something that its parent has not.
const tableHolder = "portd-holder"

func (s *search) look(pid int, name string) error {
	const dir = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC
	path := name + "/fd"
	if sizesTold() {
		var st unix.Stat_t
		if err := unix.Fstatat(s.proc, path, &st, 0); err != nil || st.Size == 0 {
			return err // the kernel's own threads have none open, and they are most of what runs on some hosts
		}
	}
	fds, err := unix.Openat(s.proc, path, dir, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fds)
	found, err := s.sockets(fds)
	if len(found) == 0 && !errors.Is(err, unix.EACCES) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESRCH) {
		return err
	}
	process, openErr := unix.Openat(fds, "..", dir, 0) // of the same process, whoever has the pid by now
	if openErr != nil {
		return openErr
	}
	defer unix.Close(process)
	if errors.Is(err, unix.EACCES) {
		// Also the answer for a process that ended between the kernel's finding the link and reading it.
		if _, gone := readAt(process, "comm"); gone != nil {
			return gone
		}
	}
	if len(found) == 0 {
		return err
	}
	who, describeErr := describe(process, fds)
	if describeErr != nil {
		return describeErr
	}
	who.PID = pid
	if who.Command == tableHolder {
		status, err := readAt(process, "status")
		if err != nil {
			return err
		}
		parent, _ := statusField(status, "PPid:", 0)
		s.parents[pid] = int(parent)
	}
	slices.Sort(found) // a process can have a socket open more than once
	for _, inode := range slices.Compact(found) {
		s.owners[inode] = append(s.owners[inode], who)
	}
	return err
}

// sizesTold says whether the kernel tells how many descriptors a process has open as the size of their directory, as it does
// since Linux 6.2; the others say 0 of everyone.
var sizesTold = sync.OnceValue(func() bool {
	var st unix.Stat_t
	return unix.Stat("/proc/self/fd", &st) == nil && st.Size > 0
})

// sockets returns which of the wanted inodes are among the descriptors in fds, each as often as it is there, also beside an error.
func (s *search) sockets(fds int) (found []uint64, err error) {
	for {
		n, err := unix.ReadDirent(fds, s.names)
		if err != nil || n <= 0 {
			return found, err
		}
		for b := s.names[:n]; len(b) > direntName; {
			size := int(binary.NativeEndian.Uint16(b[direntSize:]))
			if size <= direntName || size > len(b) {
				return found, fmt.Errorf("directory entry of %d bytes in the %d left", size, len(b))
			}
			name := b[direntName:size]
			b = b[size:]
			if name[0] == '.' {
				continue
			}
			n, err := readlinkat(fds, &name[0], s.link)
			if errors.Is(err, unix.ENOENT) {
				continue // closed meanwhile
			}
			if err != nil {
				return found, err
			}
			if inode, ok := socketInode(string(s.link[:n])); ok && s.want[inode] {
				found = append(found, inode)
			}
		}
	}
}

const (
	direntSize = 16 // offset of d_reclen in struct linux_dirent64 (getdents(2))
	direntName = 19 // of d_name
)

// readlinkat is readlinkat(2) of a name that ends with a NUL, in /proc: nothing there blocks, and there are thousands, so that Go's
// scheduler is not told of each.
func readlinkat(dir int, name *byte, b []byte) (n int, err error) {
	got, _, errno := unix.RawSyscall6(unix.SYS_READLINKAT, uintptr(dir), uintptr(unsafe.Pointer(name)),
		uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)), 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(got), nil
}

func socketInode(link string) (uint64, bool) {
	digits, ok := strings.CutPrefix(link, "socket:[")
	if !ok {
		return 0, false
	}
	inode, err := strconv.ParseUint(strings.TrimSuffix(digits, "]"), 10, 64)
	return inode, err == nil
}

// describe reads who the process is whose directories in /proc are given.
func describe(process, fds int) (Process, error) {
	var who Process
	var stat unix.Stat_t
	if err := unix.Fstat(fds, &stat); err != nil {
		return who, err
	}
	who.Viewer = stat.Uid
	comm, err := readAt(process, "comm")
	if err != nil {
		return who, err
	}
	who.Command = printable(strings.TrimSuffix(comm, "\n"))
	status, err := readAt(process, "status")
	if err != nil {
		return who, err
	}
	if who.UID, err = effectiveUID(status); err != nil {
		return who, err
	}
	groups, err := readAt(process, "cgroup")
	if errors.Is(err, unix.ENOENT) { // a kernel without control groups; a process that ended says ESRCH
		return who, nil
	}
	who.Cgroup = cgroupOf(groups)
	who.Container, who.Unit = containerOf(who.Cgroup), unitOf(who.Cgroup)
	return who, err
}

func readAt(dir int, name string) (string, error) {
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	b := make([]byte, 4096)
	for n := 0; ; {
		more, err := unix.Read(fd, b[n:])
		if err != nil {
			return "", err
		}
		// The kernel gives as much as there is room for, so that one read is mostly all.
		if n += more; more == 0 || n < len(b) {
			return string(b[:n]), nil
		}
		b = append(b, make([]byte, len(b))...) // a status of more than 4 KiB has hundreds of groups
	}
}

// effectiveUID finds it in a /proc/PID/status: "Uid:", then real, effective, saved and filesystem uid.
func effectiveUID(status string) (uint32, error) { return statusField(status, "Uid:", 1) }

// statusField is number n of a line of a /proc/PID/status. The name above it cannot imitate the line: its newlines are escaped.
func statusField(status, name string, n int) (uint32, error) {
	for line := range strings.Lines(status) {
		if rest, ok := strings.CutPrefix(line, name); ok {
			if fields := strings.Fields(rest); len(fields) > n {
				value, err := strconv.ParseUint(fields[n], 10, 32)
				return uint32(value), err
			}
		}
	}
	return 0, fmt.Errorf("no %s in its status", name)
}

func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r == unicode.ReplacementChar || !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
}
