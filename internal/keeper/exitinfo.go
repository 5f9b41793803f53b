package keeper

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// pidfdInfo is struct pidfd_info as it was first (linux/pidfd.h).
type pidfdInfo struct {
	mask, cgroup uint64
	ids          [11]uint32 // pid, tgid, ppid and the users and groups
	exitCode     int32      // as wait4(2) has it, where mask says so
}

const (
	pidfdGetInfo  = 3<<30 | unsafe.Sizeof(pidfdInfo{})<<16 | 0xff<<8 | 11 // PIDFD_GET_INFO
	pidfdInfoExit = 1 << 3                                                // PIDFD_INFO_EXIT
)

// exitStatus is how a process ended that is another one's child; nil where the kernel does not tell, as before Linux 6.15, or as long as
// its parent has not waited for it.
func exitStatus(pidfd int) *unix.WaitStatus {
	info := pidfdInfo{mask: pidfdInfoExit}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(pidfd), pidfdGetInfo, uintptr(unsafe.Pointer(&info)))
	if errno != 0 || info.mask&pidfdInfoExit == 0 {
		return nil
	}
	status := unix.WaitStatus(info.exitCode)
	return &status
}
