package registry

import (
	"context"
	"slices"
	"time"
)

// DefaultProgress is how often a watch without events shows that it has missed nothing.
const DefaultProgress = 30 * time.Second

// minProgress keeps a watch from spinning.
const minProgress = 100 * time.Millisecond

// A WatchRequest says which changes are wanted.
type WatchRequest struct {
	From     Revision // the first one; 0: from now on
	StoreID  string   // the store that From is of; empty: this one
	Filter   Filter
	Progress time.Duration // 0: DefaultProgress
}

// Watch gives send every change from a revision on, in order, each once, until ctx ends or send fails; either error is
// returned. A change without events is a progress mark: nothing up to its revision is missing. The first is one.
//
// A watcher has a place in the history and no buffer, so that a slow one holds up nobody: it reads what it has not
// seen from memory, or from the store where it has fallen further behind, and gets a *CompactedError when it is too
// late for that.
func (r *Registry) Watch(ctx context.Context, c Caller, w WatchRequest, send func(storeID string, ch Change) error) error {
	if w.StoreID != "" && w.StoreID != r.storeID {
		return &UnsupportedError{"watch", "the store is another one now (" + r.storeID + "); list again and watch from there", "STORE_CHANGED"}
	}
	if w.From < 0 {
		return invalid("start_revision", "%d is negative", w.From)
	}
	if w.Progress <= 0 {
		w.Progress = DefaultProgress
	}
	w.Progress = max(w.Progress, minProgress)
	rev, oldest, changed := r.head()
	next := w.From
	switch {
	case next == 0:
		next = rev + 1
	case next < oldest:
		return &CompactedError{Wanted: next, Oldest: oldest}
	case next > rev+1:
		return invalid("start_revision", "%d is in the future; the last is %d", next, rev)
	}
	if err := send(r.storeID, Change{Revision: next - 1, Time: time.Now().UTC()}); err != nil {
		return err
	}
	r.filterNetns(c, &w.Filter)
	progress := time.NewTicker(w.Progress)
	defer progress.Stop()
	for {
		var err error
		if next, err = r.catchUp(ctx, c, &w.Filter, next, rev, send); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		case <-r.stopped:
			return failed(ErrUnavailable, "portd is stopping")
		case <-progress.C:
			if err := send(r.storeID, Change{Revision: next - 1, Time: time.Now().UTC()}); err != nil {
				return err
			}
		}
		rev, _, changed = r.head()
	}
}

func (r *Registry) head() (rev, oldest Revision, changed <-chan struct{}) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.rev, r.oldest, r.changed
}

// catchUp sends the changes from next to rev, and returns what comes after them.
func (r *Registry) catchUp(ctx context.Context, c Caller, f *Filter, next, rev Revision, send func(string, Change) error) (Revision, error) {
	one := func(ch Change) error {
		next = ch.Revision + 1
		if ch.Events = r.events(c, f, ch.Events); len(ch.Events) == 0 {
			return ctx.Err()
		}
		return send(r.storeID, ch)
	}
	for next <= rev {
		if changes := r.remembered(next); changes != nil {
			for _, ch := range changes {
				if err := one(ch); err != nil {
					return next, err
				}
			}
			continue
		}
		for ch, err := range r.cfg.Store.Events(ctx, next) {
			if err == nil {
				err = one(ch)
			}
			if err != nil {
				return next, err
			}
		}
		next = max(next, rev+1) // changes without events may have left no trace in the store
	}
	return next, nil
}

// remembered are the changes from a revision on that are still in memory; nil where that one is not.
func (r *Registry) remembered(from Revision) []Change {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if len(r.recent) == 0 || from < r.recent[0].Revision {
		return nil
	}
	// What the slice shows is never changed, only added to or replaced.
	return r.recent[from-r.recent[0].Revision:]
}

// events are those that a filter selects and the caller may see: of reservations and services all, of leases its own. It is
// asked of every change for every watcher, most of whom want all of it, and that without a copy.
func (r *Registry) events(c Caller, f *Filter, all []Event) []Event {
	for i := range all {
		if r.shows(c, f, &all[i]) {
			continue
		}
		some := slices.Clone(all[:i])
		for _, ev := range all[i+1:] {
			if r.shows(c, f, &ev) {
				some = append(some, ev)
			}
		}
		return some
	}
	return all
}

func (r *Registry) shows(c Caller, f *Filter, ev *Event) bool {
	switch {
	case ev.Reservation != nil && ev.Type == EventUpdated:
		// It may be the labels or the lease that have changed: who saw the reservation before is told that it is no longer his.
		but := *f
		but.Labels, but.Lease = nil, ""
		return but.Match(ev.Reservation)
	case ev.Reservation != nil:
		return f.Owner == "" && f.Lease == "" && f.anyEndpoint() || f.Match(ev.Reservation)
	case ev.Lease != nil:
		return f.matchLease(ev.Lease) && r.seesLease(c, ev.Lease)
	}
	return (ev.Service != nil || ev.Edition != nil) && f.matchServices(ev.Caller)
}

// matchLease: a lease has no endpoints to match.
func (f *Filter) matchLease(l *Lease) bool {
	return (f.Owner == "" || f.Owner == l.Owner) && (f.Lease == "" || f.Lease == l.ID) && f.anyEndpoint()
}

// matchServices: a change of the service registry has nothing to match but who made it.
func (f *Filter) matchServices(by Principal) bool {
	return (f.Owner == "" || f.Owner == by) && f.Lease == "" && f.anyEndpoint()
}

// anyEndpoint says whether f has nothing to match against endpoints and labels.
func (f *Filter) anyEndpoint() bool {
	return f.Proto == 0 && f.Ports == (PortRange{}) && len(f.Labels) == 0 && len(f.States) == 0 && f.Netns == ""
}
