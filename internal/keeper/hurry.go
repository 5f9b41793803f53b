package keeper

import (
	"os"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// While a daemon comes back after a death, clients of every port wait for it, and others keep the processors busy that it needs: on two busy
// ones it took more than twice the time. So it begins with the highest priority of nice(2), where the keeper may give that (CAP_SYS_NICE), and
// goes back to its own as soon as ports are served. Against processes of other control groups, or of other sessions where the kernel
// groups those (sched(7), autogroup), it does nothing.

const (
	// EnvNice is the nice value that a daemon is to go back to, by Calm. It is not set where the daemon has that already.
	EnvNice = "PORTD_NICE"

	highest = -20 // priority, of nice(2)
)

// hurry raises the calling thread, whose children begin with its priority, until calm. nice is what it had. env is for the child's environment, and says what the
// thread had; it is empty where that could not be raised, or need not be.
func hurry() (env string, nice int, calm func()) {
	raw, err := unix.Getpriority(unix.PRIO_PROCESS, 0)
	nice = 20 - raw // the system call's answer is never negative, getpriority(2)
	if err != nil || nice <= highest || !showsUs() {
		return "", 0, func() {}
	}
	runtime.LockOSThread()
	if err := unix.Setpriority(unix.PRIO_PROCESS, 0, highest); err != nil {
		runtime.UnlockOSThread()
		return "", 0, func() {}
	}
	return EnvNice + "=" + strconv.Itoa(nice), nice, func() {
		_ = unix.Setpriority(unix.PRIO_PROCESS, 0, nice) // which everybody may
		runtime.UnlockOSThread()
	}
}

// Hurried is the nice value that this process is to go back to, for Calm. It changes the environment, as Connect does.
func Hurried() (nice int, hurried bool) {
	text := os.Getenv(EnvNice)
	_ = os.Unsetenv(EnvNice)
	nice, err := strconv.Atoi(text)
	return nice, err == nil
}

// showsUs says whether /proc is that of this process's own namespace of pids, without which Calm could do nothing.
func showsUs() bool {
	self, err := os.Readlink("/proc/self")
	return err == nil && self == strconv.Itoa(os.Getpid())
}

// Calm gives every thread of a process, and of all that it has started, at least the nice value. Priorities are the threads' own on Linux.
func Calm(pid, nice int) {
	var all []os.DirEntry
	for changed := true; changed; { // one that has not had its turn may make others
		var err error
		if all, err = os.ReadDir("/proc/" + strconv.Itoa(pid) + "/task"); err != nil {
			return // it is gone
		}
		changed = false
		for _, task := range all {
			tid, err := strconv.Atoi(task.Name())
			if err != nil {
				continue
			}
			if raw, err := unix.Getpriority(unix.PRIO_PROCESS, tid); err != nil || 20-raw >= nice {
				continue
			}
			changed = unix.Setpriority(unix.PRIO_PROCESS, tid, nice) == nil || changed
		}
	}
	for _, task := range all { // what is started from now on begins with the nice value
		children, _ := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/task/" + task.Name() + "/children")
		for _, text := range strings.Fields(string(children)) {
			if child, err := strconv.Atoi(text); err == nil {
				Calm(child, nice)
			}
		}
	}
}
