package netns

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/registry"
)

// maxPID is more than any pid, and less than any inode number of a namespace (PID_MAX_LIMIT, PROC_DYNAMIC_FIRST in the kernel).
const maxPID = 1 << 22

// open is a descriptor of the namespace that c means by a text, to be closed by the caller. A name under Dir wins, then that of
// a kept one, then a number.
func (h *Host) open(c registry.Caller, text string) (int, error) {
	if fd, err := h.openNamed(text); !errors.Is(err, registry.ErrNotFound) {
		return fd, err
	}
	if fd, err := h.openKept(func(k *kept) bool { return k.Name == text }); fd >= 0 || err != nil {
		return fd, err
	}
	n, err := strconv.ParseUint(text, 10, 64)
	switch {
	case err != nil:
		return -1, &notThere{text}
	case n <= maxPID:
		return h.openProcess(c, int(n))
	}
	return h.openInode(n)
}

// meant is the inode number of what open would open, whether or not that would find it by the number.
func (h *Host) meant(c registry.Caller, text string) (uint64, error) {
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil || n <= maxPID {
		fd, err := h.open(c, text)
		if err != nil {
			return 0, err
		}
		defer unix.Close(fd)
		return inodeOf(fd)
	}
	if fd, err := h.openNamed(text); err == nil {
		defer unix.Close(fd)
		return inodeOf(fd)
	}
	return n, nil
}

// openNamed opens what ip-netns(8) calls by a name.
func (h *Host) openNamed(name string) (int, error) {
	if name == "" || name == "." || name == ".." || strings.Contains(name, "/") {
		return -1, &notThere{name}
	}
	return h.openFile(h.dir+"/"+name, name)
}

// openFile opens a file that stands for a namespace. One that does not, for ip-netns(8) makes an empty one first, is not there.
func (h *Host) openFile(path, what string) (int, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ESRCH):
		return -1, &notThere{what}
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return -1, &registry.UnsupportedError{
			What: "network namespace " + what, Why: fmt.Sprintf("portd may not look at it without CAP_SYS_PTRACE (open %s: %v)", path, err),
			Code: "MISSING_CAPABILITY",
		}
	case err != nil:
		return -1, fmt.Errorf("open network namespace %s: %w", what, err)
	}
	if typ, err := unix.IoctlRetInt(fd, unix.NS_GET_NSTYPE); err != nil || typ != unix.CLONE_NEWNET {
		_ = unix.Close(fd)
		return -1, &notThere{what}
	}
	return fd, nil
}

// openKept duplicates the descriptor of a kept one, -1 where none is meant.
func (h *Host) openKept(is func(*kept) bool) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, k := range h.kept {
		if is(k) {
			fd, err := unix.FcntlInt(uintptr(k.fd), unix.F_DUPFD_CLOEXEC, 0)
			if err != nil {
				return -1, fmt.Errorf("network namespace %s: %w", k.Name, err)
			}
			return fd, nil
		}
	}
	return -1, nil
}

// openProcess opens the namespace that a process lives in.
func (h *Host) openProcess(c registry.Caller, pid int) (int, error) {
	if err := samePIDs(c); err != nil {
		return -1, err
	}
	fd, err := h.openFile(fmt.Sprintf("/proc/%d/ns/net", pid), fmt.Sprintf("of process %d", pid))
	if errors.Is(err, registry.ErrNotFound) {
		return -1, &noProcess{pid}
	}
	return fd, err
}

// samePIDs refuses callers of other pid namespaces, to whom a number means another process. NSpid has a number for each from
// that of this /proc inwards.
func samePIDs(c registry.Caller) error {
	if c.PID != 0 { // else it cannot be seen from here
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", c.PID))
		if err != nil {
			return fmt.Errorf("find the caller's pid namespace: %w", err)
		}
		for line := range strings.Lines(string(text)) {
			if ids, ok := strings.CutPrefix(line, "NSpid:"); ok && len(strings.Fields(ids)) == 1 {
				return nil
			}
		}
	}
	return &registry.UnsupportedError{
		What: "network namespace of a process", Code: "PID_NAMESPACE",
		Why: "you are in another pid namespace than portd, where your pids mean other processes; say its name, or its inode number (lsns -t net)",
	}
}

