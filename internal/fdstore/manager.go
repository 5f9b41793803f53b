package fdstore

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// firstListenFD is SD_LISTEN_FDS_START (sd_listen_fds(3)).
const firstListenFD = 3

// FromManager is what a service manager passed to this process by LISTEN_FDS (sd_listen_fds(3)), sockets to listen on and what is in its
// FD store alike, each close-on-exec and the caller's to close. Those without a name are called "unknown". The environment does not have it
// afterwards.
func FromManager() []Item {
	defer func() {
		for _, name := range []string{"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"} {
			_ = os.Unsetenv(name)
		}
	}()
	if pid, err := strconv.Atoi(os.Getenv("LISTEN_PID")); err != nil || pid != os.Getpid() {
		return nil
	}
	n, err := strconv.Atoi(os.Getenv("LISTEN_FDS"))
	if err != nil || n <= 0 {
		return nil
	}
	names := strings.Split(os.Getenv("LISTEN_FDNAMES"), ":")
	var all []Item
	for i := range n {
		it := Item{"unknown", firstListenFD + i}
		if _, err := unix.FcntlInt(uintptr(it.FD), unix.F_GETFD, 0); err != nil {
			break // LISTEN_FDS says more than there is
		}
		unix.CloseOnExec(it.FD)
		if i < len(names) && names[i] != "" {
			it.Name = names[i]
		}
		all = append(all, it)
	}
	return all
}

// Manager is the service manager's socket, and how many descriptors its FD store takes; 0 where it has none for this process. It says so
// by FDSTORE in the environment from systemd 254 on; the unit can for an older one.
func Manager() (socket string, most int) {
	socket = os.Getenv("NOTIFY_SOCKET")
	if socket == "" {
		return "", 0
	}
	most, _ = strconv.Atoi(os.Getenv("FDSTORE"))
	return socket, max(most, 0)
}

// dialManager connects to NOTIFY_SOCKET, a path or an abstract name that begins with '@'.
func dialManager(socket string) (int, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, fmt.Errorf("service manager's socket: %w", err)
	}
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: socket}); err != nil { // x/sys knows '@'
		_ = unix.Close(fd)
		return -1, fmt.Errorf("service manager's socket %s: %w", socket, err)
	}
	return fd, nil
}
