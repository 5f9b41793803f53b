package client

import "syscall"

// SyscallConn gives access to the hand-off connection. A process that replaces itself by another program (execve(2)) lets a
// duplicate of it survive that: the attachment then lasts as long as the program.
func (a *Attachment) SyscallConn() (syscall.RawConn, error) { return a.conn.SyscallConn() }
