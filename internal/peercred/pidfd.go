package peercred

import (
	"errors"
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"
)

// PIDFD returns a descriptor of the process at the other end of conn (pidfd_open(2)); the caller closes it. ESRCH means that the
// process is gone.
//
// It asks by SO_PEERPIDFD (Linux 6.5), which cannot be wrong. A kernel without it leaves only the pid: if the peer has exited
// and its number was given to another process before this call, the descriptor is that process's. It is then good for
// noticing an exit, not for proving who someone is. [HasPeerPIDFD] tells which kind of kernel this is.
func PIDFD(conn syscall.Conn) (int, error) {
	return control(conn, "peer pidfd", func(fd int) (int, error) {
		pidfd, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PEERPIDFD)
		switch {
		case errors.Is(err, unix.ENOPROTOOPT):
			return pidfdByNumber(fd)
		case errors.Is(err, unix.EINVAL):
			return -1, unix.ESRCH // how Linux 6.5 to 6.15 say that the peer was reaped; newer ones still give its pidfd
		case err != nil:
			return -1, err
		}
		return pidfd, nil
	})
}

// HasPeerPIDFD reports whether this kernel knows SO_PEERPIDFD.
func HasPeerPIDFD() (bool, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return false, fmt.Errorf("probe SO_PEERPIDFD: %w", err)
	}
	defer unix.Close(pair[0])
	defer unix.Close(pair[1])
	pidfd, err := unix.GetsockoptInt(pair[0], unix.SOL_SOCKET, unix.SO_PEERPIDFD)
	if errors.Is(err, unix.ENOPROTOOPT) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("probe SO_PEERPIDFD: %w", err)
	}
	return true, unix.Close(pidfd)
}

func pidfdByNumber(fd int) (int, error) {
	cred, err := credOf(fd)
	if err != nil {
		return -1, err
	}
	if cred.PID == 0 {
		return -1, fmt.Errorf("the peer is in a pid namespace that is not visible here: %w", unix.EOPNOTSUPP)
	}
	return unix.PidfdOpen(int(cred.PID), 0)
}
