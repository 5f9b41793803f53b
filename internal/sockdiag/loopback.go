package sockdiag

import (
	"errors"

	"golang.org/x/sys/unix"
)

// BindLoopback binds an IPv4 socket to some port of 127.0.0.1. Where all that the kernel gives out is in
// ip_local_reserved_ports, which is where portd puts what it holds, it is another one that is free.
func BindLoopback(fd int) error {
	at := unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}
	err := unix.Bind(fd, &at)
	for at.Port = 65535; errors.Is(err, unix.EADDRINUSE) && at.Port >= 1024; at.Port-- {
		err = unix.Bind(fd, &at)
	}
	return err
}
