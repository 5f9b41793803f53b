package registry

import "context"

// CreateLease makes a lease of any kind but a session, for the caller's reservations to come.
func (r *Registry) CreateLease(ctx context.Context, c Caller, spec LeaseSpec, requestID string) (out LeaseStatus, err error) {
	answered, err := r.once(ctx, c, "CreateLease", requestID, spec, func(rec *Request) error {
		if err := spec.check("spec"); err != nil {
			return err
		}
		l, err := r.makeLease(c, spec)
		if err == nil {
			err = r.watchProcess(l)
		}
		if err != nil {
			return err
		}
		cm := &commit{by: c.Principal()}
		r.create(cm, l)
		if rec != nil {
			rec.Lease = l.Lease
		}
		cm.remember(rec)
		if err := r.commit(cm); err != nil {
			r.stopWatching(l)
			return err
		}
		r.mu.RLock()
		defer r.mu.RUnlock()
		out = r.leaseStatus(l)
		return nil
	})
	if answered == nil {
		return out, err
	}
	r.mu.RLock()
	defer r.mu.RUnlock()
	if l := r.leases[answered.Lease.ID]; l != nil {
		return r.leaseStatus(l), nil
	}
	return LeaseStatus{Lease: answered.Lease}, nil
}

// makeLease is a lease that nobody knows of yet.
func (r *Registry) makeLease(c Caller, spec LeaseSpec) (*lease, error) {
	rec := &Lease{ID: newID("lse_"), Owner: c.Principal(), Spec: spec}
	if spec.Kind == ProcessLease {
		var err error
		if rec.Start, err = r.findProcess(c, spec.PID); err != nil {
			return nil, err
		}
	}
	return newLease(rec), nil
}

// create adds the making of a lease to a commit.
func (r *Registry) create(cm *commit, l *lease) {
	cm.put = append(cm.put, l.Lease)
	cm.events = append(cm.events, Event{Type: EventLeaseCreated, Lease: l.Lease, Caller: cm.by})
	cm.apply = append(cm.apply, func() { r.insertLease(l) })
}

// RenewLease gives a lease its whole time to live again, from now on. One that has ended, or is ending, is ErrNotFound.
//
// A renewal is not written to the store: after portd was down every lease has its whole time again, which is never
// less than what the renewal gave it. Only across a reboot the store must know whether a lease was over; see aliveAtBoot.
func (r *Registry) RenewLease(ctx context.Context, c Caller, id string) (LeaseStatus, error) {
	// A successor that has read the store counts from then on, and would not know of it.
	leave, err := r.gate.enter(ctx)
	if err != nil {
		return LeaseStatus{}, err
	}
	defer leave()
	r.mu.Lock()
	defer r.mu.Unlock()
	l, err := r.changeable(c, id, "renew")
	if err != nil {
		return LeaseStatus{}, err
	}
	if l.Spec.Kind != TTLLease {
		return LeaseStatus{}, &UnsupportedError{"renew lease " + id, "it has no time to live; only leases with one are renewed", "LEASE_KIND"}
	}
	r.schedule(l, l.Spec.TTL)
	return r.leaseStatus(l), nil
}

// changeable is a lease that has not ended and that c may do act to. mu is held.
func (r *Registry) changeable(c Caller, id, act string) (*lease, error) {
	l := r.leases[id]
	if l == nil || l.ending {
		return nil, failed(ErrNotFound, "no lease has the id %q, or it has ended", id)
	}
	return l, r.cfg.Policy.Change(c, l.Owner, act+" lease "+id)
}

// EndedLease is a lease that was ended.
type EndedLease struct {
	Released []*Reservation // as they were
	Revision Revision
}

// EndLease ends a lease now, and releases all that it carries.
func (r *Registry) EndLease(ctx context.Context, c Caller, id, requestID string) (out EndedLease, err error) {
	answered, err := r.once(ctx, c, "EndLease", requestID, id, func(rec *Request) error {
		r.mu.Lock()
		l, err := r.changeable(c, id, "end")
		if err == nil {
			l.ending = true
		}
		r.mu.Unlock()
		if err != nil {
			return err
		}
		if rec != nil {
			rec.Lease = l.Lease
		}
		out, err = r.endLease(ctx, c.Principal(), l, "its lease was ended", rec)
		return err
	})
	if answered != nil {
		return EndedLease{Revision: answered.Revision}, err
	}
	return out, err
}

// lastOf is the lease that ends with a reservation that the caller has acquired, marked as ending; nil where there is
// none: it was made for others too, or carries them.
func (r *Registry) lastOf(e *entry) *lease {
	r.mu.Lock()
	defer r.mu.Unlock()
	l := r.leases[e.res.Lease]
	if l == nil || !l.Single || l.ending || len(l.carries) != 1 {
		return nil
	}
	l.ending = true
	return l
}
