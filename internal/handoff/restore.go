package handoff

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/fdbag"
	"github.com/portd/portd/internal/fdstore"
	"github.com/portd/portd/internal/registry"
	"github.com/portd/portd/internal/wire"
)

// A successor goes on with the workers of a portd that is gone, or about to go. It reads their bags while that may still be at work, and
// changes nothing; it takes over when it runs, all at once, and believes the ledger as it is then.

// A returner is a worker as its bag has it, until it is taken over.
type returner struct {
	*worker
	facts
	parts []part
	why   string // it is not to stay; empty: it is
}

// pending is what Restore was given.
type pending struct {
	ledger  *ledger
	workers []*returner
	strange []item         // bags that cannot be understood
	inHand  map[uint32]int // descriptors of connections, by their places in the ledger
}

// Restore reads what a portd before this one has left of its workers: the items ledger, w.… and c.…, whose descriptors are the Pool's from
// then on; others it leaves alone. It is called after the registry has started, as often as items come, and before Run, which takes
// them over. A worker that cannot be restored, or whose reservation is gone, is let go then, as at a stop. The error says of which that
// would be so because this portd does not understand what there is; who takes the place of a portd that still works had better not.
func (p *Pool) Restore(items []fdstore.Item) error {
	p.mu.Lock()
	back := &p.back
	p.mu.Unlock()
	var errs []error
	for _, it := range items {
		kind, number, _ := strings.Cut(it.Name, ".")
		switch {
		case it.Name == "ledger" && back.ledger == nil:
			l, err := openLedger(it.FD)
			if err != nil {
				errs = append(errs, fmt.Errorf("the workers cannot be restored: %w", err))
				back.strange = append(back.strange, item{it.Name, it.FD})
				continue
			}
			back.ledger = l
		case kind == "c":
			at, err := strconv.ParseUint(number, 36, 32)
			if err != nil {
				back.strange = append(back.strange, item{it.Name, it.FD})
				continue
			}
			if back.inHand == nil {
				back.inHand = make(map[uint32]int)
			}
			back.inHand[uint32(at)] = it.FD
		case kind == "w":
			r, err := p.read(it)
			if err != nil {
				errs = append(errs, fmt.Errorf("a worker cannot be restored: %s: %w", it.Name, err))
				back.strange = append(back.strange, item{it.Name, it.FD})
				continue
			}
			back.workers = append(back.workers, r)
		}
	}
	return errors.Join(errs...)
}

// read makes a returner of a bag, and asks what it may still serve.
func (p *Pool) read(it fdstore.Item) (*returner, error) {
	bag, err := fdbag.From(it.FD)
	if err != nil {
		return nil, err
	}
	w, f, err := unpack(bag)
	if err != nil {
		return nil, err
	}
	w.name = it.Name
	r := &returner{worker: w, facts: f}
	for i := range f.Serves {
		s := &f.Serves[i]
		part := part{key: f.key(s), socket: s.Socket, weight: s.Weight, priority: s.Priority}
		res, err := p.cfg.Attacher.Attach(context.Background(), w.caller, part.key.Reservation)
		switch {
		case err == nil && s.Index < len(res.Assigned):
			part.owner, part.endpoint = res.Owner, res.Assigned[s.Index].Endpoint
			err = p.relend(&part, s.Lent)
		case err == nil:
			err = registry.ErrNotFound
		}
		if err != nil {
			if !errors.Is(err, registry.ErrNotFound) {
				p.log.Warn("a worker cannot go on with a listener", "worker", w.id, "reservation", part.key.Reservation, "err", err)
			}
			part.gone = true
		}
		r.parts = append(r.parts, part)
	}
	if !slices.ContainsFunc(r.parts, func(p part) bool { return !p.gone }) {
		r.why = "its reservation is gone"
	}
	return r, nil
}

