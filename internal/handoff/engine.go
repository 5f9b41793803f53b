package handoff

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"

	"golang.org/x/sys/unix"
)

// An engine is a thread that hands over connections. There may be several, which then accept from the same sockets, and each of which may serve
// each worker. They decide in turn, under Pool.turn, and beside one another they do only what takes system calls: accept for a worker that has
// been chosen, send, close. Such a flight is of one worker and one engine. All else, which is seldom, is done by who holds Pool.mu
// alone, and then there are no flights: so whatever is not a flight is as if there were one engine. One that is the only one holds
// Pool.mu alone itself.
type engine struct {
	pool   *Pool
	number int
	tid    int // of its thread

	epoll, wake int
	silent      bool // it may wait without a word to Go's scheduler

	seat   seat
	out    outgoing
	info   tcpInfo
	from   []origin // of its flight
	late   []unix.EpollEvent
	broken []breakage
}

// An origin is a socket that a flight accepts from, and how many edges it had had when that began.
type origin struct {
	*socket
	edges uint64
	dry   bool
}

// A breakage is a queue that something is wrong with.
type breakage struct {
	worker *worker
	err    error
}

// MostAcceptors is how many threads may hand over connections.
const MostAcceptors = 8

// perAcceptor is how many processors there are for each where nobody says how many there are to be: the workers are to have most.
const perAcceptor = 4

// acceptors is how many there are where so many are asked for.
func acceptors(asked int) int {
	if asked <= 0 {
		asked = max(1, runtime.GOMAXPROCS(0)/perAcceptor)
	}
	return min(asked, MostAcceptors)
}

// several says whether there is more than one engine. It never changes.
func (p *Pool) several() bool { return len(p.engines) > 1 }

func (p *Pool) newEngine() error {
	e := &engine{pool: p, number: len(p.engines), epoll: -1, wake: -1, from: make([]origin, 0, perMessage)}
	p.engines = append(p.engines, e)
	var err error
	if e.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return err
	}
	if e.wake, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return err
	}
	_, err = p.watch(e.wake, unix.EPOLLIN, slot{wakes: e})
	return err
}

func (e *engine) close() {
	for _, fd := range []int{e.epoll, e.wake} {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
	}
	e.epoll, e.wake, e.seat = -1, -1, seat{}
}

// shareRooms makes what several engines have in common.
func (p *Pool) shareRooms() (err error) {
	if !p.several() {
		return nil
	}
	if p.rooms, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return err
	}
	at, err := p.watch(p.rooms, unix.EPOLLIN, slot{})
	if err != nil {
		return err
	}
	// Not by edges, for who looks may leave some.
	return unix.EpollCtl(p.engines[0].epoll, unix.EPOLL_CTL_MOD, p.rooms, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: at, Pad: p.slots[at].generation})
}

// wakeUp ends its wait.
func (e *engine) wakeUp() {
	if e.wake >= 0 {
		_, _ = unix.Write(e.wake, []byte{1, 0, 0, 0, 0, 0, 0, 0}) // EAGAIN: it is awake already
	}
}

// start makes the calling goroutine's thread e's. Its own, so that waiting in epoll does not wake another one up each time.
func (e *engine) start() {
	runtime.LockOSThread()
	e.silent = mayBeSilent(len(e.pool.engines))
	e.pool.mu.Lock()
	defer e.pool.mu.Unlock()
	e.tid = unix.Gettid()
}

// run hands over connections until ctx ends. Its thread must be e's.
func (e *engine) run(ctx context.Context) error {
	defer e.pool.endRun()
	if !e.pool.beginRun(ctx) {
		return nil
	}
	var events, rooms [64]unix.EpollEvent
	timeout := 0 // there may be what was found at the start
	for ctx.Err() == nil {
		n, err := e.wait(events[:], timeout)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("hand-off: epoll_wait: %w", err)
		}
		if !e.enter(ctx) {
			break
		}
		e.hear(events[:max(n, 0)])
		if e.pool.several() {
			e.hear(rooms[:poll(e.pool.rooms, rooms[:])])
		}
		if len(e.late) > 0 && !e.alone(ctx, e.befell) {
			break
		}
		more := e.dispatch(64)
		if len(e.broken) > 0 && !e.alone(ctx, e.letBroken) {
			break
		}
		if timeout = e.pool.rest.timeout(); more && timeout < 0 {
			timeout = 0
		}
		e.leave()
	}
	return nil
}

