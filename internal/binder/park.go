package binder

import (
	"container/list"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/fdbag"
	"github.com/portd/portd/internal/fdpass"
	"github.com/portd/portd/internal/registry"
)

// A parking puts sockets that do nothing but hold their port into bags, once half of the descriptors that this process may have
// are sockets: the longest idle ones first, a full bag at a time. It is guarded by Binder.mu.
type parking struct {
	open   int       // sockets of holdings that have a descriptor
	idle   list.List // those of them that may be parked, the longest idle first
	parked int       // sockets in bags
	bags   int       // that have a descriptor each
	last   *bag      // the last that was packed, where it is still there
	// most is how many may be in bags, where this user was refused more, less what the hand-off's messages need; else 0.
	most int
}

// A bag is sockets that are parked together, in the order of what is in it.
type bag struct {
	*fdbag.Bag
	name    string // that the keeper has it by
	sockets []*socket
}

// room is how many sockets may have a descriptor before some are parked, and how many are parked together: not so few that a bag
// is no gain, nor so many that to open it takes more descriptors than are left.
func room() (sockets, together int) {
	open, err := maxDescriptors()
	if err != nil {
		open = 1024 // as it mostly is
	}
	return open / 2, min(max(open/8, 1), fdbag.Most)
}

// settleLocked lets the key's sockets be parked, unless somebody uses them.
func (b *Binder) settleLocked(h *holding) {
	if h.gone || h.lent > 0 || h.pins > 0 || h.waits() {
		return
	}
	for _, s := range h.sockets {
		if !s.listening && !s.adopted { // of an adopted one there is more to be known than a bag of many has room for
			b.idleLocked(s)
		}
	}
	b.parkLocked()
}

// unsettleLocked gives all of the key's sockets a descriptor, until settleLocked. It is ErrExhausted where there are not enough.
func (b *Binder) unsettleLocked(h *holding) error {
	for _, s := range h.sockets {
		if s.bag != nil {
			if err := b.openLocked(s.bag, h); err != nil {
				b.settleLocked(h)
				return fmt.Errorf("take the socket of %v out of its bag: %w", s.ep, err)
			}
		}
		b.busyLocked(s)
	}
	b.parkLocked()
	return nil
}

// extractLocked takes the key's sockets out of bags that have others', too, and all where duplicates may be out. None of them is
// parked again.
func (b *Binder) extractLocked(h *holding) error {
	own := map[*bag]int{}
	for _, s := range h.sockets {
		if s.bag != nil {
			own[s.bag]++
		} else {
			b.busyLocked(s)
		}
	}
	// To open one bag may take that others of the sockets are parked, in a bag that is not among own then.
	for _, s := range h.sockets {
		switch in := s.bag; {
		case in == nil:
		case own[in] == in.Len() && !h.shared:
			if b.parking.last == in { // it is closed as it is, without the lock
				b.parking.last = nil
			}
		default:
			if err := b.openLocked(in, h); err != nil {
				b.settleLocked(h)
				return fmt.Errorf("take the socket of %v out of its bag: %w", s.ep, err)
			}
		}
		b.busyLocked(s)
	}
	return nil
}

func (b *Binder) idleLocked(s *socket) {
	if s.bag == nil && s.idle == nil {
		s.idle = b.parking.idle.PushBack(s)
	}
}

func (b *Binder) busyLocked(s *socket) {
	if s.idle != nil {
		b.parking.idle.Remove(s.idle)
		s.idle = nil
	}
}

// parkLocked parks what is too much. Where it cannot, all stays as it is, until descriptors really run out.
func (b *Binder) parkLocked() {
	for {
		most, together := room()
		if b.parking.open+b.parking.bags <= most || !b.parkLongestLocked(together) {
			return
		}
	}
}

// parkLongestLocked parks the sockets that have been idle for the longest time, where there are so many.
func (b *Binder) parkLongestLocked(n int) bool {
	p := &b.parking
	if p.idle.Len() < n {
		return false
	}
	socks := make([]*socket, 0, n)
	for at := p.idle.Front(); len(socks) < n; at = at.Next() {
		socks = append(socks, at.Value.(*socket))
	}
	if !b.packLocked(socks) {
		return false
	}
	for _, s := range socks {
		b.busyLocked(s)
	}
	p.open -= n
	return true
}

