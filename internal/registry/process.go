package registry

import (
	"errors"
	"fmt"
	"time"
)

// Processes knows when processes of this host end. What it calls, it calls without holding a lock.
type Processes interface {
	// Find is the process that a caller means by a pid: when it started, in clock ticks of boot time, and whose it is.
	// ErrNotFound where there is none, ErrUnsupported where the caller's pids are not this host's.
	Find(c Caller, pid int32) (start int64, uid uint32, err error)
	// Watch calls gone once when the process has ended that has this pid and started then, until stop is called. ErrNotFound
	// where it has ended already.
	Watch(pid int32, start int64, gone func()) (stop func(), err error)
	// Command is the name that the process goes by that has this pid and started then (comm), with '?' for what does not print. It
	// is empty where that cannot be told.
	Command(pid int32, start int64) string
}

// findProcess is when a process started that c may have a lease by.
func (r *Registry) findProcess(c Caller, pid int32) (start int64, err error) {
	if r.cfg.Processes == nil {
		return 0, &UnsupportedError{"process lease", "this portd does not watch processes", "LEASE_KIND"}
	}
	start, uid, err := r.cfg.Processes.Find(c, pid)
	if err != nil {
		return 0, err
	}
	return start, r.cfg.Policy.LeaseProcess(c, pid, uid)
}

// watchProcess begins to watch the process of a lease that has one. It is done before the lease is recorded, for then it
// can still be refused.
func (r *Registry) watchProcess(l *lease) error {
	if l.Spec.Kind != ProcessLease {
		return nil
	}
	if r.cfg.Processes == nil {
		return &UnsupportedError{"process lease", "this portd does not watch processes", "LEASE_KIND"}
	}
	stop, err := r.cfg.Processes.Watch(l.Spec.PID, l.Start, func() { r.processEnded(l) })
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	l.unwatch = stop
	return nil
}

// stopWatching undoes watchProcess.
func (r *Registry) stopWatching(l *lease) {
	r.mu.Lock()
	stop := l.unwatch
	l.unwatch = nil
	r.mu.Unlock()
	if stop != nil {
		stop()
	}
}

// processEnded ends a lease, or, where that is not recorded yet, has it end as soon as it is.
func (r *Registry) processEnded(l *lease) {
	r.mu.Lock()
	defer r.mu.Unlock()
	l.over = fmt.Sprintf("its process, %d, has ended", l.Spec.PID)
	if r.leases[l.ID] == l && !l.ending {
		r.schedule(l, 0)
	}
}

// scheduleProcess has a lease end if its process has, and looked at again if that could not be watched. mu is held.
func (r *Registry) scheduleProcess(l *lease) {
	switch {
	case l.over != "":
		r.schedule(l, 0)
	case l.unwatch == nil:
		r.schedule(l, time.Second)
	}
}

// processOver says why a lease is over whose process is not watched any more, or not yet: after a start, or where there
// was no descriptor left for it. It is empty where the process runs, and where that cannot be told.
func (r *Registry) processOver(l *lease) string {
	r.mu.RLock()
	why := l.over
	r.mu.RUnlock()
	if why != "" {
		return why
	}
	switch err := r.watchProcess(l); {
	case errors.Is(err, ErrNotFound):
		return fmt.Sprintf("its process, %d, has ended", l.Spec.PID)
	case err != nil:
		r.cfg.Log.Error("cannot see whether the process of a lease runs", "lease", l.ID, "pid", l.Spec.PID, "err", err)
	}
	return ""
}
