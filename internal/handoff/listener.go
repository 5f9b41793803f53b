package handoff

import (
	"net/netip"
	"slices"
	"syscall"
	"time"

	"github.com/portd/portd/internal/registry"
	"github.com/portd/portd/internal/wire"
	"golang.org/x/sys/unix"
)

// A listener is one assigned endpoint: its sockets while it listens, and the workers that want its connections. It is there as long
// as it has either.
type listener struct {
	key       registry.SocketKey
	owner     registry.Principal // known once a worker has come
	endpoint  registry.Endpoint
	listening bool
	options   registry.HandoffOptions

	// For when there is no worker: see without.go.
	door      registry.Reception // 0: not known, or just being changed
	shown     registry.Reception // what it was last known to be
	alone     time.Time          // since when there is none; zero while there is one
	timer     *time.Timer
	arriving  int  // workers that are about to attach
	borrowers int  // programs that have the sockets themselves
	deaf      bool // the engine does not watch the sockets

	sockets []*socket
	ready   fifo[*socket]  // have connections, as far as is known
	held    fifo[heldConn] // accepted, and without a worker again
	workers []*serving     // of workers that take connections, ready or not
	levels  []*level       // the same by their priority
	staged  int            // accepted, and waiting for one of workers
	due     fifo[*serving] // of workers, have room for what waits for them
	shared  bool           // programs have, or had, the sockets themselves: see Pool.shared
	queued  bool           // is in Pool.work

	takeBackAfter time.Duration // from a worker that does not take what it was sent; 0: never

	*counts        // in the ledger
	place   uint32 // there, plus one; 0: in ordinary memory
	rate    rate   // of connections handed over
	sampler sampler
}

// A socket is one listening socket. The descriptor is the binder's.
type socket struct {
	fd         int
	slot       int32
	of         *listener
	endpoint   registry.Endpoint
	local      wire.Addr // absent where the socket listens on more than one address
	adopted    bool      // a program had it first, which may block in accept
	acceptable bool      // is in the listener's ready
	gone       bool
	edges      uint64 // there were, that told of connections

	// What waiting in accept has cost lately, and when: see acceptShared.
	debt    time.Duration
	delayed time.Time
}

// A heldConn is an accepted connection that portd has in its hands.
type heldConn struct {
	fd       int
	conn     wire.Connection
	endpoint *registry.Endpoint // nil where it is not known any more
	hand     uint32             // its place in the ledger; 0: it has none
}

// Listening says that these sockets listen from now on, or go on listening, with these options. Others that the key had before are
// forgotten.
func (p *Pool) Listening(key registry.SocketKey, sockets []registry.Socket, opt registry.ListenOptions) {
	p.listening(key, sockets, opt)
	p.settle(key)
}

func (p *Pool) listening(key registry.SocketKey, sockets []registry.Socket, opt registry.ListenOptions) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return
	}
	l := p.listener(key)
	defer p.attend(l)
	p.setOptions(l, opt.Handoff)
	if l.listening && slices.EqualFunc(l.sockets, sockets, func(o *socket, s registry.Socket) bool { return o.fd == s.FD && o.endpoint == s.Endpoint }) {
		return
	}
	l.door, l.shown, l.deaf = 0, 0, false
	p.forgetSockets(l)
	l.listening = true
	for i, s := range sockets {
		own := &socket{fd: s.FD, of: l, endpoint: s.Endpoint, adopted: s.Adopted}
		l.shared = l.shared || s.Adopted
		if i == 0 {
			l.endpoint = s.Endpoint
		} else {
			l.endpoint.Last = s.Endpoint.Last
		}
		switch {
		case s.Endpoint.Proto == registry.Unix:
			own.local = wire.Addr{Family: wire.FamilyUnix, Path: []byte(s.Endpoint.Path)}
		case !s.Endpoint.Addr.IsUnspecified() && s.Endpoint.Addr.Zone() == "":
			own.local = wire.AddrOf(netip.AddrPortFrom(s.Endpoint.Addr, s.Endpoint.First))
		}
		at, err := p.watch(s.FD, unix.EPOLLIN, slot{socket: own})
		if err != nil {
			p.log.Error("cannot watch a listening socket; nobody gets its connections", "endpoint", s.Endpoint, "err", err)
			continue
		}
		own.slot = at
		l.sockets = append(l.sockets, own)
	}
	p.enqueue(l)
}

// Closing says that the key's sockets are about to stop listening. When it returns the engine does not use them any more, and
// connections that were waiting for another worker are closed.
func (p *Pool) Closing(key registry.SocketKey) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if l := p.listeners[key]; l != nil {
		p.stopListening(l)
	}
}

// setOptions makes what is said of the hand-off count from the next message on.
func (p *Pool) setOptions(l *listener, o registry.HandoffOptions) {
	before := l.options
	l.options = o
	if o.Strategy != before.Strategy {
		l.rank()
		p.enqueue(l)
		p.wakeUp()
	}
	p.setTakeBack(l, o.TakeBackAfter)
}

