package registry

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// An Ending says what ends a reservation by itself, as it stands now. The zero Ending is that of one that stays until it is released.
type Ending struct {
	Lease   string    // "ttl 10m0s", "process 812 (make)", "session"
	Expires time.Time // unless it is renewed or resumed; zero where no time is set
}

// String is an Ending in words: "ttl 10m0s, until 2026-11-22 12:11:04 UTC".
func (e Ending) String() string {
	if e.Expires.IsZero() {
		return e.Lease
	}
	return e.Lease + ", until " + clock(e.Expires)
}

// clock is a time for a message, to the second, in the host's zone and with its name: who reads it may be set to another.
func clock(t time.Time) string { return t.Local().Format("2006-01-02 15:04:05 MST") }

// Ending is that of a lease, which everybody may know: for whom a port is in the way, it says for how long. It is zero where there
// is no such lease, or none any more.
func (r *Registry) Ending(lease string) Ending {
	if lease == "" {
		return Ending{}
	}
	r.mu.RLock()
	l := r.leases[lease]
	if l == nil {
		r.mu.RUnlock()
		return Ending{}
	}
	e := Ending{Expires: r.leaseStatus(l).Expires}
	r.mu.RUnlock()
	switch l.Spec.Kind {
	case SessionLease:
		e.Lease = "session"
	case TTLLease:
		e.Lease = "ttl " + l.Spec.TTL.String()
	case ProcessLease:
		e.Lease = fmt.Sprintf("process %d", l.Spec.PID)
		if r.cfg.Processes == nil {
			break
		}
		if name := r.cfg.Processes.Command(l.Spec.PID, l.Start); name != "" {
			e.Lease += " (" + name + ")"
		}
	}
	return e
}

// explained adds to an error that says what is taken what the service registry has the port for, and what will end the
// reservations that it names. No lock is held: a process's name is in a file.
func (r *Registry) explained(err error) error {
	var taken *TakenError
	if !errors.As(err, &taken) || taken.Ends != nil {
		return err
	}
	if proto, known := ianaProtocol(taken.Want.Proto); known && taken.Name == "" && taken.Want.Ports() == 1 {
		taken.Services = slices.Collect(r.Services().Names(taken.Want.First, proto))
	}
	for _, res := range taken.By {
		if e := r.Ending(res.Lease); e != (Ending{}) {
			if taken.Ends == nil {
				taken.Ends = map[string]Ending{}
			}
			taken.Ends[res.Lease] = e
		}
	}
	return err
}

// standing says since when a reservation is in the way, and for how long, as far as that is known.
func (e *TakenError) standing(res *Reservation) string {
	var words []string
	if !res.Created.IsZero() {
		words = append(words, "since "+clock(res.Created))
	}
	if ends := e.Ends[res.Lease]; ends != (Ending{}) {
		words = append(words, "with a lease: "+ends.String())
	}
	if len(words) == 0 {
		return ""
	}
	return " " + strings.Join(words, ", ")
}
