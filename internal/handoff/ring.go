package handoff

import (
	"encoding/binary"
	"fmt"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A ring is an io_uring(7) of one entry, for the one thing that accept4(2) cannot do: accept without waiting from a socket that
// blocks, whose O_NONBLOCK is a program's and not to be touched (IORING_ACCEPT_DONTWAIT, Linux 6.10). It is the engine's.
type ring struct {
	fd         int
	mem        []byte // both queues
	entry      []byte // the entry of the submission queue
	sqTail     *uint32
	cqHead     *uint32
	completion []byte // both entries of the completion queue
	mask       uint32
	size       uint32 // of the address of the peer
}

// Of include/uapi/linux/io_uring.h.
const (
	ringParams     = 120 // struct io_uring_params
	ringSQ         = 40  // sq_off in it
	ringCQ         = 80  // cq_off in it
	ringFeatures   = 20
	ringSingleMmap = 1 << 0
	ringEntries    = 0x10000000 // IORING_OFF_SQES
	ringEntry      = 64         // struct io_uring_sqe
	ringCompletion = 16         // struct io_uring_cqe
	ringAccept     = 13         // IORING_OP_ACCEPT
	ringDontWait   = 1 << 1     // IORING_ACCEPT_DONTWAIT
	ringGetEvents  = 1 << 0     // IORING_ENTER_GETEVENTS
)

// newRing makes one that works. The error says why there is none: the kernel is older, or io_uring is not for this process
// (kernel.io_uring_disabled, seccomp).
func newRing() (_ *ring, err error) {
	var p [ringParams]byte
	fd, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, 1, uintptr(unsafe.Pointer(&p)), 0)
	if errno != 0 {
		return nil, fmt.Errorf("io_uring_setup: %w", errno)
	}
	r := &ring{fd: int(fd)}
	unix.CloseOnExec(r.fd)
	defer func() {
		if err != nil {
			r.close()
		}
	}()
	at := func(offset int) uint32 { return binary.NativeEndian.Uint32(p[offset:]) }
	if at(ringFeatures)&ringSingleMmap == 0 {
		return nil, fmt.Errorf("io_uring of before Linux 5.4: %w", unix.EOPNOTSUPP)
	}
	// sq_off: head, tail, ring_mask, ring_entries, flags, dropped, array. cq_off: head, tail, ring_mask, ring_entries, overflow, cqes.
	array, cqes := at(ringSQ+24), at(ringCQ+20)
	size := max(array+4*at(0), cqes+ringCompletion*at(4))
	const shared, access = unix.MAP_SHARED | unix.MAP_POPULATE, unix.PROT_READ | unix.PROT_WRITE
	if r.mem, err = unix.Mmap(r.fd, 0, int(size), access, shared); err != nil {
		return nil, fmt.Errorf("io_uring: mmap: %w", err)
	}
	if r.entry, err = unix.Mmap(r.fd, ringEntries, ringEntry, access, shared); err != nil {
		return nil, fmt.Errorf("io_uring: mmap: %w", err)
	}
	r.sqTail = (*uint32)(unsafe.Pointer(&r.mem[at(ringSQ+4)]))
	r.cqHead = (*uint32)(unsafe.Pointer(&r.mem[at(ringCQ)]))
	r.mask = binary.NativeEndian.Uint32(r.mem[at(ringCQ+8):])
	r.completion = r.mem[cqes:]
	binary.NativeEndian.PutUint32(r.mem[array:], 0)
	// A kernel that does not know the flag refuses it (EINVAL) before it looks for the descriptor.
	if _, errno := r.accept(-1, new(unix.RawSockaddrInet6)); errno != unix.EBADF {
		return nil, fmt.Errorf("io_uring: accept without waiting: %w", errno)
	}
	return r, nil
}

// close may be called of a ring that is half made.
func (r *ring) close() {
	if r.entry != nil {
		_ = unix.Munmap(r.entry)
	}
	if r.mem != nil {
		_ = unix.Munmap(r.mem)
	}
	_ = unix.Close(r.fd)
}

// accept is accept4(2) that never waits; EAGAIN where there is no connection. from is not on a stack: the kernel writes to it.
func (r *ring) accept(fd int, from *unix.RawSockaddrInet6) (int, syscall.Errno) {
	r.size = unix.SizeofSockaddrInet6
	e := r.entry
	clear(e)
	e[0] = ringAccept
	binary.NativeEndian.PutUint16(e[2:], ringDontWait)
	binary.NativeEndian.PutUint32(e[4:], uint32(fd))
	binary.NativeEndian.PutUint64(e[8:], uint64(uintptr(unsafe.Pointer(&r.size))))
	binary.NativeEndian.PutUint64(e[16:], uint64(uintptr(unsafe.Pointer(from))))
	binary.NativeEndian.PutUint32(e[28:], unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
	atomic.AddUint32(r.sqTail, 1)
	for {
		// It is done when this returns: nothing in it waits.
		_, _, errno := unix.RawSyscall6(unix.SYS_IO_URING_ENTER, uintptr(r.fd), 1, 1, ringGetEvents, 0, 0)
		if errno == unix.EINTR {
			continue
		}
		if errno == unix.EAGAIN {
			errno = unix.ENOMEM // there is none for the request; EAGAIN of accept4 is another thing
		}
		if errno != 0 {
			return -1, errno
		}
		break
	}
	head := atomic.LoadUint32(r.cqHead)
	result := int32(binary.NativeEndian.Uint32(r.completion[(head&r.mask)*ringCompletion+8:]))
	atomic.StoreUint32(r.cqHead, head+1)
	if result < 0 {
		return -1, syscall.Errno(-result)
	}
	if r.size == 0 {
		from.Family = unix.AF_UNSPEC
	}
	return int(result), 0
}
