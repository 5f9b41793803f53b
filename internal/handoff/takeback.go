package handoff

import (
	"bytes"
	"errors"

	"github.com/portd/portd/internal/fdpass"
	"github.com/portd/portd/internal/wire"
)

// incoming is the memory of taking messages back.
type incoming struct {
	receiver       fdpass.Receiver
	peeked, packet [frameSize]byte
	duplicates     []int
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
		// A message whose descriptors do not fit is not taken, since it would lose them. That is known beforehand only by looking.
		size, fds, err := in.receiver.Peek(kept, in.peeked[:])
		in.duplicates = append(in.duplicates[:0], fds...)
		if err != nil {
			closeEach(in.duplicates)
			return messages, conns, !errors.Is(err, fdpass.ErrFDsTruncated)
		}
		n, fds, err := in.receiver.Recv(kept, in.packet[:])
		if err != nil && !errors.Is(err, fdpass.ErrFDsTruncated) {
			closeEach(in.duplicates) // the worker was faster
			return messages, conns, true
		}
		messages++
		if bytes.Equal(in.packet[:n], in.peeked[:size]) {
			closeEach(fds)
			conns += p.takeFrame(w, in.packet[:n], in.duplicates)
			continue
		}
		closeEach(in.duplicates) // the worker had that one
		conns += p.takeFrame(w, in.packet[:n], fds)
	}
}

// takeFrame gives the connections of one message to whom else wants them. It takes ownership of fds.
func (p *Pool) takeFrame(w *worker, packet []byte, fds []int) (n int) {
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
		fd := fds[0]
		fds = fds[1:]
		w.sent--
		s.sent--
		if !l.listening {
			closeRaw(fd)
			continue
		}
		if l.deaf { // its clients are refused, and nobody would look for this one
			p.reset(l, heldConn{fd: fd})
			continue
		}
		// The packet's memory is used again.
		c.Peer.Path, c.Local.Path, c.TLVs = bytes.Clone(c.Peer.Path), bytes.Clone(c.Local.Path), nil
		c.Flags |= wire.Redelivered
		if !w.gone {
			l.takenBack++
		}
		l.held.push(heldConn{fd: fd, conn: c, hand: p.ledger.hold(fd, l, &c)})
		p.enqueue(l)
		n++
	}
	closeEach(fds)
	if n > 0 {
		p.wakeUp()
	}
	return n
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
