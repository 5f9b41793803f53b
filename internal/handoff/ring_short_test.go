package handoff

import (
	"runtime"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A kernel that has no memory for a request says EAGAIN (io_uring_enter(2)), which is not that there is no connection: epoll does
// not tell of that one again.
func TestRingWithoutMemory(t *testing.T) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // ends with the goroutine
		r, err := newRing()
		if err != nil {
			t.Logf("needs io_uring with IORING_ACCEPT_DONTWAIT: %v", err)
			return
		}
		defer r.close()
		if err := refuse(unix.SYS_IO_URING_ENTER, unix.EAGAIN); err != nil {
			t.Errorf("seccomp: %v", err)
			return
		}
		if fd, errno := r.accept(-1, new(unix.RawSockaddrInet6)); errno != unix.ENOMEM {
			t.Errorf("%d, %v; want ENOMEM", fd, errno)
		}
	}()
	<-done
}

// Where io_uring is not for this process there is none, and that is all.
func TestRingForbidden(t *testing.T) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if err := refuse(unix.SYS_IO_URING_SETUP, unix.EPERM); err != nil {
			t.Errorf("seccomp: %v", err)
			return
		}
		if r, err := newRing(); err == nil {
			r.close()
			t.Error("it made a ring")
		}
	}()
	<-done
}

// refuse has a system call fail on this thread from now on (seccomp(2)).
func refuse(call uint32, errno unix.Errno) error {
	program := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS}, // seccomp_data.nr
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: 1, K: call},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | uint32(errno)},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	prog := unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}
	if _, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, uintptr(unsafe.Pointer(&prog))); errno != 0 {
		return errno
	}
	return nil
}
