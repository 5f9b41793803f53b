package sockdiag

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"
)

// maxChunk is the most that the kernel puts into one message of a dump (netlink_dump in net/netlink/af_netlink.c).
const maxChunk = 32 << 10

var chunks = sync.Pool{New: func() any { b := make([]byte, maxChunk); return &b }}

// A dumper asks sock_diag(7) on a socket, one question at a time. The kernel has an answer ready when the question has been sent, so that
// nothing here ever waits: there is no use in Go's netpoller, nor in a deadline.
type dumper struct {
	fd  int
	seq uint32
}

// newDumper makes one for the network namespace of the calling thread; it may be used on any, and must be closed.
func newDumper() (*dumper, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return nil, err
	}
	return &dumper{fd: fd}, nil
}

func (d *dumper) close() { _ = unix.Close(d.fd) }

// dump calls yield with each message of the answer to a request of type kind; they are gone when it returns. After an error the
// dumper is of no more use.
func (d *dumper) dump(kind uint16, request []byte, yield func(message []byte) error) error {
	d.seq++
	b := make([]byte, unix.NLMSG_HDRLEN, 128) // more than any request takes
	binary.NativeEndian.PutUint32(b, uint32(unix.NLMSG_HDRLEN+len(request)))
	binary.NativeEndian.PutUint16(b[4:], kind)
	binary.NativeEndian.PutUint16(b[6:], unix.NLM_F_REQUEST|unix.NLM_F_DUMP)
	binary.NativeEndian.PutUint32(b[8:], d.seq)
	if _, err := unix.Write(d.fd, append(b, request...)); err != nil { // to the kernel, where nobody else is named
		return err
	}
	chunk := chunks.Get().(*[]byte)
	defer chunks.Put(chunk)
	for {
		n, err := unix.Read(d.fd, *chunk)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		if done, err := messages((*chunk)[:n], yield); done || err != nil {
			return err
		}
	}
}

// messages calls yield with what each netlink message in b carries (netlink(7)). done says that they were the last.
func messages(b []byte, yield func(message []byte) error) (done bool, err error) {
	for len(b) >= unix.NLMSG_HDRLEN {
		size, kind := int(binary.NativeEndian.Uint32(b)), binary.NativeEndian.Uint16(b[4:])
		if size < unix.NLMSG_HDRLEN || size > len(b) {
			return false, fmt.Errorf("message of %d bytes in the %d left of an answer", size, len(b))
		}
		data := b[unix.NLMSG_HDRLEN:size]
		switch kind {
		case unix.NLMSG_DONE, unix.NLMSG_ERROR:
			if len(data) >= 4 {
				if errno := -int32(binary.NativeEndian.Uint32(data)); errno > 0 {
					return true, unix.Errno(errno)
				}
			}
			return true, nil
		case unix.NLMSG_NOOP:
		default:
			if err := yield(data); err != nil {
				return false, err
			}
		}
		b = b[min((size+3)&^3, len(b)):]
	}
	return false, nil
}