// enter begins e's turn. It is false where the Pool is to stop, or is another one's; then nothing has begun.
func (e *engine) enter(ctx context.Context) bool {
	p := e.pool
	if !p.several() {
		p.mu.Lock()
		if p.mayGoOn(ctx) {
			return true
		}
		p.mu.Unlock()
		return false
	}
	p.mu.RLock()
	for p.suspended {
		p.mu.RUnlock()
		p.mu.Lock()
		goes := p.mayGoOn(ctx)
		p.mu.Unlock()
		if !goes {
			return false
		}
		p.mu.RLock()
	}
	p.turn.Lock()
	return true
}

func (e *engine) leave() {
	if e.pool.several() {
		e.pool.turn.Unlock()
		e.pool.mu.RUnlock()
		return
	}
	e.pool.mu.Unlock()
}

// alone calls f, in e's turn, while no other engine does anything. What e knew before may not be so any more. It is false where enter is.
func (e *engine) alone(ctx context.Context, f func()) bool {
	p := e.pool
	if !p.several() {
		f()
		return true
	}
	e.leave()
	p.mu.Lock()
	if !p.mayGoOn(ctx) {
		p.mu.Unlock()
		return false
	}
	f()
	p.mu.Unlock()
	return e.enter(ctx)
}

// depart lets other engines have their turn while e hands something over to w, which nobody else chooses meanwhile.
func (e *engine) depart(w *worker) {
	if e.pool.several() {
		w.fly(true)
		e.pool.turn.Unlock()
	}
}

// land undoes depart.
func (e *engine) land(w *worker) {
	if e.pool.several() {
		e.pool.turn.Lock()
		w.fly(false)
	}
}

func (w *worker) fly(on bool) {
	w.flying = on
	for _, s := range w.serves {
		switch {
		case s.level == nil:
		case on:
			s.level.flying++
		default:
			s.level.flying--
		}
	}
}

// landed has listeners choose again that found w in flight, and is the last thing of a message.
func (e *engine) landed(w *worker) {
	if !e.pool.several() {
		return
	}
	if w.heard {
		w.heard = false
		w.room = w.room || writable(w.queue) // it was perhaps before the message
		e.pool.checkDrained(w)
	}
	if w.room {
		e.pool.offerAll(w)
	}
	for _, s := range w.serves {
		s.flew = false
		if s.level != nil && len(s.listener.levels) > 1 {
			e.pool.enqueue(s.listener)
		}
	}
}

// hear takes up what epoll tells. What is to be done alone is in late then.
func (e *engine) hear(events []unix.EpollEvent) {
	for i := range events {
		if !e.happened(&events[i]) {
			e.late = append(e.late, events[i])
		}
	}
}

// happened notes that a listener has connections or that a queue has room. Both are edges: the flag stays until a system call
// says otherwise, so that nothing is asked of epoll per message. It is false for what is befell's.
func (e *engine) happened(event *unix.EpollEvent) (done bool) {
	p := e.pool
	s := &p.slots[event.Fd]
	switch {
	case s.generation != event.Pad: // removed while the engine waited for its turn
	case s.socket != nil:
		s.socket.edges++
		p.acceptable(s.socket)
		p.enqueue(s.socket.of) // another engine is at it already, but there is something new
	case s.worker != nil:
		if s.worker.stuck || shut(event) {
			return false
		}
		p.hasRoom(s.worker)
	case s.ticker:
		return false
	case s.wakes != nil:
		var count [8]byte
		_, _ = unix.Read(e.wake, count[:])
	}
	return true
}

// shut says whether the worker has shut its queue.
func shut(event *unix.EpollEvent) bool { return event.Events&(unix.EPOLLERR|unix.EPOLLHUP) != 0 }

// befell does what is to be done alone.
func (e *engine) befell() {
	p := e.pool
	for i := range e.late {
		event := &e.late[i]
		s := &p.slots[event.Fd]
		switch {
		case s.generation != event.Pad:
		case s.worker != nil && shut(event):
			p.detach(s.worker, redeliver, "it shut its queue")
		case s.worker != nil:
			p.hasRoom(s.worker)
		case s.ticker:
			p.tick()
		}
	}
	e.late = e.late[:0]
}

