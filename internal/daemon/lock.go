package daemon

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// takeLock is lock, or what was kept of it: a daemon that has died is the daemon still as long as somebody keeps its lock, so that no
// other one comes between it and its successor. The keeper has it either way.
func (o *origin) takeLock(path string) (*os.File, error) {
	if fd, ok := o.take("lock"); ok {
		f := os.NewFile(uintptr(fd), path)
		if isAt(f, path) && unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB) == nil {
			o.keep.Put("lock", fd)
			return f, nil
		}
		o.keep.Remove("lock")
		_ = f.Close()
	}
	f, err := lock(path)
	if err != nil {
		return nil, err
	}
	raw, err := f.SyscallConn()
	if err == nil {
		err = raw.Control(func(fd uintptr) { o.keep.Put("lock", int(fd)) })
	}
	return f, err
}

// isAt says whether the file at the path is f still.
func isAt(f *os.File, path string) bool {
	at, err := os.Lstat(path)
	if err != nil {
		return false
	}
	is, err := f.Stat()
	return err == nil && os.SameFile(is, at)
}

// A runningError is that another portd is the daemon of a socket directory.
type runningError struct{ by, lock string }

func (e *runningError) Error() string {
	return fmt.Sprintf("portd is already running here%s: it holds %s; use another --socket for a second one", e.by, e.lock)
}

// lock makes this process the daemon of a socket directory until the file is closed. The kernel drops the lock with
// the process, however that ends; the file stays, so that no two processes ever lock different files of one name.
func lock(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock file: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		defer f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, &runningError{by: holderOf(f), lock: path}
		}
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return f, nil
}

// holderOf reads the pid that the living daemon left, for the message only.
func holderOf(f *os.File) string {
	text := make([]byte, 32)
	n, _ := f.ReadAt(text, 0)
	pid, err := strconv.Atoi(strings.TrimSpace(string(text[:n])))
	if err != nil {
		return ""
	}
	return fmt.Sprintf(" (pid %d)", pid)
}

// flockedBy is who has locked a file, for a message: " (pid 812)", or nothing where that cannot be seen (proc_locks(5)).
func flockedBy(path string) string {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return ""
	}
	locks, err := os.ReadFile("/proc/locks")
	if err != nil {
		return ""
	}
	where := fmt.Sprintf("%02x:%02x:%d", unix.Major(st.Dev), unix.Minor(st.Dev), st.Ino)
	for line := range strings.Lines(string(locks)) {
		f := strings.Fields(line)
		if len(f) < 6 || f[1] != "FLOCK" || f[5] != where {
			continue
		}
		if pid, err := strconv.Atoi(f[4]); err == nil && pid > 0 && unix.Kill(pid, 0) != unix.ESRCH {
			return fmt.Sprintf(" (pid %d)", pid)
		}
	}
	return ""
}

// writePID says who the daemon is, to who is refused.
func writePID(f *os.File) error {
	err := f.Truncate(0)
	if err == nil {
		_, err = f.WriteAt(fmt.Appendf(nil, "%d\n", os.Getpid()), 0)
	}
	if err != nil && !noRoom(err) { // the message does without
		return fmt.Errorf("write %s: %w", f.Name(), err)
	}
	return nil
}
