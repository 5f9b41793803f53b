package sockdiag

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"
)

// A UnixSocket is a unix(7) socket that has a file.
type UnixSocket struct {
	State      State  // Listening, Established, or Unconnected where it is bound and no more
	Inode      uint64 // of the socket, by which /proc/PID/fd has it
	UID        uint32 // of who made it; 0 from kernels before 5.3, which do not say
	Major      uint32 // of the device that its file is on
	Minor      uint32
	FileNumber uint32 // the file's inode number, of which the kernel tells 32 bits
}

// From include/uapi/linux/unix_diag.h.
const (
	udiagShowVFS   = 1 << 1
	udiagShowUID   = 1 << 6
	unixDiagVFS    = 1
	unixDiagUID    = 7
	unixDiagMsgLen = 16
)

// ListUnix lists the unix sockets that have a file, of the calling thread's network namespace: what was bound in another one is not
// among them, though its file may be seen from here. The error is the kernel's; ENOENT where it lacks unix_diag.
func ListUnix() (all []UnixSocket, err error) {
	d, err := newDumper()
	if err != nil {
		return nil, fmt.Errorf("sock_diag: %w", err)
	}
	defer d.close()
	req := make([]byte, 24)
	req[0] = unix.AF_UNIX
	binary.NativeEndian.PutUint32(req[4:], ^uint32(0)) // every state
	binary.NativeEndian.PutUint32(req[12:], udiagShowVFS|udiagShowUID)
	binary.NativeEndian.PutUint64(req[16:], ^uint64(0)) // no cookie
	err = d.dump(unix.SOCK_DIAG_BY_FAMILY, req, func(m []byte) error {
		s, ok, err := parseUnix(m)
		if ok {
			all = append(all, s)
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("sock_diag of unix sockets: %w", err)
	}
	return all, nil
}

// parseUnix reads a struct unix_diag_msg with its attributes; ok says that the socket has a file.
func parseUnix(m []byte) (s UnixSocket, ok bool, err error) {
	if len(m) < unixDiagMsgLen {
		return s, false, fmt.Errorf("a unix socket in %d bytes", len(m))
	}
	s.State, s.Inode = State(m[2]), uint64(binary.NativeEndian.Uint32(m[4:]))
	for b := m[unixDiagMsgLen:]; len(b) >= unix.SizeofRtAttr; {
		size, kind := int(binary.NativeEndian.Uint16(b)), binary.NativeEndian.Uint16(b[2:])
		if size < unix.SizeofRtAttr || size > len(b) {
			return s, false, fmt.Errorf("attribute of %d bytes in the %d left of a unix socket", size, len(b))
		}
		value := b[unix.SizeofRtAttr:size]
		switch {
		case kind == unixDiagVFS && len(value) >= 8:
			dev := binary.NativeEndian.Uint32(value[4:]) // as the kernel has it: 12 bits of major, 20 of minor
			s.FileNumber, s.Major, s.Minor, ok = binary.NativeEndian.Uint32(value), dev>>20, dev&(1<<20-1), true
		case kind == unixDiagUID && len(value) >= 4:
			s.UID = binary.NativeEndian.Uint32(value)
		}
		b = b[min((size+3)&^3, len(b)):]
	}
	return s, ok, nil
}
