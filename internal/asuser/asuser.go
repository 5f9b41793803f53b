// Package asuser touches the file system with the rights of another user.
package asuser

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// ErrCannot is that this process may not act for the user.
var ErrCannot = errors.New("may not act for that user")

// Run calls f with the rights that a user has at files, in his own group and no other: what f makes is his, and where he may not,
// neither may f (setfsuid(2)). Whoever is this process's own user already, root included, keeps its groups too. Another one takes root
// with CAP_SETUID and CAP_SETGID; without them the error is ErrCannot, and f is not called. f runs on a thread of its own.
func Run(uid, gid uint32, f func() error) error {
	if int(uid) == os.Geteuid() {
		return f()
	}
	if os.Geteuid() != 0 { // some capabilities would stay then
		return fmt.Errorf("%w: uid %d, and this process is uid %d's", ErrCannot, uid, os.Geteuid())
	}
	result := make(chan error)
	go func() {
		// The thread is not unlocked: it ends with this goroutine, and its rights with it.
		runtime.LockOSThread()
		result <- func() error {
			if err := become(uid, gid); err != nil {
				return err
			}
			return f()
		}()
	}()
	return <-result
}

// become changes the calling thread alone: Go's own calls would change all.
func become(uid, gid uint32) error {
	if _, _, errno := unix.RawSyscall(unix.SYS_SETGROUPS, 0, 0, 0); errno != 0 {
		return fmt.Errorf("%w: CAP_SETGID is missing (setgroups: %w)", ErrCannot, errno)
	}
	// These return what it was before and no error, so the answer is in asking again (setfsuid(2)).
	set := func(call uintptr, id uint32) bool {
		_, _, _ = unix.RawSyscall(call, uintptr(id), 0, 0)
		now, _, _ := unix.RawSyscall(call, uintptr(^uint32(0)), 0, 0)
		return uint32(now) == id
	}
	if !set(unix.SYS_SETFSGID, gid) {
		return fmt.Errorf("%w: CAP_SETGID is missing", ErrCannot)
	}
	if !set(unix.SYS_SETFSUID, uid) {
		return fmt.Errorf("%w: CAP_SETUID is missing", ErrCannot)
	}
	return nil
}
