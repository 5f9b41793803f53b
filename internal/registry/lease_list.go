package registry

import (
	"context"
	"slices"
	"time"
)

// GetLease is a lease of the caller's as it stands now.
func (r *Registry) GetLease(_ context.Context, c Caller, id string) (LeaseStatus, error) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	l := r.leases[id]
	if l == nil || !r.seesLease(c, l.Lease) {
		return LeaseStatus{}, failed(ErrNotFound, "you have no lease with the id %q, or it has ended", id)
	}
	return r.leaseStatus(l), nil
}

func (r *Registry) seesLease(c Caller, l *Lease) bool {
	return r.cfg.Policy.Admin(c) || l.Owner == c.Principal()
}

func (r *Registry) leaseStatus(l *lease) LeaseStatus {
	s := LeaseStatus{Lease: l.Lease, Connected: l.streams > 0}
	if l.Spec.Kind != ProcessLease && (l.index >= 0 || l.ending) {
		s.Expires = wallTime(l.deadline - r.cfg.BootTime())
	}
	return s
}

// ListLeases lists the leases that the caller may see, of one owner where that is not empty, in the order of creation.
func (r *Registry) ListLeases(_ context.Context, c Caller, owner Principal, p Page) (List[LeaseStatus], error) {
	at, err := p.start(r)
	if err != nil {
		return List[LeaseStatus]{}, err
	}
	r.mu.RLock()
	defer r.mu.RUnlock()
	var all []*lease
	for _, l := range r.leases {
		if l.CreateRevision > at.after && r.seesLease(c, l.Lease) && (owner == "" || owner == l.Owner) {
			all = append(all, l)
		}
	}
	slices.SortFunc(all, func(a, b *lease) int { return int(a.CreateRevision - b.CreateRevision) })
	out := List[LeaseStatus]{Revision: at.revision, StoreID: r.storeID}
	for _, l := range all {
		if len(out.Items) == p.size() {
			out.Next = at.next(out.Items[len(out.Items)-1].CreateRevision)
			break
		}
		out.Items = append(out.Items, r.leaseStatus(l))
	}
	return out, nil
}

// Expires is when a lease ends unless it is renewed or resumed; zero where no time is set, or there is no such lease.
func (r *Registry) Expires(lease string) time.Time {
	if lease == "" {
		return time.Time{}
	}
	r.mu.RLock()
	defer r.mu.RUnlock()
	l := r.leases[lease]
	if l == nil {
		return time.Time{}
	}
	return r.leaseStatus(l).Expires
}