// relend tells who lends sockets that a worker still has its.
func (p *Pool) relend(of *part, shares []share) error {
	if len(shares) == 0 {
		return nil
	}
	lent := make([]registry.Socket, len(shares))
	for i, s := range shares {
		e := of.endpoint
		e.First, e.Last = s.Port, s.Port
		lent[i] = registry.Socket{Endpoint: e, FD: -1, Member: s.Member, Loan: s.Loan}
	}
	if err := p.cfg.Lender.Relend(of.key, lent...); err != nil {
		return err
	}
	of.sockets = lent
	return nil
}

// takeOver makes this portd the one that goes on with what there is. The lock is held, and the engine does not run yet.
func (p *Pool) takeOver() {
	back := &p.back
	defer func() {
		*back = pending{}
		p.begun = true
		close(p.begin)
		p.lookAgain()
	}()
	if p.cfg.Keep == nil {
		return
	}
	p.ledger = back.ledger
	if p.ledger == nil {
		var err error
		if p.ledger, err = newLedger(); err != nil {
			p.log.Error("workers would have to attach again if portd died", "err", err)
		}
	}
	if p.ledger == nil {
		for _, s := range back.strange {
			p.discardStrange(s)
		}
		for _, r := range back.workers {
			p.dismiss(r)
		}
		return
	}
	slices.SortFunc(back.workers, func(a, b *returner) int { return a.attached.Compare(b.attached) })
	back.workers = slices.DeleteFunc(back.workers, func(r *returner) bool {
		place, serves := p.ledger.claim(r.facts.Ledger, len(r.Serves), r.Tenant)
		if place == nil || place.standing == joining || place.standing == released {
			p.dismiss(r)
			return true
		}
		r.workerPlace, r.mine = place, r.Tenant
		for i := range serves {
			r.serves = append(r.serves, &serving{worker: r.worker, number: uint32(i), servingPlace: &serves[i]})
		}
		return false
	})
	p.ledger.own(p.holder)
	p.cfg.Keep.Put("ledger", p.ledger.fd)
	for _, s := range back.strange {
		p.discardStrange(s)
	}
	of := func(tenant uint64) *worker {
		for _, r := range back.workers {
			if r.mine == tenant {
				return r.worker
			}
		}
		return nil
	}
	p.settleMessages(of, back.inHand)
	p.judge(back)
	p.seatEngines()

	p.ledger.head.past.add(p.past)
	p.past = &p.ledger.head.past
	p.known = make(map[registry.SocketKey]uint32)
	for i := range p.ledger.head.listeners {
		if l := &p.ledger.listeners[i]; l.length > 0 {
			p.known[l.key()] = i
		}
	}
	for _, l := range p.listeners {
		p.account(l)
	}
	for _, r := range back.workers {
		p.takeBackIn(r)
	}
	lost := p.grasp(back.inHand)
	for _, at := range p.known { // their reservations are gone
		p.past.add(&p.ledger.listeners[at].counts)
		p.ledger.freeListener(at)
	}
	p.known = nil
	if len(back.workers) > 0 || lost > 0 {
		p.log.Info("going on where the portd before stopped", "workers", len(p.workers), "connections_lost", lost)
	}
}

// takeBackIn makes a returner one of the workers again.
func (p *Pool) takeBackIn(r *returner) {
	w := r.worker
	for i, part := range r.parts {
		if part.gone && !w.serves[i].gone {
			w.serves[i].gone = true
			if w.standing == attached {
				p.tell(w, wire.AppendListenerGone(nil, wire.ListenerGone{Listener: uint32(i), Reason: "released"}))
			}
		}
	}
	for _, s := range w.serves {
		if s.gone {
			s.owes = false
		}
		if s.owes {
			w.draining++
		}
	}
	if err := p.enroll(w, r.parts); err != nil {
		p.log.Error("a worker cannot be restored; it attaches again", "worker", w.id, "err", err)
		p.dismiss(r)
		return
	}
	for _, part := range r.parts {
		if len(part.sockets) > 0 {
			w.loans = append(w.loans, loan{part.key, part.sockets})
		}
	}
	w.page.Sent(w.sent, w.sequence)
	p.returned = append(p.returned, w)
	switch {
	case w.standing == leaving:
		p.detach(w, redeliver, "it was gone already")
	case r.why != "":
		p.detach(w, leaveQueue, r.why)
	default:
		p.expect(w) // what lies in its queue may have done so for long
		p.log.Debug("worker is back", "worker", w.id, "pid", w.caller.PID)
	}
}

