package binder_test

import (
	"errors"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/binder"
	"github.com/portd/portd/internal/registry"
)

// Where the kernel keeps filters on TCP sockets from portd, who asks to park clients is told so, and why.
func TestMayPark(t *testing.T) {
	b := open(t, binder.Config{})
	park := registry.ListenOptions{Handoff: registry.HandoffOptions{WithoutWorker: registry.Park}}
	if err := b.MayListen(registry.HostNetns, park); err != nil {
		t.Fatalf("with every capability: %v", err)
	}
	result := make(chan error)
	go func() {
		runtime.LockOSThread() // and the thread ends with the goroutine
		head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var none [2]unix.CapUserData
		if err := unix.Capset(&head, &none[0]); err != nil {
			t.Error(err)
		}
		result <- b.MayListen(registry.HostNetns, park)
	}()
	err := <-result
	var why *registry.UnsupportedError
	if !errors.As(err, &why) || why.Code != "MISSING_CAPABILITY" {
		t.Skipf("this kernel lets everybody filter: %v", err)
	}
}
