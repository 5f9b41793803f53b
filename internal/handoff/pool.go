// Package handoff matches accepted connections with workers that have room.
//
// A worker attaches over the hand-off socket and gets a queue of its own, a SEQPACKET pair. portd chooses a worker with
// room first, then accepts a few connections for it and passes them on in one message; while nobody has room they wait
// in the listener's backlog, where any worker can get them. portd keeps a duplicate of the worker's end of the queue, so
// that what a dead worker had not taken yet goes to another one, without an acknowledgement on the wire.
package handoff

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/portd/portd/internal/fdstore"
	"github.com/portd/portd/internal/registry"
	"golang.org/x/sys/unix"
)

// An Attacher says which reservation a reference means and whether the caller may serve it. *registry.Registry is one.
type Attacher interface {
	Attach(ctx context.Context, c registry.Caller, ref string) (*registry.Reservation, error)
}

// A Lender gives out the sockets themselves.
type Lender interface {
	// Lend returns descriptors of the key's sockets that are the caller's to close, and makes a UDP socket receive.
	// Each Lend that succeeded is followed by a Return of what it gave, of which the descriptors may be closed by then.
	Lend(key registry.SocketKey) ([]registry.Socket, error)
	// Relend says that a worker still has what a portd before this one had lent it; Return will follow.
	Relend(key registry.SocketKey, lent ...registry.Socket) error
	Return(key registry.SocketKey, lent ...registry.Socket)
	// Drain says that a worker wants no more datagrams in what it was lent, or wants them again; what is queued stays.
	Drain(key registry.SocketKey, on bool, lent ...registry.Socket)
}

// Config is what a Pool needs.
type Config struct {
	Attacher Attacher
	Lender   Lender
	Doors    Doorkeeper   // nil: clients wait where there is no worker, whatever their listener says
	Log      *slog.Logger // silent when nil
	// Join says in which network namespace the peer of a connection lives, as endpoints spell it, and keeps it known by that name
	// until leave is called; nil: everybody is taken for a program in portd's own.
	Join func(syscall.Conn) (netns string, leave func(), err error)
	// Enter runs f on a thread in a network namespace, as netns.Host does; nil: connections are looked for in portd's own only.
	Enter func(netns string, f func() error) error
	// MaxPerUser bounds the attachments of one user other than root and portd's own; 0 means a sixteenth of
	// RLIMIT_NOFILE, a quarter of the descriptors, since each takes four.
	MaxPerUser int
	// Keep is what outlives portd: with it, workers go on when portd dies. nil: they attach again.
	Keep *fdstore.Store
	// Acceptors is how many threads accept connections and hand them over, MostAcceptors at most; 0: one for each four processors.
	Acceptors int
}

// spareDescriptors are for everything but workers, where root's workers take what they can.
const spareDescriptors = 1024

// A Pool is the hand-off: listeners on one side, workers on the other. It is a registry.ListenerObserver.
type Pool struct {
	cfg  Config
	log  *slog.Logger
	self uint32 // portd's own uid

	engines  []*engine // one at least
	rooms    int       // an epoll set of the queues, where there are several; -1: it is the only engine's own
	nofile   uint64    // RLIMIT_NOFILE
	mostOwn  int       // attachments of root and portd's own user
	ticker   int       // a timer: see stuck.go
	guard    *guard
	ring     *ring         // for adopted sockets; nil where none was needed yet, or there is none
	ringless bool          // there is none
	patience time.Duration // with a handshake
	truesize int           // what one padded frame counts for in its sender's buffer
	began    time.Time     // what rates count seconds from
	surveys  surveys

	// doors is held by who turns one, and is taken before mu.
	doors sync.Mutex
	bell  chan struct{}

	burial    chan struct{} // tells the undertaker
	begin     chan struct{} // closed when begun
	abandoned atomic.Bool   // all that there is, is another portd's
	// talk is held, to read, by sessions while they do what a worker has said, and taken before mu. Suspend has it.
	talk sync.RWMutex

	// mu guards everything below. The engine holds it between two waits and never blocks under it, so the others wait for
	// microseconds; whoever has it knows that the engine uses no descriptor. Where there are several they share it, and turn is
	// theirs to write to what is below, with some exceptions: see engine.
	mu        sync.RWMutex
	turn      sync.Mutex
	closed    bool
	listeners map[registry.SocketKey]*listener
	callers   map[registry.SocketKey]struct{} // of the doorman
	workers   map[string]*worker
	// shared are the reservations whose sockets a program has been lent. It may keep a duplicate after it has given them
	// back, and whatever it does to that is done to ours.
	shared    map[string]bool
	perUser   map[uint32]*tally
	slots     []slot
	freeSlots []int32
	work      fifo[*listener] // have something to hand over
	rest      rest
	in        incoming
	record    record
	past      *counts                       // of listeners that are not there any more
	ledger    *ledger                       // nil where nobody keeps it
	known     map[registry.SocketKey]uint32 // places of listeners that are still to come; while taking over
	tenants   uint64                        // that there were
	holder    uint32                        // pid of the process that shares our descriptors; 0: none
	back      pending
	begun     bool
	returned  []*worker // whose sessions have not begun yet
	discarded []item
	unwanted  []loan
	pause
	doubts   []doubtful    // connections of which it is not known whose they are
	orphans  []*worker     // gone, with connections in their queues that portd has no descriptors for
	interval time.Duration // of the ticker
	ticking  bool
	news     chan struct{} // closed when workers change; nil where nobody waits for that
}