// dismiss lets go of one that does not become a worker again.
func (p *Pool) dismiss(r *returner) {
	_ = unix.Shutdown(r.queue, unix.SHUT_RDWR)
	closeRaw(r.queue)
	p.hangUp(r.conn)
	_ = unix.Munmap(r.mem)
	for _, part := range r.parts {
		if len(part.sockets) > 0 {
			p.unwanted = append(p.unwanted, loan{part.key, part.sockets})
		}
	}
	p.discard(r.name, r.bag.FD())
}

// discardStrange puts away an item that is not understood. The worker that a bag is of may wait at the other ends of what is in there.
func (p *Pool) discardStrange(it item) {
	if it.name == "ledger" && p.ledger != nil { // the new one has its place in the store
		closeRaw(it.fd)
		return
	}
	if bag, err := fdbag.From(it.fd); err == nil {
		if fds, err := bag.Open(); err == nil {
			for _, fd := range fds {
				_ = unix.Shutdown(fd, unix.SHUT_RDWR)
				closeRaw(fd)
			}
		}
	}
	p.discard(it.name, it.fd)
}

// grasp takes what was in the hands of portds before into ours, as far as there are descriptors for it, and counts the rest as lost.
func (p *Pool) grasp(have map[uint32]int) (lost int) {
	for _, g := range p.ledger.inHand() {
		if g.incarnation == p.ledger.incarnation {
			continue
		}
		var l *listener
		of := p.past
		if at := g.listener; at > 0 && at <= mostListeners && p.ledger.listeners[at-1].length > 0 {
			of = &p.ledger.listeners[at-1].counts
			l = p.listeners[p.ledger.listeners[at-1].key()]
		}
		fd, ok := have[g.at]
		if ok && g.listener == 0 {
			if l = p.acceptedBy(fd); l != nil {
				g.hand.listener = l.place
			}
		}
		delete(have, g.at)
		switch {
		case !ok:
			of.lost++
			lost++
			p.ledger.let(g.at)
		case l == nil || !l.listening:
			p.drop(heldConn{fd: fd, hand: g.at})
		case g.doubt.sequence != 0:
			p.ledger.regrip(g.at, fd)
			p.doubts = append(p.doubts, doubtful{heldConn{fd: fd, conn: g.connection(), hand: g.at}, l, g.doubt})
			p.withhold(g.doubt.tenant)
		default:
			p.ledger.regrip(g.at, fd)
			p.uncount(g.at, l)
			p.take(l, heldConn{fd: fd, conn: g.connection(), hand: g.at})
		}
	}
	for _, fd := range have { // nobody's any more
		closeRaw(fd)
	}
	for _, s := range p.ledger.seats() {
		if at := *s.accepting; at > 0 && at <= mostListeners { // it may have had one, and not yet written down
			p.ledger.listeners[at-1].lost++
			lost++
		}
		s.accepts(nil)
	}
	p.ledger.retaken()
	if len(p.doubts) > 0 {
		p.wonder(shortestTick)
	}
	return lost
}

// acceptedBy is the listener that a connection came to; nil where it is not there any more.
func (p *Pool) acceptedBy(fd int) *listener {
	here, err := placeOf(fd)
	if err != nil {
		return nil
	}
	for _, l := range p.listeners {
		for _, s := range l.sockets {
			if where, err := placeOf(s.fd); err == nil && where.has(here) {
				return l
			}
		}
	}
	return nil
}

// take gives l a connection that comes from a portd before.
func (p *Pool) take(l *listener, h heldConn) {
	e := l.endpointOf(&h)
	for _, s := range l.sockets {
		if s.endpoint == *e {
			h.endpoint, h.conn.Local = &s.endpoint, s.local
		}
	}
	l.held.push(h)
	p.enqueue(l)
}

