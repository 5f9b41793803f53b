package handoff

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/wire"
)

// What became of a message is known from where it is: it lies in the queue, or the worker says that it has taken it, or neither. A worker
// says so by its page, on which its turn is odd while it takes one. Until it is even again nobody can tell; the connections
// then stay in portd's hands, in doubt, if it has descriptors of them, and are either closed or sent to somebody.

// A fate is what became of a message.
type fate int

const (
	unknown fate = iota
	sent
	unsent
)

// A doubtful is a connection that was in a message of which it is not known yet what became of it.
type doubtful struct {
	heldConn
	of *listener
	doubt
}

// one is a descriptor of one of a message's connections, or -1.
func one(j *journal, n int, have map[uint32]int) int {
	for _, at := range j.hands[:n] {
		if fd, ok := have[at]; ok {
			return fd
		}
	}
	return -1
}

// doubt notes that the first n connections of a message are in doubt, those of which there are descriptors.
func (p *Pool) doubt(j *journal, n int, have map[uint32]int) {
	for _, at := range j.hands[:n] {
		if _, ok := have[at]; ok && at > 0 && at < mostHands {
			p.ledger.doubts(at, j.worker, j.sequence)
		}
	}
}

// judge finds out about what is in doubt while a portd takes over, before workers are let go of. What is left are connections that are in
// nobody else's hands, and those still in doubt.
func (p *Pool) judge(back *pending) {
	open := make(map[*worker]bool) // it is in the middle of taking something, as was seen: what else it may have is not waited for
	for _, g := range p.ledger.inHand() {
		fd, ok := back.inHand[g.at]
		if g.doubt.sequence == 0 || !ok {
			continue
		}
		var w *worker
		var of *serving
		for _, r := range back.workers {
			if r.mine != g.doubt.tenant {
				continue
			}
			w = r.worker
			for i, part := range r.parts {
				if at := g.listener; at > 0 && at <= mostListeners && part.key == p.ledger.listeners[at-1].key() {
					of = w.serves[i]
				}
			}
		}
		if open[w] {
			continue
		}
		switch p.verdict(w, g.doubt.sequence, fd, w == nil || w.standing == leaving) {
		case unknown:
			open[w] = true
		case sent:
			p.count(of, g.hand)
			delete(back.inHand, g.at)
			p.ledger.let(g.at)
			closeRaw(fd)
		case unsent:
			p.ledger.certain(g.at)
		}
	}
}

// inDoubt says whether it is not known whose a connection is, which may be w's.
func (p *Pool) inDoubt(w *worker) bool {
	return slices.ContainsFunc(p.doubts, func(d doubtful) bool { return d.tenant == w.mine })
}

// withhold sends nothing to the worker of a tenant until it is known what it has: it would say of the next message that it has taken that, and
// one before it, which it may never have been sent, would be taken for its own. So it counts as stuck, with a probe that ends its turn.
func (p *Pool) withhold(tenant uint64) {
	w := p.tenant(tenant)
	if w == nil || w.stuck {
		return
	}
	w.stuck, w.room = true, false
	_ = p.engines[0].out.probe(w.queue)
}

// wonder looks after some time at what is in doubt, and again, less and less often. A worker that takes its probe may be asked before its turn
// is over, and nothing else tells of that.
func (p *Pool) wonder(after time.Duration) {
	time.AfterFunc(after, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.closed || len(p.doubts) == 0 {
			return
		}
		if p.suspended || p.decide(nil) {
			p.wonder(min(2*after, longestTick))
		}
		if p.suspended {
			return
		}
		for _, w := range p.workers {
			if w.stuck && !waiting(w.queue) && !p.inDoubt(w) {
				p.hasRoom(w)
			}
		}
		p.wakeUp()
	})
}

// tenant is the worker that is one; nil where it is not there any more.
func (p *Pool) tenant(mine uint64) *worker {
	for _, w := range p.workers {
		if w.mine == mine {
			return w
		}
	}
	return nil
}

// decide looks again at what is in doubt, of one worker, which may be about to be let go, or of all where it is nil. It says whether some
// is left.
func (p *Pool) decide(of *worker) (left bool) {
	open := make(map[*worker]bool)
	p.doubts = slices.DeleteFunc(p.doubts, func(d doubtful) bool {
		w := of
		switch {
		case of == nil:
			w = p.tenant(d.tenant)
		case of.mine != d.tenant:
			return false
		}
		if open[w] {
			return false
		}
		switch p.verdict(w, d.sequence, d.fd, w == nil || w.gone) {
		case sent:
			if d.hand != 0 && w != nil {
				for _, s := range w.serves {
					if s.listener == d.of {
						p.count(s, &p.ledger.hands[d.hand])
					}
				}
			}
			p.drop(d.heldConn)
		case unsent:
			p.ledger.certain(d.hand)
			p.uncount(d.hand, d.of)
			if d.of.listening {
				p.take(d.of, d.heldConn)
				p.wakeUp()
			} else {
				p.drop(d.heldConn)
			}
		default:
			open[w] = true
			return false
		}
		return true
	})
	return len(p.doubts) > 0
}

