package registry_test

import (
	"context"
	"errors"
	"iter"
	"os"
	"slices"
	"sync"
	"testing"

	"github.com/portd/portd/internal/ianadb"
	"github.com/portd/portd/internal/registry"
)

// long is how many of alike things a test does: all with PORTD_LONG=1, else some.
func long(all, some int) int {
	if os.Getenv("PORTD_LONG") != "" {
		return all
	}
	return some
}

// The stand-ins of this file exist for time's sake: under testing/synctest the clock moves only while every goroutine
// waits, which one in a real system call does not. Whatever does not wait for a clock is tested on the real ones.

// memory is a registry.Store.
type memory struct {
	mu       sync.Mutex
	state    registry.State
	requests []*registry.Request
	log      []registry.Change
	fail     error // what Commit answers where it is not nil
}

func (m *memory) Load(context.Context) (*registry.State, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	st := m.state
	return &st, nil
}

func (m *memory) Requests(context.Context) ([]*registry.Request, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.requests, nil
}

func (m *memory) Commit(_ context.Context, base registry.Revision, changes []registry.Change) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fail != nil {
		return m.fail
	}
	if base != m.state.Revision {
		return registry.ErrConflict
	}
	for _, ch := range changes {
		for _, k := range ch.Delete {
			m.drop(k)
		}
		for _, rec := range ch.Put {
			m.drop(rec.Key())
			switch rec := rec.(type) {
			case *registry.Reservation:
				m.state.Reservations = append(m.state.Reservations, rec)
			case *registry.Lease:
				m.state.Leases = append(m.state.Leases, rec)
			case *registry.Request:
				m.requests = append(m.requests, rec)
			case *registry.Boot:
				m.state.Boot = rec
			case *registry.Edition:
				m.state.Editions = append(m.state.Editions, rec)
			case *registry.OwnService:
				m.state.Services = append(m.state.Services, rec)
			case *registry.Former:
				m.state.Formers = append(m.state.Formers, rec)
			}
		}
		m.log = append(m.log, ch)
		m.state.Revision = ch.Revision
	}
	return nil
}

func (m *memory) drop(k registry.Key) {
	m.state.Reservations = slices.DeleteFunc(m.state.Reservations, func(r *registry.Reservation) bool { return r.Key() == k })
	m.state.Leases = slices.DeleteFunc(m.state.Leases, func(l *registry.Lease) bool { return l.Key() == k })
	m.requests = slices.DeleteFunc(m.requests, func(r *registry.Request) bool { return r.Key() == k })
	m.state.Editions = slices.DeleteFunc(m.state.Editions, func(e *registry.Edition) bool { return e.Key() == k })
	m.state.Formers = slices.DeleteFunc(m.state.Formers, func(f *registry.Former) bool { return f.Key() == k })
	m.state.Services = slices.DeleteFunc(m.state.Services, func(s *registry.OwnService) bool { return s.Key() == k })
}

func (m *memory) Events(_ context.Context, from registry.Revision) iter.Seq2[registry.Change, error] {
	return func(yield func(registry.Change, error) bool) {
		m.mu.Lock()
		log := slices.Clone(m.log)
		m.mu.Unlock()
		for _, ch := range log {
			if ch.Revision >= from && !yield(ch, nil) {
				return
			}
		}
	}
}

func (m *memory) Close() error { return nil }

// pegboard is a registry.Binder.
type pegboard struct {
	mu        sync.Mutex
	bound     map[registry.SocketKey][]registry.Endpoint
	releasing func()                         // called before a key is let go; may be nil
	closing   func(registry.SocketKey) error // what Unlisten does; may be nil
	adoption  *registry.Adoption
}

func (p *pegboard) Bind(ctx context.Context, b registry.Bind) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, eps := range p.bound {
		for _, ep := range eps {
			if ep.Overlaps(b.Endpoint) {
				return &registry.TakenError{Want: b.Endpoint.At(max(ep.First, b.Endpoint.First))}
			}
		}
	}
	p.bound[b.Key] = append(p.bound[b.Key], b.Endpoint)
	return nil
}

func (p *pegboard) Listen(_ context.Context, key registry.SocketKey, _ registry.ListenOptions) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.bound[key]) == 0 {
		return errors.New("no such key")
	}
	return nil
}

func (p *pegboard) MayListen(string, registry.ListenOptions) error { return nil }

func (p *pegboard) Unlisten(key registry.SocketKey) error {
	if p.closing != nil {
		return p.closing(key)
	}
	return nil
}

func (p *pegboard) Release(keys ...registry.SocketKey) error {
	if p.releasing != nil {
		p.releasing()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, key := range keys {
		delete(p.bound, key)
	}
	return nil
}

func (p *pegboard) Lent(registry.SocketKey) bool { return true }

func (p *pegboard) Options(registry.SocketKey) (o registry.ListenOptions, _ error) { return o, nil }

func (p *pegboard) Holders(_ context.Context, eps ...registry.Endpoint) (holders []registry.Holder, _ error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, ep := range p.bound[foreign] {
		for port := int(ep.First); port <= int(ep.Last); port++ {
			if at := ep.At(uint16(port)); slices.ContainsFunc(eps, at.Overlaps) {
				holders = append(holders, registry.Holder{Endpoint: at, State: registry.SocketBound})
			}
		}
	}
	return holders, nil
}

func (p *pegboard) PortsInUse(_ context.Context, netns string, proto registry.Protocol, _ registry.PortRange, found func(uint16)) (bool, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, eps := range p.bound {
		for _, ep := range eps {
			for port := int(ep.First); ep.Netns == netns && ep.Proto == proto && port <= int(ep.Last); port++ {
				found(uint16(port))
			}
		}
	}
	return true, nil
}
func (p *pegboard) HasIPv6() bool { return true }
func (p *pegboard) Ephemeral(string) registry.PortRange {
	return registry.PortRange{First: 32768, Last: 60999}
}
func (p *pegboard) FirstUnprivileged(string) uint16 { return 1024 }

func (p *pegboard) count() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.bound)
}

// start is a Registry on stand-ins, stopped when the test ends.
func start(t *testing.T, store *memory, pegs *pegboard, cfg registry.Config) (r *registry.Registry, stop func()) {
	t.Helper()
	cfg.BootID = "boot"
	return startAt(t, store, pegs, cfg)
}

// startAt is the same on any store and in any boot.
func startAt(t testing.TB, store registry.Store, pegs *pegboard, cfg registry.Config) (r *registry.Registry, stop func()) {
	t.Helper()
	cfg.Store, cfg.Binder = store, pegs
	if cfg.Services == nil {
		cfg.Services = ianadb.Embedded()
	}
	r = registry.New(cfg)
	if err := r.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return r, stop
}

func newStandIns() (*memory, *pegboard) {
	return &memory{state: registry.State{StoreID: "sto_test", Schema: 1, Oldest: 1}},
		&pegboard{bound: map[registry.SocketKey][]registry.Endpoint{}}
}