// settleMessages finds out what became of each engine's message. The one that was just being counted comes first, since the others' counts
// follow from its.
func (p *Pool) settleMessages(of func(tenant uint64) *worker, have map[uint32]int) {
	for _, open := range []bool{false, true} {
		for _, s := range p.ledger.seats() {
			if s.journal.sequence != 0 && (s.journal.open != 0) == open {
				p.settleMessage(&s, of, have)
			}
		}
	}
}

// seatEngines gives the engines their places in the ledger.
func (p *Pool) seatEngines() {
	p.ledger.writtenBy(len(p.engines))
	for _, e := range p.engines {
		e.seat = p.ledger.seat(e.number, len(p.engines))
	}
}

// settleMessage finds out what became of a message in flight. Where it was sent, it is counted; where it was not, its connections are still in hand.
// Where that cannot be told its sequence is not used again, and its connections are not sent again, unless it is told later: of those in
// have there are descriptors.
func (p *Pool) settleMessage(s *seat, of func(tenant uint64) *worker, have map[uint32]int) {
	j := s.journal
	n := min(int(j.n), perMessage)
	var w *worker
	if j.worker != 0 {
		w = of(j.worker)
	}
	fate := unknown
	if w != nil {
		fate = sent
		if w.sequence < j.sequence { // else it was counted already
			fate = p.fateOf(w, j.sequence, one(j, n, have), w.standing == leaving)
		}
	}
	if fate == unknown {
		p.doubt(j, n, have)
	}
	if fate != unsent && w != nil {
		w.sequence = max(w.sequence, j.sequence)
	}
	total := p.past
	if at := j.listener; at > 0 && at <= mostListeners {
		total = &p.ledger.listeners[at-1].counts
	}
	switch fate {
	case sent:
		j.base(total)
		w.sent = j.sent + uint64(n)
		if int(j.serving) < len(w.serves) {
			w.serves[j.serving].sent = j.servingSent + uint64(n)
		}
		again := uint64(0)
		for _, at := range j.hands[:n] {
			if at > 0 && at < mostHands && p.ledger.hands[at].flags&wire.Redelivered != 0 {
				again++
			}
		}
		total.handedOver, total.redelivered = j.handedOver+uint64(n), j.redelivered+again
	case unknown:
		for _, at := range j.hands[:n] {
			if at == 0 || at >= mostHands || p.ledger.hands[at].owner != 0 && p.ledger.hands[at].doubt.sequence == 0 {
				total.lost++
			}
		}
	}
	if fate == unsent {
		for _, at := range j.hands[:n] {
			if at == 0 { // the ledger had no place for it
				total.lost++
			}
		}
		n = 0
	}
	hands := j.hands
	for i := range hands {
		if hands[i] >= mostHands || i < n && (p.ledger.hands[hands[i]].owner == 0 || p.ledger.hands[hands[i]].doubt.sequence != 0) {
			hands[i] = 0 // that far the portd before had come, or it is in doubt
		}
	}
	s.settled(n, &hands)
}

// account gives l its place in the ledger.
func (p *Pool) account(l *listener) {
	if p.ledger == nil || l.place != 0 {
		return
	}
	place, at := p.ledger.listener(l.key, p.known)
	if place == nil {
		return
	}
	delete(p.known, l.key)
	place.counts.add(l.counts)
	l.counts, l.place = &place.counts, at+1
	l.shared = l.shared || place.shared
	if l.shared {
		p.share(l)
	}
}

// share notes that a program has, or may have kept, the sockets of l.
func (p *Pool) share(l *listener) {
	l.shared, p.shared[l.key.Reservation] = true, true
	if l.place != 0 {
		p.ledger.listeners[l.place-1].shared = true
	}
}

// close gives up the place of a listener that is not there any more.
func (p *Pool) close(l *listener) {
	p.past.add(l.counts)
	last := *l.counts
	l.counts = &last
	if l.place != 0 {
		p.ledger.freeListener(l.place - 1)
		l.place = 0
	}
}
