package registry

import (
	"container/heap"
	"context"
	"time"

	"golang.org/x/sync/errgroup"
)

// A lease is a Lease's place in the table; Registry.mu guards it.
type lease struct {
	*Lease
	streams  int             // of a session, that are open
	deadline time.Duration   // of boot time, while it is among Registry.deadlines
	index    int             // there; -1 where it is not
	over     string          // why it ends, where its process has ended
	unwatch  func()          // of a process; nil where it is not watched
	ending   bool            // takes no more reservations, and is not renewed
	carries  map[*entry]bool // reservations that end with it, those not yet committed included
	done     chan struct{}   // closed when it has ended
}

func newLease(rec *Lease) *lease {
	return &lease{Lease: rec, index: -1, carries: map[*entry]bool{}, done: make(chan struct{})}
}

// deadlines are leases by the time when they end, as container/heap wants them: the next one first. A renewal moves one
// lease; nothing ever looks at all of them.
type deadlines []*lease

func (d deadlines) Len() int           { return len(d) }
func (d deadlines) Less(i, j int) bool { return d[i].deadline < d[j].deadline }
func (d deadlines) Swap(i, j int) {
	d[i], d[j] = d[j], d[i]
	d[i].index, d[j].index = i, j
}

func (d *deadlines) Push(x any) {
	l := x.(*lease)
	l.index = len(*d)
	*d = append(*d, l)
}

func (d *deadlines) Pop() any {
	last := len(*d) - 1
	l := (*d)[last]
	(*d)[last] = nil
	*d = (*d)[:last]
	l.index = -1
	return l
}

// insertLease puts a lease into the table; its time runs from now on. mu is held, or nobody else is there.
func (r *Registry) insertLease(l *lease) {
	r.leases[l.ID] = l
	switch l.Spec.Kind {
	case SessionLease:
		r.tokens[l.Token] = l
		if l.streams == 0 {
			r.schedule(l, l.Spec.Grace)
		}
	case TTLLease:
		r.schedule(l, l.Spec.TTL)
	case ProcessLease:
		r.scheduleProcess(l)
	}
}

// removeLease takes a lease that has ended out of the table. mu is held.
func (r *Registry) removeLease(l *lease) {
	delete(r.leases, l.ID)
	if l.Spec.Kind == SessionLease {
		delete(r.tokens, l.Token)
	}
	r.unschedule(l)
	close(l.done)
}

// schedule lets a lease end after a time from now, whatever it was before. mu is held.
func (r *Registry) schedule(l *lease, after time.Duration) {
	l.deadline = r.cfg.BootTime() + after
	if l.index < 0 {
		heap.Push(&r.deadlines, l)
	} else {
		heap.Fix(&r.deadlines, l.index)
	}
	if l.index == 0 {
		r.wakeKeeper()
	}
}

// unschedule lets no time end a lease. mu is held.
func (r *Registry) unschedule(l *lease) {
	if l.index >= 0 {
		heap.Remove(&r.deadlines, l.index)
	}
}

// revive takes back that a lease is ending: the store did not take it. It is tried again, if the lease is not renewed
// before that, and not at once: the store may be out of order for long.
func (r *Registry) revive(l *lease) {
	r.mu.Lock()
	defer r.mu.Unlock()
	l.ending = false
	if l.unwatch != nil && l.over == "" { // its process runs on
		return
	}
	if l.index < 0 && l.streams == 0 {
		r.schedule(l, max(time.Second, l.deadline-r.cfg.BootTime()))
	}
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
	// Each waits for the disk, and for whoever is at work on what it carries. Many at a time share a transaction, and one
	// that waits holds up no other.
	var ends errgroup.Group
	ends.SetLimit(maxBatch)
	defer func() { _ = ends.Wait() }()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-timer.C:
		case <-r.rearm:
		}
		due, next := r.dueLeases()
		for _, l := range due {
			ends.Go(func() error {
				r.expire(ctx, l)
				return nil
			})
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
	now := r.cfg.BootTime()
	for len(r.deadlines) > 0 {
		l := r.deadlines[0]
		if l.deadline > now {
			return due, l.deadline - now
		}
		heap.Pop(&r.deadlines)
		if !l.ending { // else somebody ends it already, who revives it where that fails
			l.ending = true
			due = append(due, l)
		}
	}
	return due, never
}

// expire ends a lease that is due.
func (r *Registry) expire(ctx context.Context, l *lease) {
	leave, err := r.gate.enter(ctx)
	if err != nil {
		r.revive(l)
		return
	}
	defer leave()
	reason := "the session was lost"
	switch l.Spec.Kind {
	case TTLLease:
		reason = "it was not renewed within " + l.Spec.TTL.String()
	case ProcessLease:
		if reason = r.processOver(l); reason == "" {
			r.revive(l)
			return
		}
	}
	if _, err := r.endLease(ctx, Self, l, reason, nil); err != nil && ctx.Err() == nil {
		r.cfg.Log.Error("cannot end a lease", "lease", l.ID, "err", err)
	}
}

// endLease ends a lease that is marked as ending, with all that it carries, in one change.
func (r *Registry) endLease(ctx context.Context, by Principal, l *lease, reason string, rec *Request) (_ EndedLease, err error) {
	var entries []*entry
	defer func() {
		for _, e := range entries {
			r.free(e)
		}
		if err != nil {
			r.revive(l)
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
		if e.res == nil || e.res.Lease != l.ID { // released meanwhile, or taken from the lease
			r.free(e)
			continue
		}
		entries = append(entries, e)
		out.Released = append(out.Released, e.res)
	}
	cm := &commit{by: by}
	cm.remember(rec)
	cm.endLease(r, l, reason)
	if err = r.end(cm, entries, EventExpired, reason); err == nil {
		r.stopWatching(l)
	}
	out.Revision = cm.rev
	return out, err
}

// endLease adds the end of a lease to a commit.
func (c *commit) endLease(r *Registry, l *lease, reason string) {
	c.del = append(c.del, l.Key())
	c.events = append(c.events, Event{Type: EventLeaseEnded, Lease: l.Lease, Caller: c.by, Reason: reason})
	c.apply = append(c.apply, func() { r.removeLease(l) })
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
