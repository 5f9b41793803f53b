package registry

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"slices"
	"sync"
	"time"
)

// A lease is a Lease's place in the table; Registry.mu guards it.
type lease struct {
	*Lease
	streams  int             // of a session, that are open
	deadline time.Duration   // of boot time, where no stream is open
	ending   bool            // takes no more reservations
	carries  map[*entry]bool // reservations that end with it, those not yet committed included
	done     chan struct{}   // closed when it has ended
}

// A Session is an open stream that keeps a lease alive.
type Session struct {
	Lease   *Lease
	Token   string // resumes it; a secret
	Resumed bool

	r    *Registry
	l    *lease
	once sync.Once
}

// OpenSession makes a session, or resumes the one that token belongs to. It lives until Close and for its grace after
// that. A token that is unknown, or another's, is ErrNotFound.
func (r *Registry) OpenSession(_ context.Context, c Caller, grace time.Duration, token string) (*Session, error) {
	if token != "" {
		return r.resume(c, token)
	}
	if grace < 0 || grace > MaxGrace {
		return nil, invalid("grace", "%v is not allowed; allowed are up to %v", grace, MaxGrace)
	}
	if grace == 0 {
		grace = DefaultGrace
	}
	token = rand.Text()
	rec := &Lease{
		ID: newID("lse_"), Owner: c.Principal(), Token: sha256.Sum256([]byte(token)),
		Spec: LeaseSpec{Kind: SessionLease, Grace: grace},
	}
	s := &Session{Lease: rec, Token: token, r: r}
	cm := &commit{by: c.Principal(), put: []Record{rec}}
	cm.events = []Event{{Type: EventLeaseCreated, Lease: rec, Caller: c.Principal()}}
	cm.apply = append(cm.apply, func() {
		s.l = r.insertLease(rec)
		s.l.streams = 1
	})
	if err := r.commit(cm); err != nil {
		return nil, err
	}
	return s, nil
}

func (r *Registry) resume(c Caller, token string) (*Session, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	l := r.tokens[sha256.Sum256([]byte(token))]
	if l == nil || l.ending || l.Owner != c.Principal() {
		return nil, failed(ErrNotFound, "you have no such session, or it has ended; open a new one")
	}
	l.streams++
	return &Session{Lease: l.Lease, Token: token, Resumed: true, r: r, l: l}, nil
}

// insertLease puts a lease into the table, disconnected: it has its grace from now on. mu is held, or nobody else is there.
func (r *Registry) insertLease(rec *Lease) *lease {
	l := &lease{Lease: rec, carries: map[*entry]bool{}, done: make(chan struct{}), deadline: r.cfg.BootTime() + rec.Spec.Grace}
	r.leases[rec.ID] = l
	r.tokens[rec.Token] = l
	return l
}

// Done is closed when the lease has ended under the session.
func (s *Session) Done() <-chan struct{} { return s.l.done }

// Close ends the stream, and begins the lease's grace. Only the first call counts.
func (s *Session) Close() {
	s.once.Do(func() {
		s.r.mu.Lock()
		s.l.streams--
		if s.l.streams == 0 {
			s.l.deadline = s.r.cfg.BootTime() + s.l.Spec.Grace
		}
		s.r.mu.Unlock()
		s.r.wakeKeeper()
	})
}

// wakeKeeper has keepLeases look at the deadlines again.
func (r *Registry) wakeKeeper() {
	select {
	case r.rearm <- struct{}{}:
	default:
	}
}

// keepLeases ends leases whose time has come, until ctx ends. It looks again at least once a second while any has a
// deadline, for the timer stands still while the host sleeps and boot time does not.
func (r *Registry) keepLeases(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-timer.C:
		case <-r.rearm:
		}
		due, next := r.dueLeases()
		for _, l := range due {
			if _, err := r.endLease(ctx, Self, l, "the session was lost", nil); err != nil && ctx.Err() == nil {
				r.cfg.Log.Error("cannot end a lease", "lease", l.ID, "err", err)
				next = min(next, time.Second)
			}
		}
		timer.Reset(min(next, time.Second))
		if next == never {
			timer.Stop()
		}
	}
}

const never = time.Duration(1<<63 - 1)

// dueLeases are those that are over, marked as ending, and how long until the next one is.
func (r *Registry) dueLeases() (due []*lease, next time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now, next := r.cfg.BootTime(), never
	for _, l := range r.leases {
		switch {
		case l.streams > 0 || l.ending:
		case l.deadline <= now:
			l.ending = true
			due = append(due, l)
		default:
			next = min(next, l.deadline-now)
		}
	}
	return due, next
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
		l := r.leases[id]
		if l == nil || l.ending {
			r.mu.Unlock()
			return failed(ErrNotFound, "no lease has the id %q, or it has ended", id)
		}
		if err := r.cfg.Policy.Change(c, l.Owner, "end lease "+id); err != nil {
			r.mu.Unlock()
			return err
		}
		l.ending = true
		r.mu.Unlock()
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

// endLease ends a lease that is marked as ending, with all that it carries, in one change.
func (r *Registry) endLease(ctx context.Context, by Principal, l *lease, reason string, rec *Request) (_ EndedLease, err error) {
	var entries []*entry
	defer func() {
		for _, e := range entries {
			r.free(e)
		}
		if err != nil {
			r.mu.Lock()
			l.ending = false
			r.mu.Unlock()
			r.wakeKeeper() // its deadline counts again
		}
	}()
	// First let those come to an end that are still being reserved, without holding any that they may be waiting for.
	carried, err := r.settled(ctx, l)
	if err != nil {
		return EndedLease{}, err
	}
	var out EndedLease
	for _, e := range carried {
		if _, err := r.acquire(ctx, func() (*entry, error) { return e, nil }); err != nil {
			return EndedLease{}, err
		}
		if e.res == nil { // released meanwhile
			r.free(e)
			continue
		}
		entries = append(entries, e)
		out.Released = append(out.Released, e.res)
	}
	cm := &commit{by: by, del: []Key{l.Key()}}
	cm.remember(rec)
	cm.apply = append(cm.apply, func() {
		delete(r.leases, l.ID)
		delete(r.tokens, l.Token)
		close(l.done)
	})
	cm.events = []Event{{Type: EventLeaseEnded, Lease: l.Lease, Caller: by, Reason: reason}}
	err = r.end(cm, entries, EventExpired, reason)
	out.Revision = cm.rev
	return out, err
}

// settled are the reservations that a lease carries once none of them is still being made.
func (r *Registry) settled(ctx context.Context, l *lease) ([]*entry, error) {
	for {
		r.mu.RLock()
		var pending chan struct{}
		var all []*entry
		for e := range l.carries {
			if e.res == nil && e.busy != nil {
				pending = e.busy
			}
			all = append(all, e)
		}
		r.mu.RUnlock()
		if pending == nil {
			return all, nil
		}
		if err := wait(ctx, pending); err != nil {
			return nil, err
		}
	}
}

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
	if !s.Connected {
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
