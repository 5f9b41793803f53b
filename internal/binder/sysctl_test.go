package binder_test

import (
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/binder"
	"github.com/portd/portd/internal/registry"
)

// Where settings cannot be read they are taken to be those of a new namespace.
func TestSettingsHidden(t *testing.T) {
	b := open(t, binder.Config{Enter: func(_ string, f func() error) error {
		done := make(chan error)
		go func() {
			runtime.LockOSThread() // ends with the goroutine
			err := unix.Unshare(unix.CLONE_NEWNS)
			if err == nil {
				err = unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
			}
			if err == nil {
				err = unix.Mount("none", "/proc/sys", "tmpfs", 0, "")
			}
			if err != nil {
				done <- err
				return
			}
			done <- f()
		}()
		return <-done
	}})
	if want, got := (registry.PortRange{First: 32768, Last: 60999}), b.Ephemeral("elsewhere"); got != want {
		t.Errorf("ephemeral ports are %v, want %v", got, want)
	}
	if first := b.FirstUnprivileged("elsewhere"); first != 1024 {
		t.Errorf("the first unprivileged port is %d, want 1024", first)
	}
}
