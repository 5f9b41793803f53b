package holder

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// threadArea is where the calling thread's own data is (arch_prctl(2), ARCH_GET_FS), or 0.
func threadArea() uintptr {
	const getFS = 0x1003
	var at uintptr
	_, _, _ = unix.RawSyscall(unix.SYS_ARCH_PRCTL, getFS, uintptr(unsafe.Pointer(&at)), 0)
	return at
}
