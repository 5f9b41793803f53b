package handoff

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"net"
	"slices"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/fdstore"
	"github.com/portd/portd/internal/registry"
	"github.com/portd/portd/internal/wire"
)

// An upgrade: the successor restores the workers while this Pool goes on, then this one is suspended and the successor runs, with the same
// ledger. If that comes to nothing this one resumes, and finds in the ledger what the other one did.

// pause is what Freeze and Suspend have stopped. Pool.mu guards it.
type pause struct {
	thawed    chan struct{} // closed by Thaw; nil: workers may attach
	attaching int           // handshakes
	greeting  map[*net.UnixConn]struct{}
	attach    *net.UnixListener // of Serve, while that runs
	accepts   bool              // Serve may have somebody in its hands who has not been counted yet
	suspended bool
	running   int       // engines
	standing  int       // of those, which wait for the end of suspended
	resumed   sync.Cond // the end of suspended, and whatever else is waited for here
}

// handshakeTime is what a handshake that has begun has left when workers may not attach any more. Then it is ended, and tried again by the worker.
const handshakeTime = 200 * time.Millisecond

// Freeze lets no more workers attach: they wait in the attach socket's backlog until Thaw, or for the successor. It returns when those that
// were about to have done so.
func (p *Pool) Freeze(ctx context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.thawed == nil {
		p.thawed = make(chan struct{})
		p.acceptWorkers(false)
	}
	late := time.AfterFunc(handshakeTime, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		for conn := range p.greeting {
			_ = conn.Close()
		}
	})
	defer late.Stop()
	defer context.AfterFunc(ctx, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.resumed.Broadcast()
	})()
	for (p.attaching > 0 || p.accepts) && ctx.Err() == nil { // who was interrupted may have been faster
		p.resumed.Wait()
	}
	return ctx.Err()
}

// Thaw undoes Freeze.
func (p *Pool) Thaw() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.thawed != nil {
		close(p.thawed)
		p.thawed = nil
		p.acceptWorkers(true)
	}
}

// acceptWorkers lets Serve accept, or interrupts it.
func (p *Pool) acceptWorkers(on bool) {
	switch {
	case p.attach == nil:
	case on:
		p.accepts = true
		_ = p.attach.SetDeadline(time.Time{})
	default:
		_ = p.attach.SetDeadline(time.Unix(1, 0))
	}
}

// halt is called by Serve when it was interrupted, and waits until workers may attach. It is false where that will not be.
func (p *Pool) halt(ctx context.Context) bool {
	p.mu.Lock()
	thawed := p.thawed
	p.accepts = thawed == nil
	p.resumed.Broadcast()
	p.mu.Unlock()
	if thawed == nil {
		return true
	}
	select {
	case <-thawed:
		return true
	case <-ctx.Done():
		return false
	}
}

// halted is called at the end of Serve.
func (p *Pool) halted() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.attach, p.accepts = nil, false
	p.resumed.Broadcast()
}

// beginHandshake counts one who has been accepted. Where workers may not attach any more that was just before they might not, and he is attached.
func (p *Pool) beginHandshake() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.attaching++
}

func (p *Pool) endHandshake() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.attaching--
	p.resumed.Broadcast()
}

// greet notes that conn has said nothing yet.
func (p *Pool) greet(conn *net.UnixConn, on bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !on {
		delete(p.greeting, conn)
		return
	}
	if p.greeting == nil {
		p.greeting = make(map[*net.UnixConn]struct{})
	}
	p.greeting[conn] = struct{}{}
}

var errEnded = errors.New("the hand-off has ended")

// Suspend stops handing over, after the message that is under way, and reading what workers say, which waits in their connections. No workers
// attach, as after Freeze. It returns the connections that are in portd's hands, for the successor's Restore; they stay this Pool's,
// as does everything. What else the successor needs is in the ledger and in the store. Resume or Abandon must follow.
func (p *Pool) Suspend(ctx context.Context) ([]fdstore.Item, error) {
	if err := p.Freeze(ctx); err != nil {
		return nil, err
	}
	p.undertake()
	p.talk.Lock()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.suspended = true
	err := p.allStand(ctx)
	switch {
	case !p.suspended: // letGo was here
		return nil, cmp.Or(err, errEnded)
	case err != nil:
		p.lookAgain() // who was called meanwhile had to wait
		p.suspended = false
		p.resumed.Broadcast()
		p.wakeUp()
		p.talk.Unlock()
		return nil, err
	}
	var all []fdstore.Item
	p.eachHeld(func(h heldConn) bool {
		if h.hand != 0 {
			all = append(all, fdstore.Item{Name: "c." + strconv.FormatUint(uint64(h.hand), 36), FD: h.fd})
		}
		return true
	})
	return all, nil
}

// allStand returns once no engine waits in epoll: one that did would be told of a connection, and the successor would not (EPOLLEXCLUSIVE,
// epoll_ctl(2)).
func (p *Pool) allStand(ctx context.Context) error {
	defer context.AfterFunc(ctx, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.resumed.Broadcast()
	})()
	for _, e := range p.engines {
		e.wakeUp()
	}
	for p.standing < p.running && ctx.Err() == nil {
		p.resumed.Wait()
	}
	return ctx.Err()
}

// beginRun counts an engine. It is false where the Pool is another one's.
func (p *Pool) beginRun(ctx context.Context) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.running++
	return p.mayGoOn(ctx)
}

func (p *Pool) endRun() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.running--
	p.resumed.Broadcast()
}

