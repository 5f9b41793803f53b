package handoff

import (
	"slices"
	"testing"

	"github.com/portd/portd/internal/registry"
	"golang.org/x/sys/unix"
)

// A socket that the engine cannot watch any more has no place among those that it watches, which somebody else has by then.
func TestHearFails(t *testing.T) {
	p, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer p.shut()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	l := p.listener(registry.SocketKey{Reservation: "rsv"})
	s := &socket{fd: fd, of: l}
	l.sockets = []*socket{s}
	if s.slot, err = p.watch(fd, unix.EPOLLIN, slot{socket: s}); err != nil {
		t.Fatal(err)
	}
	p.turnAway(l)
	s.fd = -1
	p.hear(l)
	p.turnAway(l)
	slices.Sort(p.freeSlots)
	if len(slices.Compact(slices.Clone(p.freeSlots))) != len(p.freeSlots) {
		t.Errorf("free are the slots %v", p.freeSlots)
	}
}
