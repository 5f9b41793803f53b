package registry

import (
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
)

// lookForNetns is how often portd looks whether the network namespaces are there in which it has reservations. Its own sockets
// keep one alive that everybody else has left, so the kernel does not tell.
const lookForNetns = time.Second

// keepNetns ends the reservations in network namespaces that are gone, and finds those again that were not there after a
// boot, until ctx ends.
func (r *Registry) keepNetns(ctx context.Context) error {
	if r.cfg.Netns == nil {
		return nil
	}
	tick := time.NewTicker(lookForNetns)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
		here, missing := r.inhabited()
		if len(here) > 0 {
			for _, name := range r.cfg.Netns.Gone(here) {
				r.endNetns(ctx, name)
			}
		}
		for _, rec := range missing {
			r.findNetns(ctx, rec)
		}
	}
}

// inhabited are the network namespaces with reservations: those that were there when last looked for, and those that were not.
func (r *Registry) inhabited() (here []string, missing []*Namespace) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	for name, u := range r.netns {
		switch {
		case len(u.entries) == 0:
		case u.missing:
			missing = append(missing, u.rec)
		default:
			here = append(here, name)
		}
	}
	return here, missing
}

func netnsGone(name string) string { return "network namespace " + name + " is gone" }

// endNetns ends all reservations that have an endpoint in a network namespace. What could not be ended is tried again.
func (r *Registry) endNetns(ctx context.Context, name string) {
	r.mu.RLock()
	var entries []*entry
	if u := r.netns[name]; u != nil { // else all have ended since it was looked for
		entries = slices.Collect(maps.Keys(u.entries))
	}
	r.mu.RUnlock()
	if len(entries) == 0 {
		return
	}
	r.cfg.Log.Info("a network namespace is gone; its reservations end", "netns", name, "reservations", len(entries))
	var ends errgroup.Group
	ends.SetLimit(maxBatch) // side by side, so that they share transactions
	for _, e := range entries {
		ends.Go(func() error { return r.endIn(ctx, e, netnsGone(name)) })
	}
	if err := ends.Wait(); err != nil && ctx.Err() == nil {
		r.cfg.Log.Error("cannot end the reservations of a network namespace", "netns", name, "err", err)
	}
}

// endIn ends a reservation, and its lease where that is its own.
func (r *Registry) endIn(ctx context.Context, e *entry, reason string) error {
	leave, err := r.gate.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	if _, err := r.acquire(ctx, func() (*entry, error) { return e, nil }); err != nil {
		return err
	}
	defer r.free(e)
	if e.res == nil { // it has ended meanwhile
		return nil
	}
	cm := &commit{by: Self}
	l := r.lastOf(e)
	if l != nil {
		cm.endLease(r, l, "all that it carried has ended: "+reason)
	}
	err = r.end(cm, []*entry{e}, EventExpired, reason)
	switch {
	case l == nil:
	case err != nil:
		r.revive(l)
	default:
		r.stopWatching(l)
	}
	return err
}

// findNetns looks for a network namespace that was not there after a boot. Its ports are taken again as others that were lost.
func (r *Registry) findNetns(ctx context.Context, rec *Namespace) {
	leave, err := r.gate.enter(ctx)
	if err != nil {
		return
	}
	defer leave()
	now, owner, err := r.cfg.Netns.Restore(*rec)
	if err != nil {
		if !errors.Is(err, ErrNotFound) {
			r.cfg.Log.Warn("cannot enter a network namespace", "netns", rec.Name, "err", err)
		}
		return
	}
	r.mu.Lock()
	u := r.netnsLocked(rec.Name)
	if len(u.entries) == 0 || u.held {
		r.cfg.Netns.Drop(rec.Name)
	} else {
		u.held = true
	}
	u.rec, u.owner, u.missing = &now, owner, false
	r.mu.Unlock()
	r.cfg.Log.Info("a network namespace is there again", "netns", rec.Name)
	if err := r.commit(&commit{by: Self, put: []Record{&now}}); err != nil {
		r.cfg.Log.Error("cannot record which network namespace it is", "netns", rec.Name, "err", err)
	}
}

// restoreNetns finds the network namespaces again that the store knows, at the start. gone says why a reservation has ended for
// want of one, and is empty where it has not. A named one of an earlier boot is waited for, for it is made anew.
func (r *Registry) restoreNetns(st *State, restored *commit) (gone func(*Reservation) string) {
	over := map[string]bool{}
	restore := func(rec *Namespace) {
		u := &netnsUse{rec: rec, entries: map[*entry]bool{}, stored: true, missing: true}
		r.netns[rec.Name] = u
		if r.cfg.Netns == nil {
			return
		}
		now, owner, err := r.cfg.Netns.Restore(*rec)
		switch {
		case err == nil:
			u.owner, u.held, u.missing = owner, true, false
			if now != *rec {
				u.rec = &now
				restored.put = append(restored.put, u.rec)
			}
		case errors.Is(err, ErrNotFound):
			over[rec.Name] = rec.BootID == r.cfg.BootID || anonymous(rec.Name)
		default:
			r.cfg.Log.Warn("cannot enter a network namespace; its ports are lost until portd can", "netns", rec.Name, "err", err)
		}
	}
	for _, rec := range st.Namespaces {
		restore(rec)
	}
	return func(res *Reservation) string {
		for _, name := range res.others() {
			if r.netns[name] == nil {
				restore(&Namespace{Name: name})
			}
			if over[name] {
				return netnsGone(name)
			}
		}
		return ""
	}
}

// dropUnused lets go of network namespaces that no reservation is left in, after a start.
func (r *Registry) dropUnused(restored *commit) {
	for name, u := range r.netns {
		if len(u.entries) > 0 {
			continue
		}
		if u.held {
			r.cfg.Netns.Drop(name)
		}
		restored.del = append(restored.del, u.rec.Key())
		delete(r.netns, name)
	}
}