// lookAgain has all listening sockets tried: of what came before, another portd may have been told, and no one else.
func (p *Pool) lookAgain() {
	for key, l := range p.listeners {
		for _, s := range l.sockets {
			if !l.deaf {
				p.acceptable(s)
			}
		}
		p.call(key)
	}
}

// eachHeld calls f for each connection in portd's hands, which is not there any more where f says false.
func (p *Pool) eachHeld(f func(heldConn) bool) {
	p.doubts = slices.DeleteFunc(p.doubts, func(d doubtful) bool { return !f(d.heldConn) })
	for _, l := range p.listeners {
		l.held.keep(f)
		for _, s := range l.workers {
			before := s.staged.n
			s.staged.keep(f)
			l.staged -= before - s.staged.n
		}
	}
}

// mayGoOn says whether the engine may, after it has waited for that. It is false where ctx has ended meanwhile.
func (p *Pool) mayGoOn(ctx context.Context) bool {
	if p.suspended {
		p.standing++
		p.resumed.Broadcast()
		defer func() { p.standing-- }()
	}
	for p.suspended && ctx.Err() == nil {
		p.resumed.Wait()
	}
	return !p.suspended
}

// Resume goes on after Suspend, as before: no successor has come of it. What one has done until it ended is found in the ledger.
func (p *Pool) Resume() {
	p.mu.Lock()
	if !p.suspended {
		p.mu.Unlock()
		return
	}
	if p.ledger != nil {
		p.recover()
	}
	for _, l := range p.listeners {
		l.door = 0 // the other one may have turned it
	}
	p.lookAgain()
	p.suspended = false
	p.resumed.Broadcast()
	p.wakeUp()
	p.mu.Unlock()
	p.talk.Unlock()
	p.Thaw()
}

// recover goes on with a ledger that another portd may have had meanwhile.
func (p *Pool) recover() {
	p.settleMessages(func(tenant uint64) *worker {
		for _, w := range p.workers {
			if w.tenant == tenant {
				return w
			}
		}
		return nil
	}, nil)
	p.ledger.writtenBy(len(p.engines))
	p.past = &p.ledger.head.past
	for _, l := range p.listeners {
		if l.place != 0 && p.ledger.listeners[l.place-1].key() != l.key { // it was given up there
			l.counts, l.place = &counts{}, 0
		}
	}
	p.ledger.freeListeners = p.ledger.freeListeners[:0]
	p.known = make(map[registry.SocketKey]uint32)
	for i := range p.ledger.head.listeners {
		if l := &p.ledger.listeners[i]; l.length == 0 {
			p.ledger.freeListeners = append(p.ledger.freeListeners, i)
		} else {
			p.known[l.key()] = i
		}
	}
	for _, l := range p.listeners {
		p.account(l)
	}
	p.known = nil
	p.ledger.recount()
	p.eachHeld(func(h heldConn) bool {
		if h.hand != 0 && !p.ledger.has(h.hand, h.fd) { // the other one has sent it
			closeRaw(h.fd)
			return false
		}
		return true
	})
	p.grasp(nil)
	for _, w := range p.workers {
		if w.at == 0 {
			continue
		}
		standing := w.standing
		if w.tenant != w.mine {
			standing = released
		}
		if standing != attached {
			p.log.Info("worker left while a successor had it", "worker", w.id)
			p.disown(w)
			p.detach(w, standing == leaving, "it left while a successor had it")
			continue
		}
		w.draining, w.room = 0, writable(w.queue) && !w.stuck
		for _, s := range w.serves {
			if s.owes {
				w.draining++
			}
			if s.gone {
				continue
			}
			p.attend(s.listener)
			if s.ready() {
				p.offer(s)
			} else {
				p.unstage(s)
			}
		}
		p.checkDrained(w)
		p.expect(w)
	}
}

// disown takes w out of the ledger, where its place may be another one's.
func (p *Pool) disown(w *worker) {
	if w.tenant == w.mine {
		return
	}
	p.ledger.mark((w.at-unitsAt)/unitSize, unitsOf(len(w.serves)), false)
	w.at = 0
	p.copyOut(w)
}

// copyOut gives w places in ordinary memory.
func (p *Pool) copyOut(w *worker) {
	last, serves := *w.workerPlace, make([]servingPlace, len(w.serves))
	for i, s := range w.serves {
		serves[i] = *s.servingPlace
		s.servingPlace = &serves[i]
	}
	w.workerPlace = &last
}

// Abandon makes this Pool, which is suspended, one that only puts its own descriptors away when it ends: the workers go on with the
// successor.
func (p *Pool) Abandon() {
	p.abandoned.Store(true)
	p.mu.Lock()
	suspended := p.suspended
	p.mu.Unlock()
	if suspended {
		p.talk.Unlock()
	}
}

// closeAll closes this process's descriptors, and nothing notices. The set that they are watched with would go on to tell of what
// others have.
func (p *Pool) closeAll() {
	for _, w := range append(slices.Collect(maps.Values(p.workers)), p.orphans...) {
		if !w.gone {
			p.unwatch(w.queue, w.slot)
			closeRaw(w.queue)
			_ = unix.Munmap(w.mem)
			w.page = wire.Page{}
		}
		w.gone = true
		p.copyOut(w)
		_ = w.conn.Close()
		if w.bag != nil {
			_ = w.bag.Close()
		}
		w.closeKept()
	}
	for _, it := range p.discarded {
		closeRaw(it.fd)
	}
	p.eachHeld(func(h heldConn) bool { closeRaw(h.fd); return false })
	for _, l := range p.listeners {
		p.forgetSockets(l)
	}
	clear(p.workers)
	clear(p.listeners)
	p.orphans, p.discarded, p.unwanted = nil, nil, nil
}