// tally is what one user has.
type tally struct{ attached, knocking int }

// New makes a Pool. Its Run must be called, if only to release what New took.
func New(cfg Config) (*Pool, error) {
	p := &Pool{
		cfg: cfg, log: cfg.Log, self: uint32(os.Geteuid()),
		rooms: -1, ticker: -1, interval: longestTick, guard: newGuard(), patience: firstMessage,
		listeners: make(map[registry.SocketKey]*listener),
		callers:   make(map[registry.SocketKey]struct{}), bell: make(chan struct{}, 1),
		workers: make(map[string]*worker),
		shared:  make(map[string]bool),
		perUser: make(map[uint32]*tally),
		record:  newRecord(recordSize), began: time.Now(), past: &counts{},
		burial: make(chan struct{}, 1), begin: make(chan struct{}),
	}
	p.resumed.L = &p.mu
	if p.log == nil {
		p.log = slog.New(slog.NewTextHandler(io.Discard, nil))
	}
	if err := p.open(); err != nil {
		p.shut()
		return nil, fmt.Errorf("make the hand-off: %w", err)
	}
	return p, nil
}

func (p *Pool) open() (err error) {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return err
	}
	if p.cfg.MaxPerUser == 0 {
		p.cfg.MaxPerUser = int(min(limit.Cur, 1<<20) / 16)
		p.mostOwn = (int(min(limit.Cur, 1<<20)) - spareDescriptors) / 4
	}
	p.nofile, p.mostOwn = limit.Cur, max(p.mostOwn, 3*p.cfg.MaxPerUser)
	if p.truesize, err = measureFrame(); err != nil {
		return err
	}
	for range acceptors(p.cfg.Acceptors) {
		if err := p.newEngine(); err != nil {
			return err
		}
	}
	if err := p.shareRooms(); err != nil {
		return err
	}
	if p.ticker, err = unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_CLOEXEC|unix.TFD_NONBLOCK); err != nil {
		return err
	}
	_, err = p.watch(p.ticker, unix.EPOLLIN, slot{ticker: true})
	return err
}

func (p *Pool) shut() {
	for _, w := range p.orphans {
		p.forget(w)
	}
	p.orphans = nil
	for _, e := range p.engines {
		e.close()
	}
	for _, fd := range []int{p.rooms, p.ticker} {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
	}
	p.rooms, p.ticker = -1, -1
	if p.ledger != nil {
		last := *p.past
		p.past = &last
		for _, l := range p.listeners {
			last := *l.counts
			l.counts, l.place = &last, 0
		}
		if !p.abandoned.Load() {
			p.cfg.Keep.Remove("ledger")
		}
		p.ledger.close()
		p.ledger = nil
	}
	if p.ring != nil {
		p.ring.close()
		p.ring = nil
	}
}

// Begun is closed when Run has taken over what there was, and hands over connections.
func (p *Pool) Begun() <-chan struct{} { return p.begin }

// Run hands over connections until ctx ends, then lets go of all workers: what lies in their queues is theirs.
func (p *Pool) Run(ctx context.Context) error {
	p.engines[0].start()
	defer runtime.UnlockOSThread()
	p.mu.Lock()
	if ctx.Err() == nil {
		p.takeOver()
	}
	p.mu.Unlock()
	beside, end := context.WithCancel(ctx)
	var others sync.WaitGroup
	others.Go(func() { p.undertaker(beside) })
	others.Go(func() { p.sweeper(beside) })
	others.Go(func() { p.doorman(beside) })
	err := p.runAll(ctx)
	end()
	others.Wait()
	p.letGo()
	p.undertake()
	return err
}

// letGo is the end: of all workers, or where those are another portd's now, of what this process has of them.
func (p *Pool) letGo() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	p.changed()
	switch {
	case p.abandoned.Load():
		p.closeAll()
	case p.suspended:
		p.suspended = false
		p.talk.Unlock()
	}
	for _, w := range p.workers {
		p.detach(w, leaveQueue, "portd stops")
	}
	for _, l := range p.listeners {
		p.stopListening(l)
	}
	p.shut()
}

// wakeUp has an engine look for work.
func (p *Pool) wakeUp() { p.engines[0].wakeUp() }

// rest is a pause after the kernel ran out of something.
type rest struct {
	until time.Time
	pause time.Duration
}

const (
	shortestRest = 10 * time.Millisecond
	longestRest  = time.Second
)

// begin makes the next pause, each twice as long as the one before, and says whether it is the first.
func (r *rest) begin() (first bool) {
	first = r.pause == 0
	r.pause = min(max(2*r.pause, shortestRest), longestRest)
	r.until = time.Now().Add(r.pause)
	return first
}

func (r *rest) end() { *r = rest{} }

// over says whether the pause has passed; how long the next one would be is remembered until end.
func (r *rest) over() bool {
	if !r.until.IsZero() && time.Now().Before(r.until) {
		return false
	}
	r.until = time.Time{}
	return true
}

// timeout is for epoll_wait, in milliseconds rounded up; -1 where there is nothing to wait for.
func (r *rest) timeout() int {
	if r.until.IsZero() {
		return -1
	}
	return max(0, int(time.Until(r.until)/time.Millisecond)+1)
}
