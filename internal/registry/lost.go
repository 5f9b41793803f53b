package registry

import (
	"context"
	"errors"
	"slices"
	"time"
)

// retryEvery is how often portd tries to have back what it has lost.
const retryEvery = time.Second

// restore binds what a reservation is to have and has not, and makes it listen: at the start all of it, later what was
// lost. It returns the reservation as it is now, and whether it differs. The entry is the caller's.
func (r *Registry) restore(ctx context.Context, res *Reservation, atStart bool) (after *Reservation, ev Event, changed bool) {
	if res.Spec.Mode == Recorded {
		return res, Event{}, false
	}
	after = res.with(func(n *Reservation) {
		for i, a := range res.Assigned {
			missing := a.Lost
			if atStart {
				missing = []PortRange{{a.Endpoint.First, a.Endpoint.Last}}
			}
			n.Assigned[i].Lost = r.restoreEndpoint(ctx, SocketKey{res.ID, i}, a, res.Spec.Options, missing, atStart)
		}
	})
	for i := range after.Assigned {
		changed = changed || !slices.Equal(after.Assigned[i].Lost, res.Assigned[i].Lost)
	}
	ev = Event{Type: EventRecovered, Caller: Self, Reason: "the port is free again"}
	if after.LostAny() {
		ev = Event{Type: EventLost, Caller: Self, Reason: "another program has the port"}
	}
	return after, ev, changed
}

// restoreEndpoint binds the missing ports of an endpoint, or as many of them as can be had, and returns those that
// are still lost. At the start it logs why.
func (r *Registry) restoreEndpoint(ctx context.Context, key SocketKey, a Assigned, opt BindOptions, missing []PortRange, atStart bool) (lost []PortRange) {
	got := false
	bind := func(ep Endpoint, tell bool) bool {
		err := r.cfg.Binder.Bind(ctx, Bind{Key: key, Endpoint: ep, Options: opt})
		if err != nil && tell && atStart {
			r.logLost(ep, err)
		}
		got = got || err == nil
		return err == nil
	}
	for _, ports := range missing {
		ep := a.Endpoint.ports(ports)
		if bind(ep, ep.Ports() == 1) {
			continue
		}
		for p := int(ep.First); p <= int(ep.Last); p++ {
			if ep.Ports() == 1 || !bind(ep.At(uint16(p)), true) {
				lost = appendPort(lost, uint16(p))
			}
		}
	}
	if a.Listen == nil || !got {
		return lost
	}
	if err := r.cfg.Binder.Listen(ctx, key, *a.Listen); err != nil {
		// Somebody listens on a port that we could bind: all is lost until they are gone.
		r.logLost(a.Endpoint, err)
		if err := r.cfg.Binder.Release(key); err != nil {
			r.cfg.Log.Error("cannot release a port", "endpoint", a.Endpoint, "err", err)
		}
		return []PortRange{{a.Endpoint.First, a.Endpoint.Last}}
	}
	return lost
}

func (r *Registry) logLost(ep Endpoint, err error) {
	if errors.Is(err, ErrTaken) {
		if holders, herr := r.cfg.Binder.Holders(context.Background(), ep); herr == nil {
			err = &TakenError{Want: ep, Holders: holders}
		}
	}
	r.cfg.Log.Warn("a reserved port is lost; portd takes it again when it is free", "endpoint", ep, "err", err)
}

func appendPort(rs []PortRange, p uint16) []PortRange {
	if n := len(rs); n > 0 && int(rs[n-1].Last)+1 == int(p) {
		rs[n-1].Last = p
		return rs
	}
	return append(rs, PortRange{p, p})
}

// retryLost takes lost endpoints again when they have become free, until ctx ends.
func (r *Registry) retryLost(ctx context.Context) error {
	tick := time.NewTicker(retryEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
		r.mu.RLock()
		var lost []*entry
		for e := range r.lost {
			if e.busy == nil {
				lost = append(lost, e)
			}
		}
		r.mu.RUnlock()
		for _, e := range lost {
			if err := r.retry(ctx, e); err != nil {
				r.cfg.Log.Error("cannot record that a port is held again", "err", err)
			}
		}
	}
}

func (r *Registry) retry(ctx context.Context, e *entry) error {
	if _, err := r.acquire(ctx, func() (*entry, error) { return e, nil }); err != nil {
		return err
	}
	defer r.free(e)
	if e.res == nil || !e.res.LostAny() {
		return nil
	}
	after, ev, changed := r.restore(ctx, e.res, false)
	if !changed {
		return nil
	}
	cm := &commit{by: Self}
	cm.update(e, after, ev)
	cm.apply = append(cm.apply, func() { r.noteLost(e) })
	return r.commit(cm)
}