// uncount has a connection that was taken back, and is still counted as sent to a worker, counted no more.
func (p *Pool) uncount(at uint32, of *listener) {
	if at == 0 || p.ledger == nil || p.ledger.hands[at].flags&counted == 0 {
		return
	}
	p.ledger.uncounted(at)
	for _, w := range p.workers {
		for _, s := range w.serves {
			if w.mine == p.ledger.hands[at].doubt.tenant && s.listener == of && s.sent > 0 && w.sent > 0 {
				w.sent--
				s.sent--
				of.takenBack++
				w.page.Sent(w.sent, w.sequence)
				return
			}
		}
	}
}

// count counts a connection that has been sent after all, to one who is not known any more where it is nil.
func (p *Pool) count(to *serving, h *hand) {
	if h.flags&counted != 0 {
		return // it had been
	}
	if at := h.listener; at > 0 && at <= mostListeners {
		c := &p.ledger.listeners[at-1].counts
		c.handedOver++
		if h.flags&wire.Redelivered != 0 {
			c.redelivered++
		}
	}
	if to != nil {
		to.worker.sent++
		to.sent++
	}
}

// verdict is what became of a message that one connection was in, of which fd is a descriptor. Where its worker is nobody's any more, or says
// nothing of itself, it is told from the connection.
func (p *Pool) verdict(w *worker, sequence uint64, fd int, dead bool) fate {
	if w == nil {
		if touched(fd) {
			return sent
		}
		return unsent
	}
	return p.fateOf(w, sequence, fd, dead)
}

// fateOf looks for a message in a worker's queue, and then whether the worker has taken it. In this order, for it goes from there to
// there. One that is dead takes nothing more. A worker that says nothing of itself leaves it unknown, unless there is a descriptor of one of the connections.
// Messages follow one another without a gap in a queue, and the message asked for is the last that the worker was sent, or has been taken out of
// there: a sequence is left out only after a doubt, with nothing in the queue (see withhold).
func (p *Pool) fateOf(w *worker, sequence uint64, fd int, dead bool) fate {
	kept, done, err := w.end()
	if err != nil {
		return unknown
	}
	defer done()
	var buf [frameSize]byte
	for {
		// Not SIOCOUTQ, which counts what the worker is just receiving.
		before, _ := unix.IoctlGetInt(kept, unix.SIOCINQ)
		n, _, err := unix.Recvfrom(kept, buf[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
		if err != nil || n == 0 {
			break
		}
		if after, _ := unix.IoctlGetInt(kept, unix.SIOCINQ); after != before {
			continue // the worker is taking some
		}
		m, err := wire.Parse(buf[:n])
		if err != nil || m.Type != wire.TypeConnections {
			break // a probe, after which nothing is sent
		}
		f, err := wire.DecodeFrame(m)
		if err != nil {
			return unknown
		}
		if f.Sequence > sequence {
			break // it comes after
		}
		if last := f.Sequence + uint64(before/frameSize) - 1; last >= sequence {
			return sent
		}
		return unsent
	}
	pause := time.Millisecond
	if fd >= 0 { // it can be decided later
		pause = 50 * time.Microsecond
	}
	for range 20 {
		taken, _, known := w.page.Taken()
		switch {
		case !known && dead: // it has served nothing of that message
			return unsent
		case !known: // it is in the middle of it
			time.Sleep(pause)
			continue
		case taken >= sequence:
			return sent
		case w.page.Turns():
			return unsent
		case fd < 0:
			return unknown
		case touched(fd) || has(w.caller.PID, fd):
			return sent
		}
		return unsent
	}
	return unknown
}

// touched says whether somebody has read from a connection, or written to it. Of a unix socket nobody can tell, and it is said to be.
func touched(fd int) bool {
	info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
	if err != nil {
		return true
	}
	waiting, err := unix.IoctlGetInt(fd, unix.SIOCINQ)
	return err != nil || info.Bytes_sent > 0 || info.Bytes_received > uint64(waiting)
}

// has says whether a process has what fd is. Where it cannot be looked into it may have.
func has(pid int32, fd int) bool {
	mine, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
	if err != nil || pid == 0 {
		return true
	}
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	names, err := os.ReadDir(dir)
	if os.IsNotExist(err) {
		return false
	}
	if err != nil {
		return true
	}
	return slices.ContainsFunc(names, func(n os.DirEntry) bool {
		link, err := os.Readlink(filepath.Join(dir, n.Name()))
		return err == nil && link == mine
	})
}
