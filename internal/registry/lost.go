package registry

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// retryEvery is how often portd tries to have back what it has lost, also where nobody tells that it is free.
const retryEvery = time.Second

// maxTold is how often it tries between two of these times because it was told of something. A try can end in a socket of portd's own
// being closed, which it is told of as well.
const maxTold = 20

// restore binds what a reservation is to have and has not, and makes it listen: at the start all of it, later what was
// lost. It returns the reservation as it is now, and whether it differs. The entry is the caller's.
func (r *Registry) restore(ctx context.Context, res *Reservation, atStart bool) (after *Reservation, ev Event, changed bool) {
	if res.Spec.Mode == Recorded {
		return res, Event{}, false
	}
	var why error
	after = res
	for i, a := range res.Assigned {
		lost, err := r.restoreEndpoint(ctx, SocketKey{res.ID, i}, a, res, atStart)
		if why == nil {
			why = err
		}
		if slices.Equal(lost, a.Lost) {
			continue
		}
		if !changed {
			after, changed = res.with(func(*Reservation) {}), true
		}
		after.Assigned[i].Lost = lost
	}
	if after.LostAny() {
		return after, Event{Type: EventLost, Caller: Self, Reason: why.Error()}, changed
	}
	return after, recovered, changed
}

var recovered = Event{Type: EventRecovered, Caller: Self, Reason: "the port is free again"}

// restoreEndpoint binds the missing ports of an endpoint, or as many of them as can be had, and returns those that
// are still lost, with the first reason. At the start it logs each.
func (r *Registry) restoreEndpoint(ctx context.Context, key SocketKey, a Assigned, of *Reservation, atStart bool) (lost []PortRange, why error) {
	missing := a.Lost
	if atStart {
		missing = []PortRange{{a.Endpoint.First, a.Endpoint.Last}}
	}
	got := false
	bind := func(ep Endpoint) error {
		owner, _ := of.Owner.uid()
		err := r.cfg.Binder.Bind(ctx, Bind{Key: key, Endpoint: ep, Options: of.Spec.Options, As: As{UID: owner, Group: of.Group}})
		got = got || err == nil
		return err
	}
	lose := func(ep Endpoint, err error) {
		if atStart {
			err = r.logLost(ep, err)
		}
		if why == nil {
			why = err
		}
		lost = appendPort(lost, ep.First)
	}
	for _, ports := range missing {
		ep := a.Endpoint.ports(ports)
		err := bind(ep)
		switch {
		case err == nil:
			continue
		case ep.Ports() == 1:
			lose(ep, err)
			continue
		}
		for p := int(ep.First); p <= int(ep.Last); p++ {
			if err := bind(ep.At(uint16(p))); err != nil {
				lose(ep.At(uint16(p)), err)
			}
		}
	}
	if a.Listen == nil || !got {
		return lost, why
	}
	err := r.cfg.Binder.Listen(ctx, key, *a.Listen)
	if err == nil {
		return lost, why
	}
	err = r.logLost(a.Endpoint, err)
	if !atStart && a.lostPorts() < a.Endpoint.Ports() {
		return lost, why // the others go on listening; these are held at least
	}
	// Somebody listens on a port that we could bind: all is lost until they are gone.
	if rerr := r.cfg.Binder.Release(key); rerr != nil {
		r.cfg.Log.Error("cannot release a port", "endpoint", a.Endpoint, "err", rerr)
	}
	return []PortRange{{a.Endpoint.First, a.Endpoint.Last}}, err
}

// logLost logs that a port is lost, and who has it. It returns why, for everybody's eyes: the users are named, but not the
// processes, which not everybody may see.
func (r *Registry) logLost(ep Endpoint, err error) error {
	taken := &TakenError{Want: ep}
	if te := (*TakenError)(nil); errors.As(err, &te) {
		taken.Why = te.Why
	}
	if errors.Is(err, ErrTaken) {
		if holders, herr := r.cfg.Binder.Holders(context.Background(), ep); herr == nil {
			taken.Holders = holders
			err = taken
		}
	}
	log := r.cfg.Log
	if pid := taken.server(); pid != 0 {
		log = log.With("try", fmt.Sprintf("portctl adopt %v --pid %d", ep, pid))
	}
	log.Warn("a reserved port is lost; portd takes it again when it is free", "endpoint", ep, "err", err)
	if err != taken {
		return err
	}
	public := &TakenError{Want: ep, Why: taken.Why, Holders: slices.Clone(taken.Holders)}
	for i := range public.Holders {
		public.Holders[i].Processes = nil
	}
	return public
}

// server is the program that listens on the port, and from which it could be adopted; 0: none.
func (e *TakenError) server() int {
	for _, h := range e.Holders {
		if e.Want.Proto == TCP && h.State == SocketListening && len(h.Processes) > 0 {
			return h.Processes[0].PID
		}
	}
	return 0
}

func appendPort(rs []PortRange, p uint16) []PortRange {
	if n := len(rs); n > 0 && int(rs[n-1].Last)+1 == int(p) {
		rs[n-1].Last = p
		return rs
	}
	return append(rs, PortRange{p, p})
}

// retryLost takes lost endpoints again when they have become free, until ctx ends: at once where portd is told of that, and now and
// then for what it is not told of, such as leftovers of closed connections.
func (r *Registry) retryLost(ctx context.Context) error {
	tick := time.NewTicker(cmp.Or(r.cfg.RetryLost, retryEvery))
	defer tick.Stop()
	told := newFreed()
	defer told.end()
	rounds := 0 // that were told of since the last tick
	for {
		r.follow(ctx, told)
		which, wake := func(*Reservation) bool { return true }, told.wake
		if rounds == maxTold {
			wake = nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
			rounds = 0
		case <-wake:
			rounds++
			which = told.take()
		}
		r.mu.RLock()
		var lost []*entry
		for e := range r.lost {
			if e.busy == nil && which(e.res) {
				lost = append(lost, e)
			}
		}
		r.mu.RUnlock()
		for _, e := range lost {
			if err := r.retry(ctx, e); err != nil && !errors.Is(err, ErrHandedOver) { // else the other portd sees to it
				r.cfg.Log.Error("cannot record that a port is held again", "err", err)
			}
		}
	}
}

func (r *Registry) retry(ctx context.Context, e *entry) error {
	leave, err := r.gate.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	if _, err := r.acquire(ctx, func() (*entry, error) { return e, nil }); err != nil {
		return err
	}
	defer r.free(e)
	if e.res == nil || !e.res.LostAny() {
		return nil
	}
	var after *Reservation
	var ev Event
	if e.unrecorded == nil {
		var changed bool
		after, ev, changed = r.restore(ctx, e.res, false)
		if err := ctx.Err(); err != nil || !changed {
			return err
		}
	} else { // held again already, which the store could not be told
		ev = recovered
		after = e.res.with(func(n *Reservation) {
			for i := range n.Assigned {
				n.Assigned[i].Lost = e.unrecorded[i]
			}
		})
	}
	cm := &commit{by: Self}
	cm.update(e, after, ev)
	cm.apply = append(cm.apply, func() { r.noteLost(e) })
	err = r.commit(cm)
	e.unrecorded = nil
	if err != nil {
		for _, a := range after.Assigned {
			e.unrecorded = append(e.unrecorded, a.Lost)
		}
	}
	return err
}
