package shortage_test

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/shortage"
)

func TestOf(t *testing.T) {
	for _, tt := range []struct {
		errno unix.Errno
		want  string
	}{
		{unix.EMFILE, "RLIMIT_NOFILE"},
		{unix.ENFILE, "fs.file-max"},
		{unix.ENOMEM, "memory cgroup"},
		{unix.ENOBUFS, "memory cgroup"},
		{unix.ETOOMANYREFS, "RLIMIT_NOFILE"},
		{unix.ENOSPC, "free some on the disk"},
		{unix.EDQUOT, "quota"},
		{unix.EFBIG, "RLIMIT_FSIZE"},
	} {
		err := fmt.Errorf("open: %w", &os.PathError{Op: "open", Path: "x", Err: tt.errno})
		got := shortage.Of(err)
		if got == nil || !strings.Contains(got.Error(), tt.want) || !errors.Is(got, tt.errno) {
			t.Errorf("%v: %v, want %s in it", tt.errno, got, tt.want)
		}
	}
	for _, err := range []error{nil, unix.EACCES, errors.New("too many open files")} {
		if got := shortage.Of(err); got != nil {
			t.Errorf("%v: %v", err, got)
		}
	}
}
