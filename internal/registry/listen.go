package registry

import (
	"context"
	"errors"
)

// Listen makes the held endpoints of a reservation that can listen do so, all or none, and again after every restart. What listens
// already has the new options then, for the connections to come.
func (r *Registry) Listen(ctx context.Context, c Caller, ref string, how Listen, requestID string, only ...IfRevision) (*Reservation, error) {
	if err := how.check(); err != nil {
		return nil, err
	}
	at, err := aim(ref, only)
	if err != nil {
		return nil, err
	}
	content := struct {
		target
		How Listen
	}{at, how}
	return r.change(ctx, c, at, "Listen", "listen on", requestID, content, func(e *entry, rec *Request) (*Reservation, error) {
		return r.listen(ctx, c, e, how, rec)
	})
}

// Unlisten stops listening and keeps the ports held.
func (r *Registry) Unlisten(ctx context.Context, c Caller, ref, requestID string, only ...IfRevision) (*Reservation, error) {
	at, err := aim(ref, only)
	if err != nil {
		return nil, err
	}
	return r.change(ctx, c, at, "Close", "close", requestID, at, func(e *entry, rec *Request) (*Reservation, error) {
		return r.unlisten(c, e, rec)
	})
}

// change does a thing to one reservation, once where there is a request id.
func (r *Registry) change(ctx context.Context, c Caller, at target, method, act, requestID string, content any,
	do func(*entry, *Request) (*Reservation, error),
) (res *Reservation, err error) {
	answered, err := r.once(ctx, c, method, requestID, content, func(rec *Request) error {
		e, err := r.acquireTarget(ctx, c, at, act)
		if err != nil {
			return err
		}
		defer r.free(e)
		res, err = do(e, rec)
		return err
	})
	if answered != nil {
		return answered.Result, err
	}
	return res, err
}

func (r *Registry) listen(ctx context.Context, c Caller, e *entry, how Listen, rec *Request) (_ *Reservation, err error) {
	res := e.res
	if res.Spec.Mode == Recorded {
		return nil, &UnsupportedError{"listen on " + res.Endpoints(), "it is recorded only, for a program that binds it itself; release it and reserve it held", "RECORDED"}
	}
	var streams []int
	want := make([]*ListenOptions, len(res.Assigned))
	for i, a := range res.Assigned {
		if !a.Endpoint.Proto.Streams() {
			continue // a UDP endpoint of the same reservation stays as it is: its socket is had itself
		}
		if a.lostPorts() > 0 {
			return nil, r.explain(ctx, c, a.Endpoint, ErrTaken)
		}
		opt := how.of(a.Listen)
		if a.Listen == nil || *a.Listen != opt {
			if err := r.mayListen(c, a, opt); err != nil {
				return nil, err
			}
			if err := opt.Handoff.fit(a.Endpoint, res.Spec.Options); err != nil {
				return nil, err
			}
		}
		streams, want[i] = append(streams, i), &opt
	}
	if len(streams) == 0 {
		ep := res.Assigned[0].Endpoint
		return nil, &UnsupportedError{"listen on " + ep.String(), "a " + ep.Proto.String() + " socket does not listen; take the socket itself, as portctl run does", "NOT_A_STREAM"}
	}
	var began []int
	undo := func() {
		for _, i := range began {
			key := SocketKey{res.ID, i}
			var err error
			if before := res.Assigned[i].Listen; before != nil {
				err = r.cfg.Binder.Listen(context.WithoutCancel(ctx), key, *before)
			} else {
				err = r.cfg.Binder.Unlisten(key)
			}
			if err != nil {
				r.cfg.Log.Error("cannot undo a listen", "endpoint", res.Assigned[i].Endpoint, "err", err)
			}
		}
	}
	changed := false
	for _, i := range streams {
		a := res.Assigned[i]
		if a.Listen != nil && *a.Listen == *want[i] {
			continue
		}
		changed = true
		if err := r.cfg.Binder.Listen(ctx, SocketKey{res.ID, i}, *want[i]); err != nil {
			undo()
			if errors.Is(err, ErrTaken) {
				return nil, r.explain(ctx, c, a.Endpoint, err)
			}
			return nil, err
		}
		began = append(began, i)
	}
	if !changed {
		return res, nil
	}
	after := res.with(func(n *Reservation) {
		for _, i := range streams {
			n.Assigned[i].Listen = want[i]
		}
	})
	if err := r.commitUpdate(c, e, after, EventListening, rec); err != nil {
		undo()
		return nil, err
	}
	return after, nil
}