func (p *Pool) stopListening(l *listener) {
	p.forgetSockets(l)
	l.listening, l.alone = false, time.Time{}
	l.wait()
	for _, s := range l.workers {
		l.unstage(s)
	}
	for l.held.n > 0 {
		p.drop(l.held.pop())
	}
	p.forgetUnused(l)
}

func (p *Pool) forgetSockets(l *listener) {
	for _, s := range l.sockets {
		if !l.deaf {
			p.unwatch(s.fd, s.slot)
		}
		s.gone = true
	}
	l.sockets, l.ready = nil, fifo[*socket]{}
}

// abandon takes s, the first of its listener's ready sockets, out of use until it listens anew.
func (p *Pool) abandon(s *socket) {
	p.unwatch(s.fd, s.slot)
	s.gone = true
	s.of.ready.pop()
	s.of.sockets = slices.DeleteFunc(s.of.sockets, func(o *socket) bool { return o == s })
}

// listener is the key's, made where there is none.
func (p *Pool) listener(key registry.SocketKey) *listener {
	l := p.listeners[key]
	if l == nil {
		l = &listener{key: key, shared: p.shared[key.Reservation], counts: &counts{}}
		p.listeners[key] = l
		p.account(l)
	}
	return l
}

func (p *Pool) forgetUnused(l *listener) {
	if !l.listening && len(l.workers)+l.borrowers+l.arriving == 0 && p.listeners[l.key] == l {
		delete(p.listeners, l.key)
		p.close(l)
	}
}

// acceptable notes that s has connections.
func (p *Pool) acceptable(s *socket) {
	if !s.acceptable {
		s.acceptable = true
		s.of.ready.push(s)
		p.enqueue(s.of)
	}
}

// enqueue makes the engine look at l if there is something to hand over. Where no worker has room it drops out again, and the next
// room brings it back.
func (p *Pool) enqueue(l *listener) {
	if !l.queued && l.ready.n+l.held.n+l.due.n > 0 {
		l.queued = true
		p.work.push(l)
	}
}

// dispatch hands over what it can, message by message, at most so many, and says whether there is more to do.
func (e *engine) dispatch(messages int) (more bool) {
	p := e.pool
	if !p.rest.over() {
		return false
	}
	for ; p.work.n > 0 && messages > 0; messages-- {
		l := p.work.pop()
		l.queued = false
		moved, err := e.handOverSome(l)
		if moved || err != 0 {
			p.enqueue(l)
		}
		if err != 0 {
			if p.rest.begin() {
				p.log.Warn("cannot hand over connections; they wait", "err", limit(err))
			}
			return false
		}
	}
	return p.work.n > 0
}

// handOverSome hands over a message, where the client's address decides a few, and says whether anything has happened. Where not, no
// worker has room.
func (e *engine) handOverSome(l *listener) (moved bool, out syscall.Errno) {
	if l.sticky() {
		return e.assign(l)
	}
	if l.ready.n+l.held.n == 0 {
		return false, 0
	}
	to := l.pick()
	if to == nil {
		return false, 0
	}
	out = e.handOver(l, to)
	l.turn()
	return true, out
}

// turn lets the next one of several ports that have connections be the first.
func (l *listener) turn() {
	if l.ready.n > 1 {
		l.ready.push(l.ready.pop())
	}
}

// handOver fills one message for a worker that has room, and sends it. The error is one that will not go away at once, such as
// EMFILE.
func (e *engine) handOver(l *listener, to *serving) syscall.Errno {
	p, o, w := e.pool, &e.out, to.worker
	o.message = wire.BeginFrame(o.frame[:0], w.sequence+1)
	n, most := 0, perMessage-w.fewer
	o.begin(p.began)
	sticky := l.sticky()
	held := &l.held
	if sticky {
		held = &to.staged
		l.staged -= min(held.n, most)
	}
	for ; n < most && held.n > 0; n++ {
		h := held.pop()
		o.fds[n], o.conns[n], o.hands[n] = h.fd, h.conn, h.hand
		o.conns[n].Listener = to.number
		o.message = wire.AppendConnection(o.message, &o.conns[n])
		o.at[n] = l.endpointOf(&h)
	}
	if sticky {
		most = n
	}
	p.ledger.reserve(o.hands[n:most])
	var out syscall.Errno
	e.from = e.from[:0]
	switch {
	case n == most:
	case p.several() && !l.shared:
		for i := range min(l.ready.n, most-n) {
			s := l.ready.at(i)
			e.from = append(e.from, origin{socket: s, edges: s.edges})
		}
	default:
		n, out = e.acceptAll(l, to, n, most)
	}
	asked := l.sampler.due(&l.rate)

	e.depart(w)
	for i := range e.from {
		if n == most || out != 0 {
			break
		}
		n, e.from[i].dry, out = e.acceptSome(e.from[i].socket, to, n, most)
	}
	var waited time.Duration
	var err error
	sampled, room := asked, w.room
	if n > 0 {
		if sampled { // before the worker can send anything
			waited, sampled = e.info.waited(o.fds[0])
		}
		e.seat.intend(l, to, n, &o.hands)
		if err = o.send(w.queue, wire.EndFrame(o.message), n); err == nil {
			o.closeAll(n)
			room = w.allowed > 1 && writable(w.queue)
		}
	}
	e.land(w)

	p.ledger.unreserve(o.hands[n:most])
	for _, f := range e.from {
		if f.dry {
			p.dry(f.socket, f.edges)
		}
	}
	if n == 0 {
		if asked {
			l.sampler.skip = 0
		}
		e.landed(w)
		return out
	}
	switch err {
	case nil:
		e.seat.landed(l)
		w.room = room
		e.sent(l, to, n)
		e.seat.settled(n, &o.hands)
		if sampled {
			l.sampler.waits.add(waited)
		}
		if out == 0 {
			p.rest.end()
		}
	case unix.EAGAIN:
		e.seat.settled(0, &o.hands)
		w.room = false
		e.hold(l, n)
	case unix.ETOOMANYREFS, unix.ENOBUFS, unix.ENOMEM:
		e.seat.settled(0, &o.hands)
		e.hold(l, n)
		out = err.(syscall.Errno)
	default:
		e.seat.settled(0, &o.hands)
		w.room = false
		e.hold(l, n)
		e.broken = append(e.broken, breakage{w, err})
	}
	e.landed(w)
	return out
}

