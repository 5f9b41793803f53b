package binder_test

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/binder"
	"github.com/portd/portd/internal/registry"
)

// Where descriptors are so short that sockets are parked to take others out of their bags, what is released takes nobody's port
// along.
func TestReleaseWhereDescriptorsAreShort(t *testing.T) {
	needMessages(t)
	b := open(t, binder.Config{Spare: 50})
	limit(t, 300)
	var others []registry.Endpoint
	mine := at(t, "tcp/1", 10000)
	for i := range 600 {
		hold := func(k, ep registry.Endpoint) {
			if err := b.Bind(t.Context(), registry.Bind{Key: key(k), Endpoint: ep}); err != nil {
				t.Fatal(err)
			}
		}
		if i%6 == 0 {
			hold(mine, mine.At(uint16(10000+i/6)))
		}
		other := at(t, "tcp/1", uint16(11000+i))
		hold(other, other)
		others = append(others, other)
	}

	var taken []int
	for {
		fd, err := unix.MemfdCreate("taken", unix.MFD_CLOEXEC)
		if err != nil {
			break
		}
		taken = append(taken, fd)
	}
	for range 40 { // what a bag takes, and a little more
		_ = unix.Close(taken[0])
		taken = taken[1:]
	}
	err := b.Release(key(mine))
	for _, fd := range taken {
		_ = unix.Close(fd)
	}
	if err != nil && !errors.Is(err, registry.ErrExhausted) {
		t.Fatal(err)
	}
	for _, ep := range others {
		wantHeld(t, ep)
	}
	mine.Last = 10099
	if err != nil {
		wantHeld(t, mine)
		release(t, b, at(t, "tcp/1", 10000))
	}
	wantAllFree(t, mine)
	for _, ep := range others {
		release(t, b, ep)
	}
}
