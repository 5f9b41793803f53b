package binder

import (
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/fdbag"
)

// keptBack is what it takes to open a bag and to pack another one.
const keptBack = fdbag.Most + 6

// KeepBack takes the last descriptors that this process might have from everybody but Release, which needs some where it cannot
// fail: it lowers the soft RLIMIT_NOFILE by so many below the hard one. It may be called again.
func KeepBack() error {
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &l); err != nil {
		return fmt.Errorf("RLIMIT_NOFILE: %w", err)
	}
	most := l.Max - min(l.Max/8, keptBack) // a bag is never more than an eighth (room)
	if l.Cur <= most {
		return nil
	}
	l.Cur = most
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &l); err != nil {
		return fmt.Errorf("keep descriptors back: %w", err)
	}
	return nil
}

// withKeptBack runs f while this process may have the descriptors that KeepBack took. Others may take some of them meanwhile.
func withKeptBack(f func()) {
	var l unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &l) == nil && l.Cur < l.Max {
		more := unix.Rlimit{Cur: min(l.Max, l.Cur+keptBack), Max: l.Max}
		if unix.Setrlimit(unix.RLIMIT_NOFILE, &more) == nil {
			defer func() { _ = unix.Setrlimit(unix.RLIMIT_NOFILE, &l) }() // down is always allowed
		}
	}
	f()
}

// closeParkedLocked closes what a key that is being released has in bags with others' sockets, bag by bag, with descriptors that
// were kept back. The others of each bag go into a new one. Where the error is not nil the key still has some.
func (b *Binder) closeParkedLocked(h *holding) (err error) {
	own := map[*bag][]*socket{}
	for _, s := range h.sockets {
		if s.bag != nil {
			own[s.bag] = append(own[s.bag], s)
		}
		b.busyLocked(s) // else they might be parked to open a bag
	}
	for in, mine := range own {
		if len(mine) == in.Len() && !h.shared {
			continue
		}
		others := slices.DeleteFunc(slices.Clone(in.sockets), func(s *socket) bool { return slices.Contains(mine, s) })
		if err = b.openLocked(in, h); err != nil {
			break
		}
		for _, s := range mine {
			b.busyLocked(s)
			b.forgetLocked(s)
			if h.shared {
				s.revoke(false)
			}
			b.kept.drop(s)
			s.close()
			s.fd = -1
		}
		others = slices.DeleteFunc(others, func(s *socket) bool { return s.bag != nil })
		b.parkAgainLocked(others)
	}
	h.sockets = slices.DeleteFunc(h.sockets, func(s *socket) bool { return s.bag == nil && s.fd < 0 })
	if h.group > 0 { // nobody has one, else they were not parked
		h.group, h.lending = len(h.sockets), nil
	}
	return err
}

// parkAgainLocked parks idle sockets whose bag has been opened, so that what was kept back is free again. Where it cannot, they stay
// idle.
func (b *Binder) parkAgainLocked(socks []*socket) {
	if len(socks) == 0 || !b.packLocked(socks) {
		return
	}
	for _, s := range socks {
		b.busyLocked(s)
	}
	b.parking.open -= len(socks)
}
