package peercred

import "syscall"

// ByNumber is the way that a kernel without SO_PEERPIDFD leaves.
func ByNumber(conn syscall.Conn) (int, error) {
	return control(conn, "peer pidfd", pidfdByNumber)
}
