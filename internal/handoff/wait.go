package handoff

import (
	"encoding/binary"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// waitBounds are the upper bounds of the histogram's buckets; one more has no bound. The kernel counts milliseconds, and on many
// machines four at a time.
var waitBounds = [...]time.Duration{
	time.Millisecond, 2 * time.Millisecond, 5 * time.Millisecond,
	10 * time.Millisecond, 20 * time.Millisecond, 50 * time.Millisecond,
	100 * time.Millisecond, 200 * time.Millisecond, 500 * time.Millisecond,
	time.Second, 2 * time.Second, 5 * time.Second, 10 * time.Second,
}

// A WaitBucket counts samples that took at most so long, and more than the bucket before has; the last one has no bound, and AtMost 0.
type WaitBucket = struct {
	AtMost time.Duration
	Count  uint64
}

type histogram [len(waitBounds) + 1]uint64

func (h *histogram) buckets() []WaitBucket {
	all := make([]WaitBucket, len(h))
	for i, n := range h {
		all[i].Count = n
		if i < len(waitBounds) {
			all[i].AtMost = waitBounds[i]
		}
	}
	return all
}

func (h *histogram) add(d time.Duration) {
	i := 0
	for i < len(waitBounds) && d > waitBounds[i] {
		i++
	}
	h[i]++
}

// A sampler asks of some messages how long their first connection has waited since it was established. To ask takes as long as to hand a
// connection over by half, so of a busy listener it is one message in 64, and of a quiet one each.
type sampler struct {
	waits histogram
	skip  uint32 // messages
}

const (
	leastSampled = 64  // one in so many at least
	sampledAlone = 256 // connections in a second of which each message may be sampled
)

// due counts a message of a listener whose rate is r, and says whether to sample it.
func (s *sampler) due(r *rate) bool {
	if s.skip > 0 {
		s.skip--
		return false
	}
	s.skip = min(leastSampled-1, r.lately()/sampledAlone)
	return true
}

// lastDataSent is an offset in struct tcp_info (linux/tcp.h), of a number of milliseconds.
const lastDataSent = 44

// tcpInfo is as much of it as is wanted here. It is not on a stack: the kernel writes to it.
type tcpInfo struct {
	info [lastDataSent + 4]byte
	size uint32
}

// waited is how long ago a connection was established on which nothing was sent yet: for that the kernel takes the time since data was
// sent. ok is false for a socket that is not TCP's.
func (t *tcpInfo) waited(fd int) (d time.Duration, ok bool) {
	if !t.get(fd) {
		return 0, false
	}
	return time.Duration(binary.NativeEndian.Uint32(t.info[lastDataSent:])) * time.Millisecond, true
}

// backlog is how many connections wait in a listening socket for somebody to accept them, which the kernel says in the place of what a
// connection has unacknowledged. It is 0 for a socket that is not TCP's.
func (t *tcpInfo) backlog(fd int) uint32 {
	const unacked = 24
	if !t.get(fd) {
		return 0
	}
	return binary.NativeEndian.Uint32(t.info[unacked:])
}

func (t *tcpInfo) get(fd int) bool {
	t.size = uint32(len(t.info))
	_, _, errno := syscall.RawSyscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.IPPROTO_TCP, unix.TCP_INFO,
		uintptr(unsafe.Pointer(&t.info)), uintptr(unsafe.Pointer(&t.size)), 0)
	return errno == 0 && t.size == uint32(len(t.info))
}
