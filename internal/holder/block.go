//go:build linux && (amd64 || arm64)

package holder

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A block is all the memory that a holder has, apart from its code: the daemon fills it in before it makes the holder, and lies in pages of
// their own, outside Go's heap. spawn_*.s knows it by the offsets of the fields (go_asm.h), so its fields have no types with methods and
// no pointers that Go's collector would want to know of.
type block struct {
	flags  uint64 // of clone(2)
	pidfd  uint64 // the daemon's descriptor of the holder; written by clone
	all    uint64 // signals: every one
	before uint64 // what the calling thread blocked before
	term   uint64 // SIGTERM alone

	none  [4]uint64 // struct sigaction: the default
	name  [16]byte
	root  [8]byte
	gaps  [maxGaps + 1]gap // what it unmaps; an empty one ends the list
	poll  [2]pollfd        // the socket, and the daemon
	polls uint64           // how many of them it waits for

	socket  int64 // its own end
	outside int64 // the number that the other end has in the table, and its identity
	dev     uint64
	ino     uint64
	stat    [32]uint64 // struct stat, of which the first two words are device and inode

	in     msghdr
	inIov  [2]unix.Iovec
	out    msghdr
	outIov [2]unix.Iovec

	request request
	reply   reply
	bits    [chunk / 64]uint64
	peer    [128]byte // struct sockaddr
	peerLen uint64

	rights  cmsghdr
	numbers [most]int32 // right behind rights: what is received as numbers is sent as descriptors
}

type gap struct{ at, size uintptr }

// The assembler knows a package's own types only.
type (
	pollfd  unix.PollFd
	msghdr  unix.Msghdr
	cmsghdr unix.Cmsghdr
)

const maxGaps = 500

// newBlock makes a block in pages of its own. The other end's number may be closed and reused while the holder lives, which is why it
// is known by its inode too.
func newBlock(socket, outside, daemon int) (mem []byte, b *block, err error) {
	var other unix.Stat_t
	if err := unix.Fstat(outside, &other); err != nil {
		return nil, nil, fmt.Errorf("fstat: %w", err)
	}
	mem, err = unix.Mmap(-1, 0, int(unsafe.Sizeof(block{})), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, nil, fmt.Errorf("mmap: %w", err)
	}
	b = (*block)(unsafe.Pointer(unsafe.SliceData(mem)))
	b.flags = cloneFlags
	b.all = ^uint64(0)
	b.term = 1 << (uint(unix.SIGTERM) - 1)
	copy(b.name[:], Command)
	copy(b.root[:], "/")
	b.poll[0] = pollfd{Fd: int32(socket), Events: unix.POLLIN}
	b.poll[1] = pollfd{Fd: int32(daemon), Events: unix.POLLIN}
	b.polls = 2
	b.socket, b.outside, b.dev, b.ino = int64(socket), int64(outside), uint64(other.Dev), other.Ino

	b.inIov[0].Base, b.inIov[0].Len = (*byte)(unsafe.Pointer(&b.request)), uint64(unsafe.Sizeof(b.request))
	b.inIov[1].Base, b.inIov[1].Len = (*byte)(unsafe.Pointer(&b.numbers)), uint64(unsafe.Sizeof(b.numbers))
	b.in.Iov, b.in.Iovlen = &b.inIov[0], 2
	b.outIov[0].Base, b.outIov[0].Len = (*byte)(unsafe.Pointer(&b.reply)), uint64(unsafe.Sizeof(b.reply))
	b.outIov[1].Base, b.outIov[1].Len = (*byte)(unsafe.Pointer(&b.bits)), uint64(unsafe.Sizeof(b.bits))
	b.out.Iov, b.out.Iovlen = &b.outIov[0], 1
	b.out.Control = (*byte)(unsafe.Pointer(&b.rights))
	b.rights.Level, b.rights.Type = unix.SOL_SOCKET, unix.SCM_RIGHTS

	// Without /proc the holder keeps the daemon's memory as it was when it started, and works as well.
	if maps, err := os.ReadFile("/proc/self/maps"); err == nil {
		page := uintptr(os.Getpagesize())
		code, self := text()&^(page-1), uintptr(unsafe.Pointer(b))
		keep := []gap{{code, text() + maxText - code}, {self, uintptr(len(mem))}}
		if cgo {
			// Where the C library is, it has told the kernel to write into the thread's area whenever it is scheduled (rseq(2)).
			keep = append(keep, gap{threadArea() - 16*page, 32 * page})
		}
		copy(b.gaps[:maxGaps], gaps(maps, page, keep))
	}
	return mem, b, nil
}

// gaps are the mappings in a /proc/PID/maps that are not to be kept, cut to whole pages. The kernel's own, [vdso] and the like, may be sealed and
// stay. Each mapping is one gap, so that one that cannot be unmapped spoils no other; where there would be too many, what has
// nothing to be kept in between becomes one.
func gaps(maps []byte, page uintptr, keep []gap) []gap {
	var all []gap
	for _, join := range []bool{false, true} {
		all = all[:0]
		last := false // the last in all may grow
		for line := range bytes.Lines(maps) {
			fields := strings.Fields(string(line))
			if len(fields) < 5 {
				continue
			}
			low, high, _ := strings.Cut(fields[0], "-")
			from, err1 := strconv.ParseUint(low, 16, 64)
			to, err2 := strconv.ParseUint(high, 16, 64)
			if err1 != nil || err2 != nil {
				continue
			}
			if len(fields) > 5 && strings.HasPrefix(fields[5], "[v") {
				last = false
				continue
			}
			for _, g := range cut(uintptr(from), uintptr(to), page, keep) {
				if join && last && !between(all[len(all)-1].at, g.at, keep) {
					all[len(all)-1].size = g.at + g.size - all[len(all)-1].at
					continue
				}
				all = append(all, g)
				last = true
			}
		}
		if len(all) <= maxGaps {
			return all
		}
	}
	return all[:maxGaps]
}

// cut is what lies in from..to and not in one of keep.
func cut(from, to, page uintptr, keep []gap) []gap {
	rest := []gap{{from, to - from}}
	for _, k := range keep {
		low, high := k.at&^(page-1), (k.at+k.size+page-1)&^(page-1)
		var next []gap
		for _, r := range rest {
			end := r.at + r.size
			if r.at < min(low, end) {
				next = append(next, gap{r.at, min(low, end) - r.at})
			}
			if max(high, r.at) < end {
				next = append(next, gap{max(high, r.at), end - max(high, r.at)})
			}
		}
		rest = next
	}
	return rest
}

// between says whether something to be kept lies between two addresses.
func between(from, to uintptr, keep []gap) bool {
	for _, k := range keep {
		if k.at+k.size > from && k.at < to {
			return true
		}
	}
	return false
}
