//go:build !linux || !(amd64 || arm64)

package holder

import (
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"
)

func child(_, _, _ int) (pid, pidfd int, err error) {
	return 0, -1, fmt.Errorf("none for %s: %w", runtime.GOARCH, unix.ENOSYS)
}
