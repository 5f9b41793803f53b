package registry

import (
	"context"
	"slices"
	"sync"
)

// Closings tells of sockets of portd's own network namespace that are gone.
type Closings interface {
	// WatchClosed calls closed for each socket that was bound to one of some ports and that the last program has closed. look is called
	// once it watches, and whenever it may have missed some. It returns when ctx ends or it cannot watch. It need not tell of all:
	// what it does not is found later.
	WatchClosed(ctx context.Context, ports []uint16, look func(), closed func(p Protocol, port uint16)) error
}

// A freed is what is said to be free of those who had it, until somebody looks. There is a watch only while ports are lost: the
// kernel takes time to tell of every socket of the host that is closed.
type freed struct {
	ports []uint16      // that are watched
	stop  func()        // ends the watch and waits for it; nil where there is none
	over  chan struct{} // closed when it has ended, be it by itself
	said  bool          // that there cannot be one

	wake chan struct{} // there is something to look at; capacity 1

	mu    sync.Mutex // guards what follows
	all   bool       // whatever is lost
	spots map[spot]bool
}

// A spot is a port of a protocol in portd's own network namespace, on whatever address.
type spot struct {
	proto Protocol
	port  uint16
}

func newFreed() *freed { return &freed{wake: make(chan struct{}, 1), spots: map[spot]bool{}} }

// follow has the ports watched that are lost now, where those are others than before. A watch that has ended by itself begins anew.
func (r *Registry) follow(ctx context.Context, f *freed) {
	if r.cfg.Closings == nil {
		return
	}
	ports := r.lostPorts()
	if slices.Equal(ports, f.ports) && !f.ended() {
		return
	}
	f.end()
	if f.ports = ports; len(ports) == 0 {
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	over, failed := make(chan struct{}), error(nil)
	f.over, f.stop = over, func() {
		cancel()
		<-over
		if failed != nil && !f.said {
			f.said = true
			r.cfg.Log.Warn("cannot see when a lost port becomes free; it is tried now and then instead", "err", failed)
		}
	}
	go func() {
		defer close(over)
		look := func() { f.note(func() { f.all = true }) }
		err := r.cfg.Closings.WatchClosed(ctx, ports, look, func(p Protocol, port uint16) {
			f.note(func() { f.spots[spot{p, port}] = true })
		})
		if ctx.Err() == nil {
			failed = err
		}
	}()
}

// end ends the watch.
func (f *freed) end() {
	if f.stop != nil {
		f.stop()
		f.stop, f.over = nil, nil
	}
}

// ended says whether a watch has ended by itself.
func (f *freed) ended() bool {
	select {
	case <-f.over: // never, where there is none
		return true
	default:
		return false
	}
}

func (f *freed) note(what func()) {
	f.mu.Lock()
	what()
	f.mu.Unlock()
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

// take says which reservations are to be looked at for what was noted until now, which is forgotten.
func (f *freed) take() func(*Reservation) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	all, spots := f.all, f.spots
	f.all, f.spots = false, map[spot]bool{}
	return func(res *Reservation) bool {
		return all || slices.ContainsFunc(res.Assigned, func(a Assigned) bool {
			for _, ports := range a.Lost {
				for p := int(ports.First); p <= int(ports.Last); p++ {
					if spots[spot{a.Endpoint.Proto, uint16(p)}] {
						return true
					}
				}
			}
			return false
		})
	}
}

// lostPorts are the ports that are lost in portd's own namespace, in order, whatever their protocol.
func (r *Registry) lostPorts() (ports []uint16) {
	r.mu.RLock()
	for e := range r.lost {
		for _, a := range e.res.Assigned {
			for _, lost := range a.Lost {
				for p := max(int(lost.First), 1); a.Endpoint.Netns == HostNetns && p <= int(lost.Last); p++ {
					ports = append(ports, uint16(p))
				}
			}
		}
	}
	r.mu.RUnlock()
	slices.Sort(ports)
	return slices.Compact(ports)
}
