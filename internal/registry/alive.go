package registry

import (
	"context"
	"fmt"
	"time"
)

// How often the store is told that portd is alive: with whatever is committed anyway, and, while leases live by time, on
// its own.
const (
	seenEvery = time.Minute
	seenSlack = 2 * seenEvery
)

// overAtStart says why a lease ended while portd was down; empty where it lives on.
//
// While the same boot of the host lasts, a lease that is in the store has its whole time again: its owner could not
// renew it. Across a reboot boot time says nothing and the wall clock decides: when portd was last seen alive the lease
// lived, so it was over a time to live after that at the latest.
func (r *Registry) overAtStart(before *Boot, l *lease) string {
	rebooted := before != nil && before.ID != r.cfg.BootID
	switch {
	case l.Spec.Kind == ProcessLease && rebooted: // boot ids differ, and so all processes
		return fmt.Sprintf("its process, %d, ended with the host's last boot", l.Spec.PID)
	case l.Spec.Kind == ProcessLease:
		return r.processOver(l)
	case !rebooted:
		return ""
	}
	if l.Spec.Kind == TTLLease && !before.Seen.IsZero() && time.Since(before.Seen) > l.Spec.TTL+seenSlack {
		return "it was not renewed within " + l.Spec.TTL.String() + ", in which the host was down"
	}
	return ""
}

// noteAlive tells the store that portd is alive, until ctx ends, while there are leases for which that matters.
func (r *Registry) noteAlive(ctx context.Context) error {
	tick := time.NewTicker(seenEvery / 2)
	defer tick.Stop()
	for {
		if r.mustNoteAlive() {
			r.noteAliveNow(ctx)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

func (r *Registry) noteAliveNow(ctx context.Context) {
	leave, err := r.gate.enter(ctx)
	if err != nil {
		return
	}
	defer leave()
	_ = r.commit(&commit{by: Self}) // what could not be written has been logged, and is tried again
}

func (r *Registry) mustNoteAlive() bool {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if !r.boot.due(time.Now()) {
		return false
	}
	for _, l := range r.leases {
		if l.Spec.Kind == TTLLease {
			return true
		}
	}
	return false
}

// due says whether the store is to be told again that portd is alive. What it was told last may lie ahead: the clock was set back.
func (b *Boot) due(now time.Time) bool { return b != nil && now.Sub(b.Seen).Abs() >= seenEvery }

// noteSeen adds to a commit, once in a while, that portd is alive. Only the committing goroutine calls it.
func (r *Registry) noteSeen(c *commit, now time.Time) {
	if !r.boot.due(now) {
		return
	}
	boot := &Boot{ID: r.boot.ID, Seen: now}
	c.put = append(c.put, boot)
	c.apply = append(c.apply, func() { r.boot = boot })
}
