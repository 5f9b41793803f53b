package asuser_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/asuser"
)

const nobody = 65534

// What a stranger may not, portd may not for him; what is made for him is his; and afterwards everything is as before.
func TestRun(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("to act for another user takes root")
	}
	t.Parallel()
	secret, open := t.TempDir(), t.TempDir()
	for dir, mode := range map[string]fs.FileMode{secret: 0o700, open: 0o777} {
		if err := os.Chmod(dir, mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(filepath.Dir(dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	err := asuser.Run(nobody, nobody, func() error { return os.WriteFile(filepath.Join(secret, "x"), nil, 0o600) })
	if !errors.Is(err, fs.ErrPermission) {
		t.Errorf("a file in root's own directory: %v", err)
	}
	path := filepath.Join(open, "x")
	if err := asuser.Run(nobody, nobody, func() error { return os.WriteFile(path, nil, 0o600) }); err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if sys := st.Sys().(*syscall.Stat_t); sys.Uid != nobody || sys.Gid != nobody {
		t.Errorf("the file is %d:%d's", sys.Uid, sys.Gid)
	}
	if err := os.WriteFile(filepath.Join(secret, "y"), nil, 0o600); err != nil {
		t.Errorf("after it root is not root any more: %v", err)
	}
}

func TestRunAsOneself(t *testing.T) {
	t.Parallel()
	called := false
	if err := asuser.Run(uint32(os.Geteuid()), 12345, func() error { called = true; return nil }); err != nil || !called {
		t.Errorf("called: %t, %v", called, err)
	}
}

func TestRunCannot(t *testing.T) {
	if os.Geteuid() == 0 {
		t.Skip("root can")
	}
	t.Parallel()
	err := asuser.Run(0, 0, func() error { t.Error("it was called"); return nil })
	if !errors.Is(err, asuser.ErrCannot) {
		t.Error(err)
	}
}

// The first thread, which /proc shows as the process, stays root's.
func TestRunLeavesTheProcessAlone(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("to act for another user takes root")
	}
	for range 64 {
		err := asuser.Run(nobody, nobody, func() error {
			if unix.Gettid() == unix.Getpid() {
				t.Error("it runs on the first thread")
			}
			if unix.Geteuid() != nobody || unix.Getegid() != nobody {
				t.Errorf("the user is %d:%d", unix.Geteuid(), unix.Getegid())
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	if want := "Uid:\t0\t0\t0\t0\n"; !strings.Contains(string(text), want) {
		t.Errorf("want %q in\n%s", want, text)
	}
}
