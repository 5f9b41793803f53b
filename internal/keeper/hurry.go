package keeper

import (
	"os"
	"runtime"
	"strconv"

	"golang.org/x/sys/unix"
)

// While a daemon comes back after a death, clients of every port wait for it, and others keep the processors busy that it needs: on two busy
// ones it took more than twice the time. So it begins with the highest priority of nice(2), where the keeper may give that (CAP_SYS_NICE), and
// goes back to its own as soon as ports are served. Against processes of other control groups, or of other sessions where the kernel
// groups those (sched(7), autogroup), it does nothing.

const (
	// EnvNice is the nice value that a daemon is to go back to, by Calm. It is not set where the daemon has that already.
	EnvNice = "PORTD_NICE"

	hurried = -20
)

// hurry raises the calling thread, whose children begin with its priority, until calm. env is for the child's environment, and says what the
// thread had; it is empty where that could not be raised, or need not be.
func hurry() (env string, calm func()) {
	raw, err := unix.Getpriority(unix.PRIO_PROCESS, 0)
	nice := 20 - raw // the system call's answer is never negative, getpriority(2)
	if err != nil || nice <= hurried {
		return "", func() {}
	}
	runtime.LockOSThread()
	if err := unix.Setpriority(unix.PRIO_PROCESS, 0, hurried); err != nil {
		runtime.UnlockOSThread()
		return "", func() {}
	}
	return EnvNice + "=" + strconv.Itoa(nice), func() {
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

// Calm gives every thread of a process the nice value, which is higher than what they have. Priorities are the threads' own on Linux.
func Calm(pid, nice int) {
	dir := "/proc/" + strconv.Itoa(pid) + "/task"
	for changed := true; changed; { // one that has not had its turn may make others
		tasks, err := os.ReadDir(dir)
		if err != nil {
			return // it is gone
		}
		changed = false
		for _, task := range tasks {
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
}