// openInode opens a namespace by its number: where it is kept, or a name or a mount leads to it, or a process lives in it.
func (h *Host) openInode(inode uint64) (int, error) {
	what := strconv.FormatUint(inode, 10)
	if inode == h.inode {
		return unix.FcntlInt(uintptr(h.own), unix.F_DUPFD_CLOEXEC, 0)
	}
	if fd, err := h.openKept(func(k *kept) bool { return k.Inode == inode }); fd >= 0 || err != nil {
		return fd, err
	}
	var paths []string
	for _, name := range h.named(inode) {
		paths = append(paths, h.dir+"/"+name)
	}
	_ = mounts(func(i uint64, path string) {
		if i == inode {
			paths = append(paths, path)
		}
	})
	link := linkTo(inode)
	err := processes(func(dir string) error {
		if to, err := os.Readlink(dir + "/ns/net"); err == nil && to == link {
			paths = append(paths, dir+"/ns/net")
			return fs.SkipAll
		}
		return nil
	})
	if err != nil {
		return -1, err
	}
	for _, path := range paths {
		fd, err := h.openFile(path, what)
		if err != nil {
			continue // it has just gone, or changed
		}
		if got, err := inodeOf(fd); err == nil && got == inode {
			return fd, nil
		}
		_ = unix.Close(fd)
	}
	return -1, &notThere{what}
}

// processes calls f with the directory under /proc of each process but portd's own, some of whose threads are elsewhere for a
// moment, until it returns an error, of which fs.SkipAll is none.
func processes(f func(dir string) error) error {
	proc, err := os.Open("/proc")
	if err != nil {
		return err
	}
	defer proc.Close()
	names, err := proc.Readdirnames(-1)
	if err != nil {
		return err
	}
	self, _ := os.Readlink("/proc/self")
	for _, name := range names {
		if name[0] < '0' || name[0] > '9' || name == self {
			continue
		}
		if err := f("/proc/" + name); errors.Is(err, fs.SkipAll) {
			return nil
		} else if err != nil {
			return err
		}
	}
	return nil
}

// mounts calls f with each network namespace that is mounted where portd sees it, which is how container runtimes keep theirs
// (proc_pid_mountinfo(5)).
func mounts(f func(inode uint64, path string)) error {
	file, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	defer file.Close()
	lines := bufio.NewScanner(file)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 5 {
			continue
		}
		if inode, ok := parseLink(fields[3]); ok {
			f(inode, unescape(fields[4]))
		}
	}
	return lines.Err()
}

// unescape undoes what the kernel does to blanks in a path: an octal number after a backslash.
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if c, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(c))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

func linkTo(inode uint64) string { return fmt.Sprintf("net:[%d]", inode) }

// parseLink reads "net:[4026532448]".
func parseLink(s string) (uint64, bool) {
	s, ok := strings.CutPrefix(s, "net:[")
	s, closed := strings.CutSuffix(s, "]")
	n, err := strconv.ParseUint(s, 10, 64)
	return n, ok && closed && err == nil
}

func inodeOf(fd int) (uint64, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return 0, fmt.Errorf("inode of a network namespace: %w", err)
	}
	return st.Ino, nil
}

// ownerOf is the user who owns the user namespace that a network namespace belongs to (ioctl_nsfs(2)). One above portd's own
// user namespace is nobody's that portd could tell: root's.
func ownerOf(fd int) (uint32, error) {
	user, err := unix.IoctlRetInt(fd, unix.NS_GET_USERNS)
	if errors.Is(err, unix.EPERM) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("user namespace of a network namespace: %w", err)
	}
	defer unix.Close(user)
	uid, err := unix.IoctlGetUint32(user, unix.NS_GET_OWNER_UID)
	if err != nil {
		return 0, fmt.Errorf("owner of a user namespace: %w", err)
	}
	return uid, nil
}

type noProcess struct{ pid int }

func (e *noProcess) Error() string {
	return fmt.Sprintf("no process with the pid %d is running", e.pid)
}
func (e *noProcess) Is(target error) bool { return target == registry.ErrNotFound }
