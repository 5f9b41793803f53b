package registry

import (
	"context"
	"fmt"
	"maps"
	"strings"
)

// An Update says what of a reservation is to be another. What is nil stays as it is.
type Update struct {
	Name   *string           // empty: none
	Labels map[string]string // all there will be; empty and not nil: none
	Lease  *string           // an id; empty: the reservation stays until it is released
}

// Update changes a reservation's name, labels or lease in one change; its ports stay as they are. ErrTaken where the name is
// another's, ErrNotFound where the lease is neither the caller's nor the reservation's owner's, or has ended. A lease that was made
// with a reservation and carries none any more ends with the change.
func (r *Registry) Update(ctx context.Context, c Caller, ref string, u Update, requestID string, only ...IfRevision) (*Reservation, error) {
	at, err := aim(ref, only)
	if err != nil {
		return nil, err
	}
	if u.Name == nil && u.Labels == nil && u.Lease == nil {
		return nil, invalid("update_mask", "names nothing to change; known are name, labels and lease_id")
	}
	if u.Name != nil && *u.Name != "" {
		if err := ValidateName(*u.Name); err != nil {
			return nil, err
		}
	}
	if err := checkLabels(u.Labels); err != nil {
		return nil, err
	}
	content := struct {
		target
		Update
	}{at, u}
	var out *Reservation
	answered, err := r.once(ctx, c, "UpdateReservation", requestID, content, func(rec *Request) (err error) {
		out, err = r.update(ctx, c, at, u, rec)
		return err
	})
	if answered != nil {
		return answered.Result, err
	}
	return out, err
}

func (r *Registry) update(ctx context.Context, c Caller, at target, u Update, rec *Request) (*Reservation, error) {
	for {
		e, err := r.acquireTarget(ctx, c, at, "change")
		if err != nil {
			return nil, err
		}
		after, busy, err := r.updateEntry(c, e, u, rec)
		r.free(e)
		if busy == nil {
			return after, err
		}
		// Somebody is at work on who has the name. To wait for him with e in hand could be to wait in a circle.
		if err := wait(ctx, busy); err != nil {
			return nil, err
		}
	}
}

// updateEntry is one attempt at a reservation that the caller has acquired: done, refused, or to be repeated when busy is closed.
func (r *Registry) updateEntry(c Caller, e *entry, u Update, rec *Request) (_ *Reservation, busy chan struct{}, err error) {
	before := e.res
	after, changed := u.of(before)
	if len(changed) == 0 {
		return before, nil, nil
	}
	if busy, err = r.claimUpdate(c, e, before, after); busy != nil || err != nil {
		return nil, busy, err
	}
	cm := &commit{by: c.Principal()}
	cm.update(e, after, Event{Type: EventUpdated, Reason: strings.Join(changed, ", ")})
	cm.apply = append(cm.apply, func() { r.unclaimUpdate(e, before, after) })
	var over *lease
	if before.Lease != after.Lease && before.Lease != "" {
		if over = r.lastOf(e); over != nil {
			cm.endLease(r, over, "its only reservation was taken from it")
		}
	}
	if rec != nil {
		rec.Result = after
	}
	cm.remember(rec)
	if err := r.commit(cm); err != nil {
		r.mu.Lock()
		r.unclaimUpdate(e, after, before)
		r.mu.Unlock()
		if over != nil {
			r.revive(over)
		}
		return nil, nil, err
	}
	if over != nil {
		r.stopWatching(over)
	}
	return after, nil, nil
}

// of is a reservation with the update, and what is different with it, in words.
func (u Update) of(res *Reservation) (after *Reservation, changed []string) {
	after = res.with(func(n *Reservation) {
		if u.Name != nil && *u.Name != res.Name {
			n.Name = *u.Name
			changed = append(changed, renamed(res.Name))
		}
		if u.Labels != nil && !maps.Equal(u.Labels, res.Labels) {
			n.Labels = maps.Clone(u.Labels)
			changed = append(changed, "labels")
		}
		if u.Lease != nil && *u.Lease != res.Lease {
			n.Lease = *u.Lease
			changed = append(changed, "lease")
		}
	})
	return after, changed
}

func renamed(from string) string {
	if from == "" {
		return "name"
	}
	return fmt.Sprintf("name, which was %q", from)
}

// claimUpdate enters what after has and before has not, under its name and its lease, until unclaimUpdate. Nothing is entered where
// it is refused, and where it is to be tried again when busy is closed.
func (r *Registry) claimUpdate(c Caller, e *entry, before, after *Reservation) (busy chan struct{}, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if after.Name != before.Name && after.Name != "" {
		if other := r.names[after.Name]; other != nil && other.busy != nil {
			return other.busy, nil
		} else if other != nil {
			return nil, &TakenError{Name: after.Name, By: []*Reservation{other.res}}
		}
	}
	if after.Lease != before.Lease && after.Lease != "" {
		l := r.leases[after.Lease]
		if l == nil || l.ending || l.Owner != c.Principal() && l.Owner != before.Owner {
			return nil, failed(ErrNotFound, "lease %s: you have no such lease, or it has ended", after.Lease)
		}
		l.carries[e] = true
	}
	if after.Name != "" {
		r.names[after.Name] = e
	}
	return nil, nil
}

// unclaimUpdate takes away the name and the lease of a reservation that has others from now on. mu is held.
func (r *Registry) unclaimUpdate(e *entry, gone, stays *Reservation) {
	if gone.Name != stays.Name && r.names[gone.Name] == e {
		delete(r.names, gone.Name)
	}
	if l := r.leases[gone.Lease]; l != nil && gone.Lease != stays.Lease {
		delete(l.carries, e)
	}
}
