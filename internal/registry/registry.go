package registry

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/base32"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/portd/portd/internal/ianadb"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// Config is what a Registry is made of. Store, Binder and Services are needed.
type Config struct {
	Store     Store
	Binder    Binder
	Policy    Policy
	Services  *ianadb.DB                          // that portd was built with
	Processes Processes                           // nil: no lease is by a process
	Netns     Namespaces                          // nil: nothing is reserved but in portd's own
	Redirects Redirects                           // nil: NAT rules are not looked at
	Settings  Settings                            // to begin with
	BootID    string                              // of this boot of the host
	Closings  Closings                            // nil: what is lost is tried now and then only
	RetryLost time.Duration                       // how often that is; 0: each second
	Log       *slog.Logger                        // nil: silent
	BootTime  func() time.Duration                // what leases count; nil: CLOCK_BOOTTIME
	Ended     func(r *Reservation, reason string) // told after a reservation has ended; nil: nobody
	// ReadOnly is why callers change nothing, "portd was started with --read-only"; empty: they do. What ends by itself ends.
	ReadOnly string
	// LocalPorts is told of all ports in portd's own network namespace that are reserved; nil: nobody is.
	LocalPorts LocalPorts
}

// A Registry is the table of a host's ports and the only one who changes it. Its methods may be called at the same time.
type Registry struct {
	cfg     Config
	storeID string
	schema  uint32

	gate     gate          // through which whatever changes something goes
	queue    *queue        // to the committing goroutine
	stopped  chan struct{} // closed when nobody commits any more
	swept    time.Time     // when old request ids were last looked for; the committing goroutine's
	loaded   *commit       // what has changed since the store was written, for Settle; nil: nothing has
	recalled chan struct{} // closed once requests has what the Store has of them
	rearm    chan struct{} // tells the lease keeper of a new deadline; capacity 1

	outdated atomic.Int64 // the first revision that is not too old by time, as far as is known

	services atomic.Pointer[Services] // stored with mu held, loaded without
	changing chan struct{}            // capacity 1: who is in it changes the services
	apart    atomic.Pointer[apartness]
	pools    atomic.Pointer[pools]

	mu        sync.RWMutex // guards all below; never held over a system call of the Binder or the Store
	entries   map[string]*entry
	names     map[string]*entry
	order     []*entry // committed ones by CreateRevision
	claims    table[*entry]
	past      // what has ended and still means something
	leases    map[string]*lease
	deadlines deadlines // of leases that end by time
	tokens    map[[32]byte]*lease
	requests  map[Key]*request
	lost      map[*entry]bool
	netns     map[string]*netnsUse // but for portd's own
	rev       Revision
	oldest    Revision
	boot      *Boot
	recent    []Change      // the last changes, without gaps, up to rev
	changed   chan struct{} // closed and made anew when rev moves
}

// An entry is a reservation's place in the table. While somebody works on it, it is busy, and others wait.
type entry struct {
	res  *Reservation  // nil until it is committed
	busy chan struct{} // closed when it is free again; nil while free

	// unrecorded is what each endpoint has really lost, where that could not be committed; it belongs to who has made e busy.
	unrecorded [][]PortRange
}

// New makes a Registry; Start must be called next.
func New(cfg Config) *Registry {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.BootTime == nil {
		cfg.BootTime = bootTime
	}
	if cfg.Ended == nil {
		cfg.Ended = func(*Reservation, string) {}
	}
	if cfg.LocalPorts == nil {
		cfg.LocalPorts = nobodyKeeps{}
	}
	r := &Registry{
		cfg:      cfg,
		queue:    newQueue(),
		stopped:  make(chan struct{}),
		rearm:    make(chan struct{}, 1),
		changing: make(chan struct{}, 1),
		entries:  map[string]*entry{},
		names:    map[string]*entry{},
		claims:   table[*entry]{},
		past:     newPast(),
		leases:   map[string]*lease{},
		tokens:   map[[32]byte]*lease{},
		requests: map[Key]*request{},
		lost:     map[*entry]bool{},
		changed:  make(chan struct{}),
		recalled: make(chan struct{}),
	}
	r.netns = map[string]*netnsUse{}
	r.services.Store(embedded(cfg.Services))
	byDefault, _ := newPools(Settings{}) // Start applies others
	r.pools.Store(byDefault)
	return r
}

// Start loads the store, binds what was held and makes listen what listened. It is done before anybody else calls.
// A port that cannot be had is not an error: it is lost until it can.
func (r *Registry) Start(ctx context.Context) error {
	err := r.load(ctx)
	c := r.loaded
	if r.loaded = nil; err != nil || c == nil {
		return err
	}
	if err := r.recall(ctx); err != nil {
		return err
	}
	r.commitBatch([]*commit{c})
	return <-c.done()
}