// endpointOf is that of the port that a connection in portd's hands came to.
func (l *listener) endpointOf(h *heldConn) *registry.Endpoint {
	if h.endpoint != nil {
		return h.endpoint
	}
	port := h.conn.Local.Port
	if len(l.sockets) != 1 && port == 0 {
		port = localPort(h.fd)
	}
	for _, s := range l.sockets {
		if len(l.sockets) == 1 || s.endpoint.First == port {
			return &s.endpoint
		}
	}
	e := l.endpoint // its socket is not there any more
	e.First, e.Last = port, port
	return &e
}

// acceptAll accepts for a message that has n connections, from all sockets of l that have some, until it has as many as it may have, and says
// how many it has then.
func (e *engine) acceptAll(l *listener, to *serving, n, most int) (int, syscall.Errno) {
	var out syscall.Errno
	for n < most && l.ready.n > 0 && out == 0 {
		var dry bool
		s := l.ready.peek()
		if n, dry, out = e.acceptSome(s, to, n, most); dry {
			e.pool.dry(s, s.edges)
		}
	}
	return n, out
}

// acceptSome accepts from one socket, until there is nothing more.
func (e *engine) acceptSome(s *socket, to *serving, n, most int) (_ int, dry bool, out syscall.Errno) {
	o := &e.out
	for n < most && !dry && out == 0 && !s.gone {
		c := &o.conns[n]
		if o.fds[n], dry, out = e.acceptOne(s, c, o.hands[n]); o.fds[n] < 0 {
			continue
		}
		c.Listener = to.number
		o.message = wire.AppendConnection(o.message, c)
		o.at[n] = &s.endpoint
		n++
	}
	return n, dry, out
}

// acceptOne accepts a connection, which is to have a place in the ledger. Without one, which is -1, s is dry, or there was a connection that
// had ended already, or the error says what the kernel is out of.
func (e *engine) acceptOne(s *socket, c *wire.Connection, hand uint32) (fd int, dry bool, errno syscall.Errno) {
	o := &e.out
	e.seat.accepts(s)
	if s.of.shared {
		fd, errno = e.acceptShared(s)
	} else {
		fd, errno = accept(s.fd, &o.from, false)
	}
	if errno == 0 {
		*c = wire.Connection{Accepted: o.now.UnixNano(), Peer: peerAddr(&o.from), Local: s.local}
		e.seat.holds(hand, fd, s.of, c)
		return fd, false, 0
	}
	e.seat.accepts(nil)
	switch errno {
	case unix.EINTR, unix.ECONNABORTED, unix.EPROTO, unix.ENOPROTOOPT, unix.ENETDOWN, unix.ENETUNREACH, unix.EHOSTDOWN,
		unix.EHOSTUNREACH, unix.ENONET, unix.EPERM:
		// accept(2): errors that are pending on the new connection come up here, and concern it alone.
		return -1, false, 0
	case unix.EMFILE, unix.ENFILE, unix.ENOBUFS, unix.ENOMEM:
		return -1, false, errno
	case unix.EAGAIN:
	default:
		e.pool.log.Error("a listening socket does not accept", "endpoint", s.endpoint, "err", errno)
	}
	return -1, true, 0
}

// hold takes the message's n connections back into portd's hands; they are the first to be handed over.
func (e *engine) hold(l *listener, n int) {
	o := &e.out
	for i := range n {
		l.held.push(heldConn{o.fds[i], o.conns[i], o.at[i], o.hands[i]})
	}
	e.pool.enqueue(l)
}