// letBroken lets go of the workers whose queues are broken.
func (e *engine) letBroken() {
	for _, b := range e.broken {
		e.pool.detach(b.worker, redeliver, "its queue: "+b.err.Error())
	}
	clear(e.broken)
	e.broken = e.broken[:0]
}

// A slot is what an epoll event points to.
type slot struct {
	generation int32 // tells an event of an earlier tenant
	socket     *socket
	worker     *worker
	wakes      *engine
	ticker     bool
}

// sets are the epoll sets that what is at a slot is in: all engines' for a socket, of which the first is told first. Queues have one of their own where there are several, in which
// each engine looks in its turn, so that none chooses by what another one has not told yet; the first one waits for it.
func (p *Pool) sets(at int32) (all []int) {
	switch s := &p.slots[at]; {
	case s.socket != nil:
		for i := range p.engines {
			all = append(all, p.engines[(int(at)+i)%len(p.engines)].epoll)
		}
		return all
	case s.wakes != nil:
		return []int{s.wakes.epoll}
	case s.worker != nil && p.several():
		return []int{p.rooms}
	}
	return []int{p.engines[0].epoll}
}

// watch adds fd to epoll sets, by edges. Of a socket that several engines watch one that waits is told, or else all, when they wait next.
func (p *Pool) watch(fd int, events uint32, s slot) (int32, error) {
	var at int32
	if n := len(p.freeSlots); n > 0 {
		at, p.freeSlots = p.freeSlots[n-1], p.freeSlots[:n-1]
	} else {
		at = int32(len(p.slots))
		p.slots = append(p.slots, slot{})
	}
	s.generation = p.slots[at].generation
	p.slots[at] = s
	sets := p.sets(at)
	event := unix.EpollEvent{Events: events | unix.EPOLLET, Fd: at, Pad: s.generation}
	if len(sets) > 1 {
		event.Events |= unix.EPOLLEXCLUSIVE
	}
	for i, set := range sets {
		if err := unix.EpollCtl(set, unix.EPOLL_CTL_ADD, fd, &event); err != nil {
			for _, set := range sets[:i] {
				_ = unix.EpollCtl(set, unix.EPOLL_CTL_DEL, fd, nil)
			}
			p.free(at)
			return -1, fmt.Errorf("epoll_ctl: %w", err)
		}
	}
	return at, nil
}

// unwatch undoes watch. It must come before the descriptor is closed: others may hold the same description, which would
// then go on firing. It is nothing where watch failed.
func (p *Pool) unwatch(fd int, at int32) {
	if at < 0 {
		return
	}
	for _, set := range p.sets(at) {
		_ = unix.EpollCtl(set, unix.EPOLL_CTL_DEL, fd, nil)
	}
	p.free(at)
}

func (p *Pool) free(at int32) {
	p.slots[at] = slot{generation: p.slots[at].generation + 1}
	p.freeSlots = append(p.freeSlots, at)
}

// dry notes that there was nothing more to accept from s, unless something has come since it had that many edges.
func (p *Pool) dry(s *socket, edges uint64) {
	if s.gone || !s.acceptable || s.edges != edges {
		return
	}
	s.acceptable = false
	if ready := &s.of.ready; ready.peek() == s {
		ready.pop()
	} else {
		ready.keep(func(o *socket) bool { return o != s })
	}
}

// offerAll lets w get connections of all that it is ready for.
func (p *Pool) offerAll(w *worker) {
	for _, s := range w.serves {
		if s.state == Ready {
			p.offer(s)
		}
	}
}

// runAll runs all engines until ctx ends or one of them cannot go on. The calling goroutine's thread is the first one's.
func (p *Pool) runAll(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, p.wakeAll)
	defer stop()
	errs := make(chan error, len(p.engines))
	for _, e := range p.engines[1:] {
		go func() {
			e.start()
			defer runtime.UnlockOSThread()
			err := e.run(ctx)
			cancel()
			errs <- err
		}()
	}
	err := p.engines[0].run(ctx)
	cancel()
	for range p.engines[1:] {
		err = errors.Join(err, <-errs)
	}
	return err
}

// wakeAll ends all waits, so that who waits looks whether to go on.
func (p *Pool) wakeAll() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, e := range slices.Backward(p.engines) {
		e.wakeUp()
	}
	p.resumed.Broadcast()
}
