package registry

import (
	"context"
	"fmt"
	"time"
)

const (
	maxBatch   = 512   // changes in one transaction of the store
	keepRecent = 4_096 // revisions whose events are in memory too
)

// A commit is one change on its way to the store. Its fields are filled by who wants it, but for the revision, which
// the committing goroutine gives.
type commit struct {
	by     Principal
	put    []Record
	del    []Key
	events []Event
	apply  []func() // run with mu held once it is durable
	result chan error
	rev    Revision

	// doubtful are released endpoints that another program may have bound all the same; every other was portd's alone.
	doubtful []Endpoint
}

var errStopping = failed(ErrUnavailable, "portd is stopping")

func (c *commit) done() chan error {
	if c.result == nil {
		c.result = make(chan error, 1)
	}
	return c.result
}

// update changes a reservation.
func (c *commit) update(e *entry, after *Reservation, ev Event) {
	ev.Reservation = after
	if ev.Caller == "" {
		ev.Caller = c.by
	}
	c.put = append(c.put, after)
	c.events = append(c.events, ev)
	c.apply = append(c.apply, func() { e.res = after })
}

// commit waits until c is durable and applied. It does not take a context: once c is on its way its outcome matters
// to whoever holds a port for it.
func (r *Registry) commit(c *commit) error {
	if r.cfg.ReadOnly != "" && c.by != Self {
		return &UnsupportedError{What: "nothing can be changed", Why: r.cfg.ReadOnly, Code: "READ_ONLY"}
	}
	done := c.done()
	r.queue.add(c)
	select {
	case err := <-done:
		return err
	case <-r.stopped:
		// The committer may have answered before it stopped.
		select {
		case err := <-done:
			return err
		default:
			return errStopping
		}
	}
}

// commitLoop writes whatever is waiting as one batch, again and again: batches form while the disk is busy.
func (r *Registry) commitLoop(stop <-chan struct{}) {
	defer close(r.stopped)
	for {
		batch := r.queue.take(stop)
		if batch == nil {
			return
		}
		begin := time.Now()
		r.commitBatch(batch)
		r.queue.wrote(len(batch), time.Since(begin))
	}
}

// commitBatch gives the commits their revisions, writes them, applies them and tells the watchers.
func (r *Registry) commitBatch(batch []*commit) {
	tick := time.Now()
	now := tick.UTC() // the wall clock alone, which somebody may set
	if tick.Sub(r.swept) >= time.Minute {
		r.swept = tick
		r.forget(batch[0], now)
		r.forgetNetns(batch)
	}
	r.noteSeen(batch[0], now)
	base := r.rev // only this goroutine changes it
	changes := make([]Change, len(batch))
	for i, c := range batch {
		c.rev = base + Revision(i) + 1
		for _, rec := range c.put {
			stamp(rec, c.rev, now)
		}
		changes[i] = Change{Revision: c.rev, Time: now, Put: c.put, Delete: c.del, Events: c.events}
	}
	last := &changes[len(changes)-1]
	oldest := r.oldestKept(last.Revision)
	if oldest > r.oldest {
		last.Compact = oldest
	}
	var watched chan struct{}
	err := r.cfg.Store.Commit(context.Background(), base, changes)
	if err != nil {
		r.cfg.Log.Error("cannot write to the store; the changes are undone", "err", err, "changes", len(batch))
		err = fmt.Errorf("write to the store: %w", err)
	} else {
		r.mu.Lock()
		r.rev, r.oldest = last.Revision, oldest
		for _, c := range batch {
			for _, apply := range c.apply {
				apply()
			}
		}
		r.remember(changes)
		watched, r.changed = r.changed, make(chan struct{})
		r.mu.Unlock()
	}
	for _, c := range batch {
		c.done() <- err
	}
	if watched != nil {
		close(watched) // only now: who is woken first runs first, and there may be many watchers
	}
}

// stamp writes a change's revision and time into a record that is new with it.
func stamp(rec Record, rev Revision, now time.Time) {
	switch rec := rec.(type) {
	case *Reservation:
		rec.Revision = rev
		if rec.CreateRevision == 0 {
			rec.CreateRevision, rec.Created = rev, now
		}
	case *Lease:
		if rec.CreateRevision == 0 {
			rec.CreateRevision, rec.Created = rev, now
		}
	case *Request:
		rec.Revision, rec.Time = rev, now
	case *OwnService:
		rec.Revision, rec.Time = rev, now
	}
}

// remember keeps changes for watchers. mu is held.
func (r *Registry) remember(changes []Change) {
	for _, ch := range changes {
		r.recent = append(r.recent, Change{Revision: ch.Revision, Time: ch.Time, Events: ch.Events})
	}
	if n := len(r.recent) - keepRecent; n > keepRecent {
		r.recent = append([]Change(nil), r.recent[n:]...)
	}
}
