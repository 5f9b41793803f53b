package client

import (
	"golang.org/x/sys/unix"
)

// A message whose descriptors find no free numbers loses them: those clients are reset. So near RLIMIT_NOFILE a message is looked at
// before it is taken (docs/PROTOCOL.md), which costs a system call and a few closes. Elsewhere it costs one short poll(2) for some dozens
// of connections to know that there is no need for it.

// descriptors are the free ones of this process, as far as a queue has to know. New ones get the lowest numbers, so when the highest are
// free there are at least so many.
type descriptors struct {
	budget int  // connections that may come before the next look
	near   bool // the limit, or have been lately
	full   bool // the last message did not fit
	polls  []unix.PollFd
}

const (
	highest = 256 // numbers that count
	looks   = 16  // so many of them are looked at
	plenty  = 64  // free ones, with which no message is looked at
	perFree = 4   // of free numbers to a connection: a program may open some more for each
	soonest = 16  // connections to the next look near the limit
)

// scarce says whether the next message is to be looked at before it is taken.
func (d *descriptors) scarce() bool {
	if d.budget <= 0 {
		free := d.free()
		d.near = free < plenty
		d.budget = max(free/perFree, soonest)
	}
	return d.near
}

// free is about how many of the highest numbers are free: of those poll(2) says POLLNVAL.
func (d *descriptors) free() (n int) {
	var limit unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &limit) != nil {
		return 0
	}
	top := int(min(limit.Cur, 1<<30))
	window := min(top, highest)
	step := max(window/looks, 1)
	d.polls = d.polls[:0]
	for i := top - 1; i >= top-window; i -= step {
		d.polls = append(d.polls, unix.PollFd{Fd: int32(i)})
	}
	if _, err := unix.Poll(d.polls, 0); err != nil {
		return 0
	}
	for _, p := range d.polls {
		if p.Revents&unix.POLLNVAL != 0 {
			n += step
		}
	}
	return n
}

// none says whether there is still no descriptor for what did not fit. With some there may be: portd sends less at a time then.
func (d *descriptors) none(fd int) bool {
	if !d.full {
		return false
	}
	n, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err == nil {
		_ = unix.Close(n)
		d.full = false
	}
	return d.full
}

// exhausted notes that a message did not fit.
func (d *descriptors) exhausted() { d.full, d.near, d.budget = true, true, soonest }

func closeEach(fds []int) {
	for _, fd := range fds {
		_ = unix.Close(fd)
	}
}
