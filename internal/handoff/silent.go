package handoff

import (
	"os"
	"runtime"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// How the engine waits. A thread that tells Go's scheduler that it waits gives its processor (P) away, and has to get one back before it
// goes on, which wakes other threads up: where connections come one by one that costs as much as handing them over. So the engine waits
// without a word. The scheduler ends that by a signal as soon as it wants something, such as to stop everybody for the garbage
// collector, and anyway after 10 ms; then the engine waits as others do until the next event.

// mayBeSilent says whether that works here, for so many engines: there must be another processor for everybody else, and signals.
func mayBeSilent(engines int) bool {
	return runtime.GOMAXPROCS(0) > engines && !strings.Contains(os.Getenv("GODEBUG"), "asyncpreemptoff=1")
}

// poll is epoll_wait that does not wait.
func poll(epoll int, events []unix.EpollEvent) int {
	n, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(epoll), uintptr(unsafe.Pointer(&events[0])), uintptr(len(events)), 0, 0, 0)
	if errno != 0 {
		return 0
	}
	return int(n)
}

// wait is epoll_wait, with a timeout in milliseconds.
func (e *engine) wait(events []unix.EpollEvent, timeout int) (int, error) {
	if timeout < 0 && e.silent {
		const never = ^uintptr(0)
		n, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(e.epoll), uintptr(unsafe.Pointer(&events[0])), uintptr(len(events)), never, 0, 0)
		if errno == 0 {
			return int(n), nil
		}
		if errno != unix.EINTR {
			return 0, errno
		}
		e.silent = mayBeSilent(len(e.pool.engines)) // the number of processors follows the cgroup's limit
	}
	return unix.EpollWait(e.epoll, events, timeout)
}
