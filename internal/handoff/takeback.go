package handoff

import (
	"bytes"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/fdpass"
	"github.com/portd/portd/internal/wire"
)

// incoming is the memory of taking messages back.
type incoming struct {
	receiver       fdpass.Receiver
	peeked, packet [frameSize]byte
	duplicates     []int
	hands          []uint32 // their places in the ledger
}

// takeBack empties the queue of a worker that is gone or stuck. What it finds had been sent and not been received: exactly one of us gets
// it, since the kernel gives each message out once. Whole is false where portd has no descriptors for it: the rest is still in the queue.
func (p *Pool) takeBack(w *worker) (messages, conns int, whole bool) {
	in := &p.in
	kept, done, err := w.end()
	if err != nil {
		return 0, 0, false
	}
	defer done()
	for {
		if p.ledger.scarce() {
			left, _ := unix.IoctlGetInt(kept, unix.SIOCINQ)
			return messages, conns, left == 0
		}
		// A message whose descriptors do not fit is not taken, since it would lose them. That is known beforehand only by looking.
		size, fds, err := in.receiver.Peek(kept, in.peeked[:])
		in.duplicates = append(in.duplicates[:0], fds...)
		if err != nil {
			closeEach(in.duplicates)
			return messages, conns, !errors.Is(err, fdpass.ErrFDsTruncated)
		}
		p.reach(w, in.peeked[:size])
		p.ledger.retaking(w.mine, in.hands, len(fds))
		n, fds, err := in.receiver.Recv(kept, in.packet[:])
		if err != nil && !errors.Is(err, fdpass.ErrFDsTruncated) {
			p.ledger.retaken()
			p.letDuplicates() // the worker was faster
			return messages, conns, true
		}
		messages++
		if bytes.Equal(in.packet[:n], in.peeked[:size]) {
			for _, at := range in.hands {
				p.ledger.certain(at)
			}
			closeEach(fds)
			p.ledger.retaken()
			conns += p.takeFrame(w, in.packet[:n], in.duplicates, in.hands)
			continue
		}
		conns += p.takeFrame(w, in.packet[:n], fds, nil) // the worker had the other one
		p.ledger.retaken()
		p.letDuplicates()
	}
}

// reach notes the connections of a message that is about to be taken back: they are in portd's hands once nobody else can get them, and if
// portd dies meanwhile its successor is to find out.
func (p *Pool) reach(w *worker, packet []byte) {
	in := &p.in
	in.hands = in.hands[:0]
	m, err := wire.Parse(packet)
	var f wire.Frame
	if err == nil && m.Type == wire.TypeConnections {
		f, err = wire.DecodeFrame(m)
	}
	if err != nil || w.mine == 0 || p.ledger == nil {
		return
	}
	var c wire.Connection
	for f.Next(&c) {
		if s := w.serving(c.Listener); s != nil && len(in.hands) < len(in.duplicates) {
			in.hands = append(in.hands, p.ledger.reach(in.duplicates[len(in.hands)], s.listener, &c, doubt{w.mine, f.Sequence}))
		}
	}
}

// letDuplicates undoes reach, and closes them.
func (p *Pool) letDuplicates() {
	for _, at := range p.in.hands {
		p.ledger.let(at)
	}
	closeEach(p.in.duplicates)
}

// takeFrame gives the connections of one message to whom else wants them. It takes ownership of fds, which have these places in the
// ledger, or none yet.
func (p *Pool) takeFrame(w *worker, packet []byte, fds []int, hands []uint32) (n int) {
	m, err := wire.Parse(packet)
	var f wire.Frame
	if err == nil && m.Type == wire.TypeConnections {
		f, err = wire.DecodeFrame(m)
	}
	var c wire.Connection
	for err == nil && f.Next(&c) {
		s := w.serving(c.Listener)
		if s == nil {
			continue
		}
		l := s.listener
		if len(fds) == 0 {
			l.lost++
			continue
		}
		fd, at := fds[0], uint32(0)
		fds = fds[1:]
		c.Flags |= wire.Redelivered
		if len(hands) > 0 {
			at, hands = hands[0], hands[1:]
		} else {
			at = p.ledger.hold(fd, l, &c)
		}
		w.sent--
		s.sent--
		p.ledger.uncounted(at)
		if !l.listening {
			p.drop(heldConn{fd: fd, hand: at})
			continue
		}
		if l.deaf { // its clients are refused, and nobody would look for this one
			p.reset(l, heldConn{fd: fd, hand: at})
			continue
		}
		// The packet's memory is used again.
		c.Peer.Path, c.Local.Path, c.TLVs = bytes.Clone(c.Peer.Path), bytes.Clone(c.Local.Path), nil
		if !w.gone {
			l.takenBack++
		}
		l.held.push(heldConn{fd: fd, conn: c, hand: at})
		p.enqueue(l)
		n++
	}
	closeEach(fds)
	for _, at := range hands { // of those that came without a descriptor
		p.ledger.let(at)
	}
	if n > 0 {
		p.wakeUp()
	}
	return n
}

// missing says why takeBack has left something.
func (p *Pool) missing() error {
	if p.ledger.scarce() {
		return fmt.Errorf("%d connections are in portd's hands, and it keeps account of no more", mostHands-keptPlaces)
	}
	return limit(unix.EMFILE)
}

// An orphan is the queue of a worker that is gone, which portd had no descriptors to empty. What lies there is open and nobody's.
func (p *Pool) adoptOrphan(w *worker) {
	p.orphans = append(p.orphans, w)
	p.startTicking()
}

// emptyOrphans tries again, and says whether some are left.
func (p *Pool) emptyOrphans() (left bool) {
	for len(p.orphans) > 0 {
		w := p.orphans[0]
		if _, _, whole := p.takeBack(w); !whole {
			return true
		}
		p.forget(w)
		p.orphans = p.orphans[1:]
	}
	return false
}

func closeEach(fds []int) {
	for _, fd := range fds {
		closeRaw(fd)
	}
}