// parkEarly parks sockets of an endpoint that is still being bound and may have more ports than there are descriptors. It returns
// those that still have one.
func (b *Binder) parkEarly(socks []*socket) []*socket {
	most, together := room()
	if len(socks) < together {
		return socks
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	last := b.parking.last
	if b.parking.open+b.parking.bags+len(socks) <= most || !b.packLocked(socks[:together:together]) {
		return socks
	}
	b.parking.last = last // these are not the Binder's yet
	return socks[together:]
}

// whereFull adds to an ErrExhausted that this user may not have more in messages, if so.
func (b *Binder) whereFull(err error) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.parking.most == 0 || !errors.Is(err, registry.ErrExhausted) {
		return err
	}
	return fmt.Errorf("%w; %d sockets are parked in messages, where this user may have no more: the same limit counts there, "+
		"except with CAP_SYS_RESOURCE", err, b.parking.parked)
}

// packLocked parks these sockets, or none.
func (b *Binder) packLocked(socks []*socket) bool {
	p := &b.parking
	if p.most > 0 && p.parked+len(socks) > p.most {
		return false
	}
	fds := make([]int, len(socks))
	for i, s := range socks {
		fds[i] = s.fd
	}
	packed, err := fdbag.Pack(fds, notes(socks))
	if err != nil {
		if errors.Is(err, fdbag.ErrFull) {
			// The hand-off sends descriptors in messages too, which count likewise: one bag's worth is left to it.
			p.most = max(p.parked-fdbag.Most, 1)
			if p.last != nil && b.openAllLocked(p.last) == nil {
				p.most = max(p.parked, 1)
			}
		}
		return false
	}
	p.last = &bag{packed, "", socks}
	p.parked += len(socks)
	p.bags++
	if keep := b.kept.store; keep != nil {
		p.last.name = keep.NextName("b.")
		keep.Put(p.last.name, packed.FD())
	}
	b.kept.drop(socks...)
	for _, s := range socks {
		_ = unix.Close(s.fd)
		s.fd, s.bag = -1, p.last
	}
	return true
}

// openLocked gives the sockets of a bag that are h's their descriptors again and does away with it. The others go into a new one, as
// long as those are not so few that a bag is no gain; then they are idle.
func (b *Binder) openLocked(in *bag, h *holding) error {
	return b.openSomeLocked(in, func(s *socket) bool { return s.of == h })
}

// openAllLocked gives all sockets of a bag their descriptors again, and all are idle.
func (b *Binder) openAllLocked(in *bag) error {
	return b.openSomeLocked(in, func(*socket) bool { return true })
}

func (b *Binder) openSomeLocked(in *bag, wanted func(*socket) bool) error {
	fds, err := in.Open()
	if errors.Is(err, fdpass.ErrFDsTruncated) && b.parkLongestLocked(in.Len()) {
		fds, err = in.Open()
	}
	if errors.Is(err, fdpass.ErrFDsTruncated) {
		return exhausted(fmt.Errorf("%d are wanted, and too many of %s are open", in.Len(), openFiles()))
	}
	if err != nil {
		return err
	}
	if b.parking.last == in {
		b.parking.last = nil
	}
	var out, others []*socket
	for i, s := range in.sockets {
		s.fd, s.bag = fds[i], nil
		if wanted(s) {
			out = append(out, s)
		} else {
			others = append(others, s)
		}
	}
	if _, together := room(); len(others) < max(together/2, 1) || !b.packLocked(others) {
		out = append(out, others...)
	}
	for _, s := range out {
		b.idleLocked(s)
	}
	b.parking.open += len(out)
	b.kept.put(out...)
	b.emptyLocked(in)
	return nil
}

// emptyLocked closes a bag whose sockets are elsewhere or are to be closed.
func (b *Binder) emptyLocked(in *bag) {
	b.parking.parked -= in.Len()
	b.parking.bags--
	b.parking.most = 0
	if b.parking.last == in {
		b.parking.last = nil
	}
	if in.name != "" {
		b.kept.store.Remove(in.name)
	}
	if err := in.Close(); err != nil {
		b.log.Error("cannot close a bag of sockets", "err", err)
	}
}

// closeAll closes sockets that no other goroutine knows any more, with the bags in which nothing else is.
func (b *Binder) closeAll(socks []*socket) {
	var bags []*bag
	b.kept.drop(socks...)
	for _, s := range socks {
		switch {
		case s.bag == nil:
			s.close()
		case s.bag.sockets != nil:
			s.bag.sockets = nil
			bags = append(bags, s.bag)
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, in := range bags {
		b.emptyLocked(in)
	}
	b.parkLocked()
}
