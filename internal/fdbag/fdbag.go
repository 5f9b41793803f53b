// Package fdbag puts many descriptors away in one, where what they refer to stays open and takes nothing of RLIMIT_NOFILE.
//
// A bag is a unix SEQPACKET socket whose peer is closed and in whose queue one message lies that carries the descriptors
// (unix(7), SCM_RIGHTS), and what is to be known of them, if the packer likes. It can be passed on and duplicated like any
// descriptor, and what is in it lives as long as any duplicate of the bag does. A bag never changes: who wants something out of it
// looks into it, packs what is to stay into a new one, and only then closes the old one, so that nothing is ever without a
// descriptor, whenever the process dies.
//
// The message is one byte, how many descriptors it carries, and then the payload.
package fdbag

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/fdpass"
)

const (
	// Most is how many descriptors one bag takes.
	Most = 250
	// MostPayload is how many bytes one takes beside them. A socket's send buffer as systems have it (net.core.wmem_default) has
	// room for three times as much.
	MostPayload = 64 << 10
)

// ErrFull: this user has as many descriptors in messages, whoever's they are, as RLIMIT_NOFILE allows; it does not count for
// processes with CAP_SYS_RESOURCE or CAP_SYS_ADMIN (ETOOMANYREFS).
var ErrFull = errors.New("too many descriptors of this user are in messages (RLIMIT_NOFILE counts them too)")

// A Bag is the descriptor of one, open until Close. It is for one goroutine at a time.
type Bag struct {
	fd, n int
}

// Pack makes a bag of 1 to Most descriptors and a payload of up to MostPayload bytes, which may be nil. The descriptors stay the
// caller's, who may close them at once. It is ErrFull where this user may not have so many, or the errno of socketpair(2), such as
// EMFILE.
func Pack(fds []int, payload []byte) (_ *Bag, err error) {
	if len(fds) == 0 || len(fds) > Most {
		return nil, fmt.Errorf("pack %d descriptors, a bag takes 1 to %d: %w", len(fds), Most, unix.EINVAL)
	}
	if len(payload) > MostPayload {
		return nil, fmt.Errorf("pack %d bytes beside descriptors, a bag takes %d: %w", len(payload), MostPayload, unix.EMSGSIZE)
	}
	ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("make a bag: %w", err)
	}
	defer unix.Close(ends[1])
	var s fdpass.Sender
	if err := s.Send(ends[1], append([]byte{byte(len(fds))}, payload...), fds); err != nil {
		_ = unix.Close(ends[0])
		if errors.Is(err, unix.ETOOMANYREFS) {
			err = ErrFull
		}
		return nil, fmt.Errorf("pack %d descriptors: %w", len(fds), err)
	}
	return &Bag{ends[0], len(fds)}, nil
}

// From is the bag that a descriptor is, as it came from another process; the descriptor is the Bag's from then on. Where it is
// none there is an error, and the descriptor stays the caller's.
func From(fd int) (*Bag, error) {
	message, err := look(fd)
	if err != nil {
		return nil, err
	}
	n := int(message[0])
	if n == 0 || n > Most {
		return nil, fmt.Errorf("look into a bag: it says that it has %d descriptors: %w", n, unix.EBADMSG)
	}
	return &Bag{fd, n}, nil
}

// look reads the message with a read that asks for no descriptors, so that none are made.
func look(fd int) ([]byte, error) {
	size, err := unix.IoctlGetInt(fd, unix.SIOCINQ)
	if err != nil {
		return nil, fmt.Errorf("look into a bag: %w", err)
	}
	if size < 1 || size > 1+MostPayload {
		return nil, fmt.Errorf("look into a bag: %d bytes are in it: %w", size, unix.EBADMSG)
	}
	message := make([]byte, size)
	n, _, err := unix.Recvfrom(fd, message, unix.MSG_PEEK|unix.MSG_DONTWAIT)
	if err == nil && n != size {
		err = fmt.Errorf("%d bytes of %d: %w", n, size, unix.EBADMSG)
	}
	if err != nil {
		return nil, fmt.Errorf("look into a bag: %w", err)
	}
	return message, nil
}

// Len is how many descriptors are in it, as its packer says.
func (b *Bag) Len() int { return b.n }

// FD is the bag's own descriptor; it stays the bag's.
func (b *Bag) FD() int { return b.fd }

// Payload returns the bytes that were packed with the descriptors, in the caller's memory. It opens none.
func (b *Bag) Payload() ([]byte, error) {
	message, err := look(b.fd)
	if err != nil {
		return nil, err
	}
	return message[1:], nil
}

// Open returns new descriptors, close-on-exec and the caller's to close, for all that is in the bag, in the order in which it was
// packed. The bag stays as it is. Where there are not enough numbers free for all (fdpass.ErrFDsTruncated) it returns none.
func (b *Bag) Open() ([]int, error) {
	var r fdpass.Receiver
	var n [1]byte
	_, fds, err := r.Peek(b.fd, n[:])
	if errors.Is(err, fdpass.ErrPayloadTruncated) && !errors.Is(err, fdpass.ErrFDsTruncated) {
		err = nil // the rest of the message is for Payload
	}
	if err == nil && len(fds) != b.n {
		err = fmt.Errorf("there are %d: %w", len(fds), fdpass.ErrFDsTruncated)
	}
	if err != nil {
		closeAll(fds)
		return nil, fmt.Errorf("open a bag of %d descriptors: %w", b.n, err)
	}
	return fds, nil
}

// Close closes the bag, and with it whatever has no other descriptor.
func (b *Bag) Close() error { return unix.Close(b.fd) }

func closeAll(fds []int) {
	for _, fd := range fds {
		_ = unix.Close(fd)
	}
}
