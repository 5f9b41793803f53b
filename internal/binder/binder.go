// Package binder takes ports from the kernel and has their sockets: it holds them exclusively, makes them listen, lends
// them out, and says which sockets of others stand in the way.
//
// It rests on how Linux treats bound sockets; docs/KERNEL.md has the facts and names the tests that prove them.
package binder

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/fdstore"
	"github.com/portd/portd/internal/registry"
	"github.com/portd/portd/internal/sockdiag"
)

// Config is what a Binder is made of.
type Config struct {
	Log *slog.Logger // silent where nil
	// Observer is told of sockets that listen; it may be nil. Listening has all of the key's sockets each time. It is called
	// with no lock held, so it may call Lend and Return.
	Observer registry.ListenerObserver
	// Enter runs f on a thread in a network namespace other than portd's own, by its name. Where it is nil, or fails without having
	// run f, nothing is held there.
	Enter func(netns string, f func() error) error
	// Grace is how long a datagram socket goes on queueing after the last program that had it, for the next one; 0 means 5 seconds,
	// less than 0 not at all.
	Grace time.Duration
	// Keep is who has a duplicate of each of the Binder's descriptors; it may be nil.
	Keep *fdstore.Store
	// Items are sockets and bags that another Binder put into Keep, of this process or of one before it, and that Keep has under their
	// names. They are the Binder's, whatever New returns: Bind takes those that are meant, and Unclaimed closes the rest.
	Items []fdstore.Item
	// Spare is how many descriptors of RLIMIT_NOFILE Bind leaves to the rest of the process, for connections and files;
	// 0 means 256.
	Spare int
}

// A Binder has sockets by key. It is a registry.Binder.
type Binder struct {
	log      *slog.Logger
	observer registry.ListenerObserver
	enter    func(netns string, f func() error) error
	grace    time.Duration
	spare    int

	ephemeral  registry.PortRange
	ipv6       bool
	boundShown bool // the kernel shows also TCP sockets that are bound and no more
	// fallback says that a port may be bound over leftovers of closed connections: the kernel shows everybody who might have
	// it bound, and lets nobody in once SO_REUSEADDR is cleared again.
	fallback bool
	features []Feature
	sockets  sockdiag.Lister // of portd's own network namespace

	// One fallback at a time, else two of ours would each see the other's socket and both give up.
	fallbackMu sync.Mutex

	// One adoption at a time, else two could take the same socket.
	adoptMu sync.Mutex

	// mu guards held, at and what changes in the sockets in it. It is never held while the Observer is called.
	mu   sync.Mutex
	held map[registry.SocketKey]*holding
	at   map[spot][]*socket // the same sockets by their ports

	parking parking
	kept    keeping

	space     uint64              // portd's own network namespace: see spaceOf
	coming    atomic.Bool         // Unclaimed has not been called: there may be some in inherited
	inherited map[place][]*socket // that nobody has taken; guarded by mu
	unknown   []*socket           // that came with them in bags, and nobody will take; likewise

	mending sync.WaitGroup // mend
}

// A spot is a port of a protocol in a network namespace, on whatever address.
type spot struct {
	netns string
	proto registry.Protocol
	port  uint16
	path  string // of a unix endpoint
}

func spotOf(e registry.Endpoint) spot { return spot{e.Netns, e.Proto, e.First, e.Path} }

// A holding is what a key has.
type holding struct {
	// work is held by who changes what the sockets do, and is taken before Binder.mu: Return comes whenever a program ends, also
	// while another goroutine is in Listen or Unlisten.
	work sync.Mutex

	sockets []*socket // in the order of their ports; never empty
	lent    int       // loans that have not been returned
	lending []loan    // each of them, by what is lent together: see loanOf
	turn    uint64    // counts loans
	group   int       // how many sockets the port has, in the order of binding; 0: one
	still   bool      // the group is steered as it was, until Unclaimed
	shared  bool      // was ever lent, or adopted, so that others may have duplicates
	pins    int       // who works with the descriptors outside of Binder.mu
	closing bool      // Unlisten is at work, or about to be
	gone    bool      // is no key's any more: the descriptors are closed, or soon will be
}

var _ registry.Binder = (*Binder)(nil)

// New finds out what this kernel can do, which Features tells. Nothing is held yet.
func New(cfg Config) (*Binder, error) {
	b := &Binder{
		log:      cfg.Log,
		observer: cfg.Observer,
		enter:    cfg.Enter,
		grace:    cmp.Or(cfg.Grace, 5*time.Second),
		spare:    cmp.Or(cfg.Spare, 256),
		kept:     keeping{store: cfg.Keep},
		held:     make(map[registry.SocketKey]*holding),
		at:       make(map[spot][]*socket),
	}
	if b.log == nil {
		b.log = slog.New(slog.NewTextHandler(io.Discard, nil))
	}
	if b.observer == nil {
		b.observer = nobody{}
	}
	if err := b.tryOut(); err != nil {
		for _, it := range cfg.Items {
			_ = unix.Close(it.FD)
		}
		return nil, err
	}
	b.inherit(cfg.Items)
	return b, nil
}

func (b *Binder) tryOut() (err error) {
	if b.ephemeral, err = ephemeralRange(); err != nil {
		return fmt.Errorf("range of ephemeral ports: %w", err)
	}
	if err := b.probe(); err != nil {
		return fmt.Errorf("try out this kernel: %w", err)
	}
	return nil
}

// HasIPv6 says whether the kernel makes IPv6 sockets. Where it does not, the dual-stack wildcard is bound as 0.0.0.0.
func (b *Binder) HasIPv6() bool { return b.ipv6 }

