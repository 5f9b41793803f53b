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

// mayBeSilent says whether that works here: there must be another processor for everybody else, and signals.
func mayBeSilent() bool {
	return runtime.GOMAXPROCS(0) > 1 && !strings.Contains(os.Getenv("GODEBUG"), "asyncpreemptoff=1")
}

// wait is epoll_wait, with a timeout in milliseconds.
func (p *Pool) wait(events []unix.EpollEvent, timeout int) (int, error) {
	if timeout < 0 && p.silent {
		const never = ^uintptr(0)
		n, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(p.epoll), uintptr(unsafe.Pointer(&events[0])), uintptr(len(events)), never, 0, 0)
		if errno == 0 {
			return int(n), nil
		}
		if errno != unix.EINTR {
			return 0, errno
		}
		p.silent = mayBeSilent() // the number of processors follows the cgroup's limit
	}
	return unix.EpollWait(p.epoll, events, timeout)
}
