package registry

import (
	"context"
	"fmt"
	"slices"
)

// bringBack is adopt where what is adopted is an endpoint of a reservation that the caller may change and that has lost it, as after a
// stop of portd while a program had the socket: the reservation has it again. It is no answer, and no error, where there is none.
func (r *Registry) bringBack(ctx context.Context, c Caller, req AdoptRequest, want Adopt, rec *Request) (out *Adopted, err error) {
	if req.Name != "" || len(req.Labels) > 0 || req.Lease != "" || req.NewLease != nil {
		return nil, nil // another reservation is meant
	}
	e, err := r.acquire(ctx, func() (*entry, error) {
		for e := range r.lost {
			if e.res != nil && lostAt(e.res, want) >= 0 && r.cfg.Policy.Change(c, e.res.Owner, "adopt") == nil {
				return e, nil
			}
		}
		return nil, ErrNotFound
	})
	if err == ErrNotFound {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer r.free(e)
	if e.res == nil || e.unrecorded != nil { // released meanwhile, or held again
		return nil, nil
	}
	at := lostAt(e.res, want)
	if at < 0 {
		return nil, nil
	}
	a := e.res.Assigned[at]
	want.Key, want.Endpoint, want.AnyAddr = SocketKey{e.res.ID, at}, a.Endpoint, false
	got, err := r.cfg.Binder.Adopt(ctx, want)
	if err != nil {
		return nil, r.whyNot(ctx, c, want, err)
	}
	defer func() {
		if err == nil {
			return
		}
		if rerr := r.cfg.Binder.Release(want.Key); rerr != nil {
			r.cfg.Log.Error("cannot give a socket back", "endpoint", got.Endpoint, "err", rerr)
		}
	}()
	if a.Listen == nil {
		a.Listen = &got.Listen
	} else if err := r.cfg.Binder.Listen(ctx, want.Key, *a.Listen); err != nil {
		return nil, err
	}
	a.Lost = nil
	after := e.res.with(func(n *Reservation) { n.Assigned[at] = a })
	cm := &commit{by: c.Principal()}
	cm.update(e, after, Event{Type: EventRecovered, Reason: fmt.Sprintf("adopted from %s (pid %d)", got.From.Command, got.From.PID)})
	cm.apply = append(cm.apply, func() { r.noteLost(e) })
	if rec != nil {
		rec.Result = after
	}
	cm.remember(rec)
	if err := r.commit(cm); err != nil {
		return nil, err
	}
	also := slices.DeleteFunc(got.Others, func(p Process) bool { return !r.cfg.Policy.SeeProcess(c, p) })
	return &Adopted{Reservation: after, AlsoOpenIn: also}, nil
}

// lostAt is which endpoint of a reservation is what is to be adopted, and lost; negative: none.
func lostAt(res *Reservation, want Adopt) int {
	return slices.IndexFunc(res.Assigned, func(a Assigned) bool {
		e := a.Endpoint
		return len(a.Lost) > 0 && e.Ports() == 1 && e.Proto == want.Endpoint.Proto && e.First == want.Endpoint.First && e.Netns == want.Endpoint.Netns &&
			(want.AnyAddr || e == want.Endpoint)
	})
}