// Load is a Start that writes nothing: another process may go on with the store as it is. What has changed meanwhile, leases that are
// over and ports that are lost or had again, is written by Settle. Until then the Registry is to be frozen. All of the Store is read, for
// what is found to be damaged only later would be found where the other process cannot go on any more.
func (r *Registry) Load(ctx context.Context) error {
	if err := r.load(ctx); err != nil {
		return err
	}
	return r.recall(ctx)
}

// load reads what ports wait for, and brings them back.
func (r *Registry) load(ctx context.Context) error {
	if err := r.Apply(r.cfg.Settings); err != nil {
		return err
	}
	st, err := r.cfg.Store.Load(ctx)
	if err != nil {
		return err
	}
	r.storeID, r.schema, r.rev, r.oldest, r.boot = st.StoreID, st.Schema, st.Revision, st.Oldest, st.Boot
	slices.SortFunc(st.Reservations, func(a, b *Reservation) int { return int(a.CreateRevision - b.CreateRevision) })
	r.loadFormers(st.Formers)
	r.loadTurns(st)
	restored := &commit{by: Self}
	over := map[string]string{}     // leases that ended while portd was down, and why
	for _, rec := range st.Leases { // before the reservations that hang on them
		l := newLease(rec)
		if why := r.overAtStart(st.Boot, l); why != "" {
			over[rec.ID] = why
			restored.del = append(restored.del, rec.Key())
			restored.events = append(restored.events, Event{Type: EventLeaseEnded, Lease: rec, Caller: Self, Reason: why})
			continue
		}
		r.insertLease(l)
	}
	gone := r.restoreNetns(st, restored)
	for _, res := range st.Reservations {
		if why := cmp.Or(over[res.Lease], gone(res)); why != "" {
			restored.del = append(restored.del, res.Key())
			restored.events = append(restored.events, Event{Type: EventExpired, Reservation: res, Caller: Self, Reason: why})
			r.retire(restored, res)
			continue
		}
		r.insert(&entry{}, res)
	}
	r.dropUnused(restored)
	r.seed(st, restored)
	r.restoreAll(ctx, restored)
	if err := ctx.Err(); err != nil {
		return err // what could not be bound was not lost
	}
	if r.boot == nil || r.boot.ID != r.cfg.BootID {
		boot := &Boot{ID: r.cfg.BootID, Seen: time.Now().UTC()}
		restored.put = append(restored.put, boot)
		restored.apply = append(restored.apply, func() { r.boot = boot })
	}
	if len(restored.put)+len(restored.del) > 0 {
		r.loaded = restored
	}
	return nil
}

// Settle writes what Load has found, while Run runs.
func (r *Registry) Settle() error {
	c := r.loaded
	if r.loaded = nil; c == nil {
		return nil
	}
	return r.commit(c)
}

// Run reads what Start has left for later, commits, ends leases and retries lost endpoints until ctx ends; what waits to be committed
// then is refused.
func (r *Registry) Run(ctx context.Context) error {
	keepers, kctx := errgroup.WithContext(ctx)
	keepers.Go(func() error { return r.keepLeases(kctx) })
	keepers.Go(func() error { return r.noteAlive(kctx) })
	keepers.Go(func() error { return r.keepAge(kctx) })
	keepers.Go(func() error { return r.retryLost(kctx) })
	keepers.Go(func() error { return r.keepNetns(kctx) })
	keepers.Go(func() error {
		select {
		case <-time.After(prepareAfter):
			r.Services().Prepare() // or the first search would wait for it
		case <-kctx.Done():
		}
		return nil
	})
	committer := make(chan struct{})
	stop := make(chan struct{})
	recalled := make(chan error, 1)
	keepers.Go(func() error {
		err := r.recallAll(kctx)
		recalled <- err
		return err
	})
	go func() {
		defer close(committer)
		if <-recalled != nil {
			close(r.stopped)
			return
		}
		r.commitLoop(stop)
	}()
	// The keepers may be in the middle of a change: let them finish it before the committer goes.
	err := keepers.Wait()
	close(stop)
	<-committer
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// Recalled is closed once it is known which requests were answered. Until then nothing is changed; Run ends where it cannot be known.
func (r *Registry) Recalled() <-chan struct{} { return r.recalled }

// prepareAfter is when what only searches need is made ready: not while everybody comes back.
const prepareAfter = time.Second

// Policy is what decides who may do what.
func (r *Registry) Policy() Policy { return r.cfg.Policy }

// Status is the registry in numbers.
type Status struct {
	StoreID, BootID  string
	Schema           uint32
	Revision, Oldest Revision
	Reservations     int
	Lost             int // reservations with an endpoint that is lost
	Listeners        int // endpoints that are to listen
}

// Migrated says that the Store has another schema now than when it was loaded.
func (r *Registry) Migrated(schema uint32) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.schema = schema
}