// Release tells the Observer of each key that listens or is lent, then shuts its sockets down, so that a duplicate in another
// process serves nothing any more, and closes them. An adopted socket goes back to the program that it was adopted from, which
// serves on if it still runs; unless portd has stopped it or has lent it out. When it returns the keeper has let go of them, too.
// The error is ErrExhausted where a socket that is parked with others cannot be got at, although descriptors are kept back for that
// (KeepBack); the key has its sockets still then, or those of them that are left.
func (b *Binder) Release(keys ...registry.SocketKey) error {
	var errs []error
	for _, key := range keys {
		errs = append(errs, b.release(key))
	}
	b.kept.settle()
	return errors.Join(errs...)
}

func (b *Binder) release(key registry.SocketKey) error {
	h, err := b.remove(key)
	if h == nil || err != nil {
		return err
	}
	listens := slices.ContainsFunc(h.sockets, func(s *socket) bool { return s.listening })
	if h.lent > 0 || listens {
		b.observer.Closing(key)
	}
	// Who was at work with the sockets (Refuse, say) ends first, and whoever comes later finds that the key has none.
	h.work.Lock()
	defer h.work.Unlock()
	for _, s := range h.sockets {
		switch {
		case s.adopted && s.listening && h.lent == 0:
			s.giveBack(s.opt != s.before.opt)
		case h.shared || listens: // else nobody has a duplicate
			s.revoke(h.lent > 0)
		}
		if s.file != nil {
			if err := s.file.remove(); err != nil {
				b.log.Warn("the file of a released socket stays", "endpoint", s.ep, "err", err)
			}
		}
	}
	b.closeAll(h.sockets)
	return nil
}

// Lent says whether others may have the key's sockets, too, because it was lent or adopted.
func (b *Binder) Lent(key registry.SocketKey) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	h := b.held[key]
	return h != nil && h.shared
}

// Close closes every socket without shutting it down, so that a program that was lent one goes on serving, and the keeper has what it
// has. The Observer is not told; whoever used the descriptors must have stopped. The Binder may not be used after it.
func (b *Binder) Close() {
	b.mending.Wait()
	b.mu.Lock()
	var all []*socket
	for _, h := range b.held {
		h.forgo()
		all = append(all, h.sockets...)
	}
	all = append(all, b.leftLocked()...)
	for _, s := range all {
		b.busyLocked(s)
	}
	clear(b.held)
	clear(b.at)
	b.kept.leave()
	b.mu.Unlock()
	b.closeAll(all)
	b.sockets.Close()
}

// add gives the key more sockets.
func (b *Binder) add(key registry.SocketKey, socks []*socket) {
	b.mu.Lock()
	defer b.mu.Unlock()
	h := b.held[key]
	if h == nil {
		h = new(holding)
		b.held[key] = h
	}
	h.sockets = append(h.sockets, socks...)
	slices.SortStableFunc(h.sockets, func(x, y *socket) int { return cmp.Compare(x.ep.First, y.ep.First) })
	for _, s := range socks {
		s.of = h
		b.at[spotOf(s.ep)] = append(b.at[spotOf(s.ep)], s)
		if s.bag == nil && s.came == nil { // else it is counted
			b.parking.open++
		}
		h.shared = h.shared || s.adopted || s.exposed
		if s.grouped {
			h.group, h.still = len(h.sockets), s.came != nil
		}
	}
	b.settleLocked(h)
}

// remove takes from the key all that it has, or nil, to be closed: with a descriptor each, or in bags of their own.
func (b *Binder) remove(key registry.SocketKey) (*holding, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	h := b.held[key]
	if h == nil {
		return nil, nil
	}
	err := b.extractLocked(h)
	if errors.Is(err, registry.ErrExhausted) {
		withKeptBack(func() {
			if err = b.closeParkedLocked(h); err == nil {
				err = b.extractLocked(h) // of no more than bags of its own
			}
		})
	}
	if err != nil {
		b.settleLocked(h)
		return nil, err
	}
	delete(b.held, key)
	h.gone = true
	h.forgo()
	for _, s := range h.sockets {
		b.forgetLocked(s)
	}
	return h, nil
}

// forgetLocked takes out of the Binder's books a socket that is about to be closed.
func (b *Binder) forgetLocked(s *socket) {
	if s.bag == nil {
		b.parking.open--
	}
	there := spotOf(s.ep)
	b.at[there] = slices.DeleteFunc(b.at[there], func(o *socket) bool { return o == s })
	if len(b.at[there]) == 0 {
		delete(b.at, there)
	}
}

// use is what the key has, with a copy of its sockets, which keep their descriptors until leave. ErrNotFound where it has none,
// ErrExhausted where there are no descriptors for those that are parked.
func (b *Binder) use(key registry.SocketKey) (*holding, []*socket, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	h := b.held[key]
	if h == nil {
		return nil, nil, notFound(key)
	}
	if err := b.unsettleLocked(h); err != nil {
		return nil, nil, err
	}
	h.pins++
	return h, slices.Clone(h.sockets), nil
}

// has says whether a holding is the key's still. If so its descriptors stay as they are while the caller has the holding's work.
func (b *Binder) has(key registry.SocketKey, h *holding) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.held[key] == h
}

// leave ends what use began.
func (b *Binder) leave(h *holding) {
	b.mu.Lock()
	defer b.mu.Unlock()
	h.pins--
	b.settleLocked(h)
}

func notFound(key registry.SocketKey) error {
	return fmt.Errorf("sockets of endpoint %d of %s: %w", key.Index, key.Reservation, registry.ErrNotFound)
}

type nobody struct{}

func (nobody) Listening(registry.SocketKey, []registry.Socket, registry.ListenOptions) {}
func (nobody) Closing(registry.SocketKey)                                              {}
