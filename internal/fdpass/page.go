package fdpass

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// sealed is what makes a shared mapping safe: without it the other end could cut the file short, and our next access would be a
// SIGBUS, which kills a Go program.
const sealed = unix.F_SEAL_SHRINK | unix.F_SEAL_GROW

// SealedPage makes size bytes of zeroed memory to share with another process: a memfd whose size nobody can change any more (memfd_create(2)),
// and its mapping. Both are the caller's: unix.Close(fd), unix.Munmap(mem); either may go first. The other end maps the
// descriptor by [MapPage] and can write what it likes at any time: read each value once, and trust none.
func SealedPage(size int) (fd int, mem []byte, err error) {
	fd, err = memfd()
	if err != nil {
		return -1, nil, fmt.Errorf("shared page: %w", err)
	}
	defer func() {
		if err != nil {
			_ = unix.Close(fd)
			fd = -1
		}
	}()
	if err := unix.Ftruncate(fd, int64(size)); err != nil {
		return fd, nil, fmt.Errorf("shared page of %d bytes: %w", size, err)
	}
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, sealed|unix.F_SEAL_SEAL); err != nil {
		return fd, nil, fmt.Errorf("seal shared page: %w", err)
	}
	mem, err = mapShared(fd, size)
	return fd, mem, err
}

// MapPage maps the size bytes that another process shares with us by fd. It refuses a descriptor of any other size, or whose size can still
// change. fd stays the caller's and may be closed afterwards; mem is unmapped by unix.Munmap.
func MapPage(fd, size int) (mem []byte, err error) {
	// Seals first: once they are there, the size that fstat tells is for good.
	seals, err := unix.FcntlInt(uintptr(fd), unix.F_GET_SEALS, 0)
	if err != nil {
		return nil, fmt.Errorf("shared page: not a sealable memory file: %w", err)
	}
	if seals&sealed != sealed {
		return nil, fmt.Errorf("shared page: its size is not sealed (seals %#x)", seals)
	}
	var stat unix.Stat_t
	if err := unix.Fstat(fd, &stat); err != nil {
		return nil, fmt.Errorf("shared page: %w", err)
	}
	if stat.Size != int64(size) {
		return nil, fmt.Errorf("shared page: it has %d bytes, want %d", stat.Size, size)
	}
	return mapShared(fd, size)
}

func memfd() (int, error) {
	const flags = unix.MFD_CLOEXEC | unix.MFD_ALLOW_SEALING
	fd, err := unix.MemfdCreate("portd", flags|unix.MFD_NOEXEC_SEAL)
	if errors.Is(err, unix.EINVAL) { // before Linux 6.3; later ones may be set up to refuse a memfd that could be executed
		return unix.MemfdCreate("portd", flags)
	}
	return fd, err
}

func mapShared(fd, size int) ([]byte, error) {
	mem, err := unix.Mmap(fd, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map shared page of %d bytes: %w", size, err)
	}
	return mem, nil
}
