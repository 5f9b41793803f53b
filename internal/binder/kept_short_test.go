package binder_test

import (
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/binder"
	"github.com/portd/portd/internal/registry"
)

// A program is lent an adopted socket when there is one descriptor left, and none for a bag that says so: nothing is closed twice.
func TestKeptAdoptedShort(t *testing.T) {
	w := keep(t, binder.Config{Observer: &observer{}})
	ep := at(t, "tcp/127.0.0.1:1", port())
	_ = listener(ep).open(t)
	if _, err := adopt(t, w.b, os.Getpid(), ep); errors.Is(err, registry.ErrUnsupported) {
		t.Skip(err)
	} else if err != nil {
		t.Fatal(err)
	}
	was := binder.MaxDescriptors()
	limit(t, uint64(descriptors(t)+20))
	var full []int
	for {
		fd, err := unix.FcntlInt(0, unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			break
		}
		full = append(full, fd)
	}
	_ = unix.Close(full[len(full)-1])
	program := lendOne(t, w.b, ep)
	limit(t, uint64(was))
	for _, fd := range full[:len(full)-1] {
		_ = unix.Close(fd)
	}
	_ = unix.Close(program)
	w.b.Return(key(ep))

	var others []int // that have the numbers that came free
	for range 40 {
		fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
		if err != nil {
			t.Fatal(err)
		}
		others = append(others, fd)
	}
	release(t, w.b, ep)
	for _, fd := range others {
		if err := unix.Close(fd); err != nil {
			t.Errorf("descriptor %d, which was nobody's but the test's: %v", fd, err)
		}
	}
	if left := w.names(); len(left) > 0 {
		t.Errorf("the keeper has %v", left)
	}
}

// A Binder that died while it made a port listen that a program has had left the filter on that keeps clients out meanwhile.
func TestKeptFilter(t *testing.T) {
	o := &observer{}
	w := keep(t, binder.Config{Observer: o})
	ep := at(t, "tcp/127.0.0.1:1", port())
	hold(t, w.b, ep)
	program := lendOne(t, w.b, ep)
	defer unix.Close(program)
	w.b.Return(key(ep))
	drop := unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K}
	if err := unix.SetsockoptSockFprog(program, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: 1, Filter: &drop}); errors.Is(err, unix.EPERM) {
		t.Skip("this kernel wants CAP_NET_ADMIN for a filter")
	} else if err != nil {
		t.Fatal(err)
	}
	w.die()
	w.begin()
	hold(t, w.b, ep)
	w.unclaimed(0)
	if err := unix.SetsockoptInt(program, unix.SOL_SOCKET, unix.SO_DETACH_FILTER, 0); !errors.Is(err, unix.ENOENT) {
		t.Errorf("the filter is there still: %v", err)
	}
}
