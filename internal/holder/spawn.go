//go:build linux && (amd64 || arm64)

package holder

import (
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"
)

// cloneFlags: the same table, a pidfd for us, and nothing else shared, above all no memory. It is a variable for tests.
var cloneFlags uint64 = unix.CLONE_FILES | unix.CLONE_PIDFD | uint64(unix.SIGCHLD)

// maxText is more than spawn's code takes; a test looks.
const maxText = 4096

// spawn makes the holder; its pid, or a negative errno. In the child it never returns.
//
//go:noescape
func spawn(b *block) (pid int)

// text is where spawn's code begins.
func text() uintptr

// child makes a holder that serves on socket, whose other end is outside, for as long as daemon, a pidfd, has not ended or somebody has
// the other end. Its pidfd is the caller's to close, and the pid to wait for.
func child(socket, outside, daemon int) (pid, pidfd int, err error) {
	runtime.LockOSThread() // whose area is not to be unmapped
	defer runtime.UnlockOSThread()
	mem, b, err := newBlock(socket, outside, daemon)
	if err != nil {
		return 0, -1, err
	}
	defer unix.Munmap(mem)
	if pid = spawn(b); pid < 0 {
		return 0, -1, fmt.Errorf("clone: %w", unix.Errno(-pid))
	}
	return pid, int(int32(b.pidfd)), nil
}
