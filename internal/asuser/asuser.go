// Package asuser does things with the rights of another user.
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

// Run calls f as a user, in his own group and no other: what f makes is his, where he may not, neither may f, and who asks a socket that
// f has listen whose it is is told his name (SO_PEERCRED). Whoever is this process's own user already, root included, keeps its groups too.
// Another one takes root with CAP_SETUID and CAP_SETGID; without them the error is ErrCannot, and f is not called. f runs on a thread of
// its own, which can get nowhere from there that root could not: its real user stays.
func Run(uid, gid uint32, f func() error) error {
	if int(uid) == os.Geteuid() {
		return f()
	}
	if os.Geteuid() != 0 { // some capabilities would stay then
		return fmt.Errorf("%w: uid %d, and this process is uid %d's", ErrCannot, uid, os.Geteuid())
	}
	return onThread(func() error {
		if err := become(uid, gid); err != nil {
			return err
		}
		return f()
	})
}

// onThread calls f on a thread that ends with it, whatever f has made of it.
func onThread(f func() error) error {
	result := make(chan error)
	go func() {
		runtime.LockOSThread() // for good: so the thread ends with this goroutine
		if unix.Gettid() == unix.Getpid() {
			// But for the first one, which never ends, and is whom /proc shows as the process's user.
			err := onThread(f)
			runtime.UnlockOSThread()
			result <- err
			return
		}
		result <- f()
	}()
	return <-result
}

// become changes the calling thread alone: Go's own calls would change all. Capabilities go with the effective user (capabilities(7)).
func become(uid, gid uint32) error {
	const same = ^uintptr(0)
	if _, _, errno := unix.RawSyscall(unix.SYS_SETGROUPS, 0, 0, 0); errno != 0 {
		return fmt.Errorf("%w: CAP_SETGID is missing (setgroups: %w)", ErrCannot, errno)
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESGID, same, uintptr(gid), same); errno != 0 {
		return fmt.Errorf("%w: CAP_SETGID is missing (setresgid: %w)", ErrCannot, errno)
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, same, uintptr(uid), same); errno != 0 {
		return fmt.Errorf("%w: CAP_SETUID is missing (setresuid: %w)", ErrCannot, errno)
	}
	// Capabilities stay where securebits say so; and a uid of -1 would mean no change.
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var caps [2]unix.CapUserData
	err := unix.Capget(&header, &caps[0])
	if now, _, _ := unix.RawSyscall(unix.SYS_GETEUID, 0, 0, 0); err != nil || uint32(now) != uid || caps[0].Effective|caps[1].Effective != 0 {
		return fmt.Errorf("%w: something of root is left", ErrCannot)
	}
	return nil
}
