package registry

import (
	"cmp"
	"context"
	"errors"
	"time"
)

// What is too old to be kept is forgotten by whatever is committed next, so that forgetting costs no commit of its own. How old
// that is by number the committing goroutine knows itself. How old it is by time is in the store, which others can read.

const (
	defaultRevisions = 100_000
	mostSlack        = 1_000 // revisions that are forgotten at a time, at most
	ageEvery         = time.Minute
)

// oldestKept is the first revision whose events are kept once last is committed. Only the committing goroutine calls it.
func (r *Registry) oldestKept(last Revision) Revision {
	keep := Revision(cmp.Or(r.Settings().History.Revisions, defaultRevisions))
	oldest := r.oldest
	// Some at a time: to find them in the store is to look for its first pages.
	if last-oldest >= keep+min(keep/100, mostSlack) {
		oldest = last - keep + 1
	}
	return max(oldest, Revision(r.outdated.Load()))
}

// keepAge finds out again and again which changes have become too old by time, until ctx ends.
func (r *Registry) keepAge(ctx context.Context) error {
	tick := time.NewTicker(ageEvery)
	defer tick.Stop()
	for {
		if age := r.Settings().History.Age; age > 0 {
			first, err := r.firstSince(ctx, time.Now().Add(-age))
			switch {
			case err == nil:
				r.outdated.Store(int64(first))
			case ctx.Err() == nil:
				r.cfg.Log.Warn("cannot see how old the history is", "err", err)
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

// firstSince is the first of the kept revisions that is not before a time, or the one after the last. It reads a few changes and
// no more, for they are in the order of their times, unless somebody sets the clock back: then it finds one such place.
func (r *Registry) firstSince(ctx context.Context, since time.Time) (Revision, error) {
	last, first, _ := r.head()
	for first <= last {
		mid := first + (last-first)/2
		at, err := r.timeOf(ctx, mid)
		var compacted *CompactedError
		switch {
		case errors.As(err, &compacted): // meanwhile
			first = compacted.Oldest
		case err != nil:
			return 0, err
		case at.Before(since):
			first = mid + 1
		default:
			last = mid - 1
		}
	}
	return first, nil
}

// timeOf is when a revision that is kept was made.
func (r *Registry) timeOf(ctx context.Context, rev Revision) (time.Time, error) {
	if changes := r.remembered(rev); len(changes) > 0 {
		return changes[0].Time, nil
	}
	for ch, err := range r.cfg.Store.Events(ctx, rev) {
		return ch.Time, err
	}
	return time.Time{}, &CompactedError{Wanted: rev, Oldest: rev + 1} // only a store that has lost it
}
