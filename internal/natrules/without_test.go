package natrules_test

import (
	"os"
	"runtime"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/natrules"
	"github.com/portd/portd/internal/nstest"
)

// A kernel that is built without nfnetlink has no rules of nftables, and keeps nobody from starting.
func TestKernelWithoutNfnetlink(t *testing.T) {
	nstest.Need(t)
	nstest.Descriptors(t)
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // ends with the goroutine
		if err := refuse(unix.NETLINK_NETFILTER, unix.EPROTONOSUPPORT); err != nil {
			t.Errorf("seccomp: %v", err)
			return
		}
		r, err := natrules.Open()
		if err != nil {
			t.Error(err)
			return
		}
		defer r.Close()
		if os.Geteuid() == 0 { // anybody else may not see which tables the kernel's own iptables have
			compare(t, nil, seen(t, r, 0, 1, 65535))
		}
	}()
	<-done
}

// refuse has socket(2) of a netlink protocol fail on this thread from now on (seccomp(2)).
func refuse(protocol uint32, errno unix.Errno) error {
	const number, first, third = 0, 16, 32 // in struct seccomp_data, of arguments the low half where that comes first
	load := func(at uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: at}
	}
	orPass := func(k uint32, left uint8) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: left, K: k}
	}
	program := []unix.SockFilter{
		load(number), orPass(unix.SYS_SOCKET, 5),
		load(first), orPass(unix.AF_NETLINK, 3),
		load(third), orPass(protocol, 1),
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
