package registry

import (
	"context"
	"slices"
)

// Released is what was released.
type Released struct {
	Reservation *Reservation // as it was
	StillBound  []Holder     // programs that have the socket itself, so that the port is not free yet
	Revision    Revision
}

// Release ends a reservation. When it returns its ports are free of portd.
func (r *Registry) Release(ctx context.Context, c Caller, ref, requestID string, only ...IfRevision) (out Released, err error) {
	at, err := aim(ref, only)
	if err != nil {
		return Released{}, err
	}
	answered, err := r.once(ctx, c, "Release", requestID, at, func(rec *Request) (err error) {
		out, err = r.release(ctx, c, at, rec)
		return err
	})
	if answered != nil {
		return Released{Reservation: answered.Result, Revision: answered.Revision}, err
	}
	return out, err
}

func (r *Registry) release(ctx context.Context, c Caller, at target, rec *Request) (Released, error) {
	e, err := r.acquireTarget(ctx, c, at, "release")
	if err != nil {
		return Released{}, err
	}
	defer r.free(e)
	res := e.res
	if err := r.whole(c, at.Ref, res); err != nil {
		return Released{}, err
	}
	cm := &commit{by: c.Principal()}
	if rec != nil {
		rec.Result = res
	}
	cm.remember(rec)
	l := r.lastOf(e)
	if l != nil {
		cm.endLease(r, l, "all that it carried was released")
	}
	if err := r.end(cm, []*entry{e}, EventReleased, ""); err != nil {
		if l != nil {
			r.revive(l)
		}
		return Released{}, err
	}
	if l != nil {
		r.stopWatching(l)
	}
	out := Released{Reservation: res, Revision: cm.rev}
	if len(cm.doubtful) > 0 {
		out.StillBound = r.stillBound(ctx, c, cm.doubtful)
	}
	return out, nil
}

// acquireTarget acquires the reservation that is aimed at, if c may change it and it is as c expects.
func (r *Registry) acquireTarget(ctx context.Context, c Caller, at target, act string) (*entry, error) {
	ref := r.refer(c, at.Ref)
	e, err := r.acquire(ctx, func() (*entry, error) {
		e, err := r.find(ref)
		switch {
		case err != nil:
			return nil, err
		case e.res == nil && e.busy == nil:
			return nil, failed(ErrNotFound, "no reservation has the id or name %q", at.Ref)
		}
		return e, nil
	})
	if err != nil {
		return nil, err
	}
	if err = r.cfg.Policy.Change(c, e.res.Owner, act+" "+e.res.Endpoints()); err == nil {
		err = at.holds(e.res)
	}
	if err != nil {
		r.free(e)
		return nil, err
	}
	return e, nil
}

// end commits the end of reservations that the caller has acquired, closes their sockets and forgets them. Nobody sees
// them any more from the revision on that ends them; others still wait for their ports until the sockets are closed.
func (r *Registry) end(cm *commit, entries []*entry, why EventType, reason string) error {
	ending := make([]*Reservation, len(entries))
	for i, e := range entries {
		ending[i] = e.res
		cm.del = append(cm.del, e.res.Key())
		cm.events = append(cm.events, Event{Type: why, Reservation: e.res, Caller: cm.by, Reason: reason})
		cm.apply = append(cm.apply, func() { r.unlist(e) })
		r.retire(cm, e.res)
	}
	if err := r.commit(cm); err != nil {
		return err
	}
	var keys []SocketKey
	for _, res := range ending {
		for j, a := range res.Assigned {
			if res.Spec.Mode == Recorded {
				break
			}
			key := SocketKey{res.ID, j}
			if a.lostPorts() > 0 || a.Endpoint.Device != "" || r.cfg.Binder.Lent(key) {
				cm.doubtful = append(cm.doubtful, a.Endpoint)
			}
			keys = append(keys, key)
		}
	}
	if err := r.cfg.Binder.Release(keys...); err != nil {
		r.cfg.Log.Error("cannot release a port", "err", err)
	}
	for i, res := range ending {
		r.mu.Lock()
		r.drop(entries[i], res)
		r.mu.Unlock()
		r.cfg.Ended(res, reasonOr(reason, "released"))
	}
	return nil
}

func reasonOr(reason, other string) string {
	if reason == "" {
		return other
	}
	return reason
}

// stillBound are the sockets that keep a port bound after portd has let it go. To look for them takes longer than all else that
// a release does.
func (r *Registry) stillBound(ctx context.Context, c Caller, eps []Endpoint) []Holder {
	holders, err := r.Holders(ctx, c, eps...)
	if err != nil {
		r.cfg.Log.Warn("cannot see who has a port", "endpoints", eps, "err", err)
	}
	return slices.DeleteFunc(holders, func(h Holder) bool { return h.State != SocketListening && h.State != SocketBound })
}
