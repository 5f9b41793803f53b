package boltstore

import (
	"math/rand/v2"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A faulty makes the system calls with which files are written fail, for the whole process.
type faulty struct {
	listener int

	mu      sync.Mutex
	at      fault // zero: nothing fails
	lasting bool
	rest    bool       // what a write that failed has left to write is to fail yet
	seen    int64      // calls that at counts, since fail
	failed  unix.Errno // what the last that failed got

	kill  bool // the whole process, in place of failing
	short bool // each write writes a half, and says so
	tell  func(call int32, args [6]uint64)
}

// A fault is the nth of the calls that are call.
type fault struct {
	call int32
	nth  int64
}

const anyCall = -1

// What the calls fail with.
var faultErrno = map[int32]unix.Errno{
	unix.SYS_PWRITE64:  unix.ENOSPC,
	unix.SYS_FTRUNCATE: unix.ENOSPC,
	unix.SYS_FSYNC:     unix.EIO,
	unix.SYS_FDATASYNC: unix.EIO,
	unix.SYS_RENAMEAT:  unix.EIO,
	unix.SYS_UNLINKAT:  unix.EIO,
	unix.SYS_LINKAT:    unix.EIO,
	unix.SYS_OPENAT:    unix.EMFILE,
}

// fail has the fault happen; where it lasts, all calls fail from there on.
func (f *faulty) fail(at fault, lasting bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.at, f.lasting, f.rest, f.seen, f.failed = at, lasting, false, 0, 0
}

// shorten has each write from now on write a half, and say so.
func (f *faulty) shorten() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.short = true
}

// told has tell called before each of the calls, while who makes it waits.
func (f *faulty) told(tell func(call int32, args [6]uint64)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.tell = tell
}

func (f *faulty) teller() func(int32, [6]uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.tell
}

func (f *faulty) stop() { f.fail(fault{}, false) }

// errno is 0 where nothing has failed.
func (f *faulty) errno() unix.Errno {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.failed
}

// next says what becomes of a call. undo is for where it was interrupted, and is made again.
func (f *faulty) next(call int32) (errno unix.Errno, undo func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	seen, failed := f.seen, f.failed
	if f.at.call == call || f.at.call == anyCall {
		f.seen++
	}
	if f.at.nth != 0 && (f.seen == f.at.nth && f.seen > seen || f.lasting && f.seen >= f.at.nth) {
		errno = faultErrno[call]
		f.failed = errno
	}
	return errno, func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.seen, f.failed = seen, failed
	}
}

const envFaulty = "BOLTSTORE_TEST_FAULTY"

// faults runs the test once more in a process of its own, for what it does to a process is for good. There it returns
// what makes calls fail, and here nil when that process has ended.
func faults(t *testing.T) *faulty {
	if os.Getenv(envFaulty) == "" {
		t.Parallel()
		rerun(t, &exec.Cmd{Env: append(os.Environ(), envFaulty+"=1")})
		return nil
	}
	f := &faulty{}
	var err error
	if f.listener, err = filter(); err != nil {
		t.Skipf("needs seccomp(2) with user notification: %v", err)
	}
	go f.serve()
	return f
}

// filter has the kernel ask before each of the calls (seccomp_unotify(2)).
func filter() (listener int, err error) {
	var program []unix.SockFilter
	add := func(code uint16, jt, jf uint8, k uint32) {
		program = append(program, unix.SockFilter{Code: code, Jt: jt, Jf: jf, K: k})
	}
	add(unix.BPF_LD|unix.BPF_W|unix.BPF_ABS, 0, 0, 0) // seccomp_data.nr
	for nr := range faultErrno {
		add(unix.BPF_JMP|unix.BPF_JEQ|unix.BPF_K, 0, 1, uint32(nr))
		add(unix.BPF_RET|unix.BPF_K, 0, 0, unix.SECCOMP_RET_USER_NOTIF)
	}
	add(unix.BPF_RET|unix.BPF_K, 0, 0, unix.SECCOMP_RET_ALLOW)
	prog := unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}

	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return 0, err
	}
	const flags = unix.SECCOMP_FILTER_FLAG_NEW_LISTENER | unix.SECCOMP_FILTER_FLAG_TSYNC | unix.SECCOMP_FILTER_FLAG_TSYNC_ESRCH
	fd, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, flags, uintptr(unsafe.Pointer(&prog)))
	if errno != 0 {
		return 0, errno
	}
	return int(fd), nil
}

// serve answers the kernel until the process ends.
func (f *faulty) serve() {
	for {
		// struct seccomp_notif and struct seccomp_notif_resp
		var ask struct {
			id         uint64
			pid, flags uint32
			nr         int32
			arch       uint32
			ip         uint64
			args       [6]uint64
		}
		if err := f.ioctl(unix.SECCOMP_IOCTL_NOTIF_RECV, unsafe.Pointer(&ask)); err != nil {
			continue // the call was interrupted by a signal
		}
		var answer struct {
			id    uint64
			val   int64
			error int32
			flags uint32
		}
		answer.id = ask.id
		errno, undo := f.next(ask.nr)
		if ask.nr == unix.SYS_PWRITE64 {
			answer.val, errno = f.part(ask.args, errno)
		}
		if f.kill && errno != 0 {
			_ = unix.Kill(unix.Getpid(), unix.SIGKILL)
			select {}
		}
		if tell := f.teller(); tell != nil {
			tell(ask.nr, ask.args)
		}
		switch {
		case errno != 0:
			answer.error = -int32(errno)
		case answer.val == 0:
			answer.flags = unix.SECCOMP_USER_NOTIF_FLAG_CONTINUE
		}
		if err := f.ioctl(unix.SECCOMP_IOCTL_NOTIF_SEND, unsafe.Pointer(&answer)); err != nil {
			undo()
		}
	}
}

// part has a write that fails, or in which the process is killed, write a half now and then, as it is on a disk that becomes full: the write
// says how much it was, and the next one, of the rest, fails.
func (f *faulty) part(args [6]uint64, errno unix.Errno) (wrote int64, then unix.Errno) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case f.short && args[2] > 1:
		return half(args), 0
	case f.rest:
		f.rest = false
		return 0, faultErrno[unix.SYS_PWRITE64]
	case errno == 0 || rand.IntN(2) == 0:
		return 0, errno
	}
	if wrote = half(args); wrote == 0 || f.kill {
		return 0, errno
	}
	f.rest = true
	return wrote, 0
}

// half writes the first half of what pwrite64(2) with such arguments would, by a call that nobody asks about.
func half(args [6]uint64) (n int64) {
	part := [2]uint64{args[1], args[2] / 2} // struct iovec
	wrote, _, errno := unix.Syscall6(unix.SYS_PWRITEV, uintptr(args[0]), uintptr(unsafe.Pointer(&part)), 1, uintptr(args[3]), 0, 0)
	if errno != 0 {
		return 0
	}
	return int64(wrote)
}

func (f *faulty) ioctl(request uintptr, p unsafe.Pointer) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(f.listener), request, uintptr(p)); errno != 0 {
		return errno
	}
	return nil
}