// Status counts what there is.
func (r *Registry) Status() Status {
	r.mu.RLock()
	defer r.mu.RUnlock()
	s := Status{
		StoreID: r.storeID, BootID: r.cfg.BootID, Schema: r.schema, Revision: r.rev, Oldest: r.oldest,
		Reservations: len(r.order), Lost: len(r.lost),
	}
	for _, e := range r.order {
		for _, a := range e.res.Assigned {
			if a.Listen != nil {
				s.Listeners++
			}
		}
	}
	return s
}

// insert puts a committed reservation into the table, where an entry for it and its claims may be already.
func (r *Registry) insert(e *entry, res *Reservation) {
	if r.entries[res.ID] == nil {
		r.entries[res.ID] = e
		if res.Name != "" {
			r.names[res.Name] = e
		}
		for _, a := range res.Assigned {
			r.claims.add(a.Endpoint, e)
		}
	}
	e.res = res
	r.keep(res.endpoints()...)
	r.order = append(r.order, e)
	if res.Lease != "" && r.leases[res.Lease] != nil {
		r.leases[res.Lease].carries[e] = true
	}
	r.settle(e, res)
	r.noteLost(e)
}

// drop gives back what a reservation that has ended, or came to nothing, has of the table: its id, name and claims.
func (r *Registry) drop(e *entry, res *Reservation) {
	delete(r.entries, res.ID)
	if res.Name != "" && r.names[res.Name] == e {
		delete(r.names, res.Name)
	}
	for _, a := range res.Assigned {
		r.claims.remove(a.Endpoint, e)
	}
	if l := r.leases[res.Lease]; l != nil {
		delete(l.carries, e)
	}
}

// unlist makes a reservation unseen from the revision on that ends it. Its claims stay until its sockets are closed.
func (r *Registry) unlist(e *entry) {
	delete(r.lost, e)
	if i, ok := r.place(e.res.CreateRevision); ok {
		r.order = slices.Delete(r.order, i, i+1)
	}
	if l := r.leases[e.res.Lease]; l != nil {
		delete(l.carries, e)
	}
	r.letGo(e.res.endpoints()...)
	r.moveOut(e, e.res)
	e.res = nil
}

// place finds a revision in the order of creation: the entry made by it, or the first one after it.
func (r *Registry) place(rev Revision) (int, bool) {
	return slices.BinarySearchFunc(r.order, rev, func(e *entry, rev Revision) int { return int(e.res.CreateRevision - rev) })
}

func (r *Registry) noteLost(e *entry) {
	if e.res.LostAny() {
		r.lost[e] = true
	} else {
		delete(r.lost, e)
	}
}

// acquire makes the entry that find finds busy, waiting for whoever has it. find is called with mu held.
func (r *Registry) acquire(ctx context.Context, find func() (*entry, error)) (*entry, error) {
	for {
		r.mu.Lock()
		e, err := find()
		if err != nil {
			r.mu.Unlock()
			return nil, err
		}
		if e.busy == nil {
			e.busy = make(chan struct{})
			r.mu.Unlock()
			return e, nil
		}
		busy := e.busy
		r.mu.Unlock()
		if err := wait(ctx, busy); err != nil {
			return nil, err
		}
	}
}

// free ends what acquire began.
func (r *Registry) free(e *entry) {
	r.mu.Lock()
	defer r.mu.Unlock()
	close(e.busy)
	e.busy = nil
}

func wait(ctx context.Context, c <-chan struct{}) error {
	select {
	case <-c:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// newID makes an id: a prefix and 20 characters that stand for 48 bits of time, in milliseconds, and 52 of chance. In time order the records that are written together lie together, which a B-tree commits twice as fast.
func newID(prefix string) string {
	var b [13]byte
	binary.BigEndian.PutUint64(b[:], uint64(time.Now().UnixMilli())<<16)
	rand.Read(b[6:])
	return prefix + idText.EncodeToString(b[:])[:20]
}

// idText is base32 whose letters sort as what they stand for (RFC 4648 section 7), in lower case.
var idText = base32.NewEncoding("0123456789abcdefghijklmnopqrstuv").WithPadding(base32.NoPadding)

func bootTime() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		panic(fmt.Sprintf("clock_gettime(CLOCK_BOOTTIME): %v", err)) // since Linux 2.6.39
	}
	return time.Duration(ts.Nano())
}