// mayListen says whether an endpoint may have other options than it has.
func (r *Registry) mayListen(c Caller, a Assigned, opt ListenOptions) error {
	if err := opt.fit(a.Endpoint.Proto); err != nil {
		return err
	}
	had := ListenOptions{}
	if a.Listen != nil {
		had = *a.Listen
	}
	if opt.Mark != had.Mark {
		if err := r.cfg.Policy.Listen(c, opt); err != nil {
			return err
		}
	}
	var asked ListenOptions // and not had already
	if opt.FastOpen != had.FastOpen {
		asked.FastOpen = opt.FastOpen
	}
	if opt.Handoff.WithoutWorker != had.Handoff.WithoutWorker {
		asked.Handoff.WithoutWorker = opt.Handoff.WithoutWorker
	}
	if asked == (ListenOptions{}) {
		return nil
	}
	return r.cfg.Binder.MayListen(a.Endpoint.Netns, asked)
}

func (r *Registry) unlisten(c Caller, e *entry, rec *Request) (*Reservation, error) {
	res := e.res
	var listening []int
	for i, a := range res.Assigned {
		if a.Listen != nil {
			listening = append(listening, i)
		}
	}
	if len(listening) == 0 {
		return res, nil
	}
	after := res.with(func(n *Reservation) {
		for i := range n.Assigned {
			n.Assigned[i].Listen = nil
		}
	})
	if err := r.commitUpdate(c, e, after, EventClosed, rec); err != nil {
		return nil, err
	}
	var errs []error
	for _, i := range listening { // one that cannot be closed as it should leaves none of the others open
		errs = append(errs, r.cfg.Binder.Unlisten(SocketKey{res.ID, i}))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return after, nil
}

// commitUpdate commits a reservation's new state; the caller has acquired e.
func (r *Registry) commitUpdate(c Caller, e *entry, after *Reservation, typ EventType, rec *Request) error {
	cm := &commit{by: c.Principal()}
	cm.update(e, after, Event{Type: typ})
	if rec != nil {
		rec.Result = after
	}
	cm.remember(rec)
	return r.commit(cm)
}

// Attach says which reservation a worker may attach to.
func (r *Registry) Attach(_ context.Context, c Caller, ref string) (*Reservation, error) {
	at := r.refer(c, ref)
	r.mu.RLock()
	defer r.mu.RUnlock()
	e, err := r.find(at)
	if err != nil {
		return nil, err
	}
	if e.res == nil {
		return nil, failed(ErrNotFound, "%s is not reserved", ref)
	}
	if err := r.cfg.Policy.Change(c, e.res.Owner, "attach to "+e.res.Endpoints()); err != nil {
		return nil, err
	}
	if e.res.Spec.Mode == Recorded {
		return nil, &UnsupportedError{"attach to " + e.res.Endpoints(), "it is recorded only, for a program that binds it itself", "RECORDED"}
	}
	return e.res, nil
}

// ListenerInfo is an endpoint that listens.
type ListenerInfo struct {
	Reservation *Reservation
	Index       int
	Options     ListenOptions // as the kernel has them
}

// Listeners are the endpoints that listen, of the reservation that ref means where it is not empty.
func (r *Registry) Listeners(_ context.Context, c Caller, ref string) ([]ListenerInfo, error) {
	var out []ListenerInfo
	collect := func(res *Reservation) {
		for i, a := range res.Assigned {
			if a.State(res.Spec.Mode) == StateListening {
				out = append(out, ListenerInfo{Reservation: res, Index: i})
			}
		}
	}
	at := r.refer(c, ref)
	err := func() error {
		r.mu.RLock()
		defer r.mu.RUnlock()
		if ref == "" {
			for _, e := range r.order {
				collect(e.res)
			}
			return nil
		}
		e, err := r.find(at)
		if err != nil {
			return err
		}
		if e.res != nil {
			collect(e.res)
		}
		return nil
	}()
	if err != nil {
		return nil, err
	}
	for i := range out {
		// One that has been closed since has none.
		if opt, err := r.cfg.Binder.Options(SocketKey{out[i].Reservation.ID, out[i].Index}); err == nil {
			out[i].Options = opt
			out[i].Options.Handoff = out[i].Reservation.Assigned[out[i].Index].Listen.Handoff // of which the kernel knows nothing
		}
	}
	return out, nil
}
