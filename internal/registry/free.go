package registry

import (
	"context"
	"fmt"

	"github.com/portd/portd/internal/ianadb"
)

// A FreeQuery asks for ports that nobody has and that nobody is to have.
type FreeQuery struct {
	Netns  string // empty: the caller's own
	Protos []Protocol
	Within PortRange // the zero PortRange: 1 to 65535
	Count  int       // only runs of at least as many; 0 means 1
}

// FreePorts are the ports that are free for every protocol asked for, and what the others are. One that has a socket is
// in use, be it the local port of a connection.
type FreePorts struct {
	Ranges []PortRange // ascending, each as long as it can be
	// Of the ports asked for, each counted once: those that the service registry has something else in mind for, the others
	// that are reserved here, or in quarantine for somebody else, the rest that have a socket, and those that are left.
	Assigned, Reserved, InUse, Free int
	Ephemeral                       PortRange
	Services                        *Services // by which they are unassigned
	// Unseen are protocols whose sockets this kernel does not show to portd, or not all; what is free of them may be in use.
	Unseen []Protocol
}

// FreePorts looks at the service registry, at the table and at the kernel's sockets. The answer is of that moment, and
// holds nothing: to have ports, reserve them.
func (r *Registry) FreePorts(ctx context.Context, c Caller, q FreeQuery) (*FreePorts, error) {
	leave, err := r.visit(c, &q.Netns)
	if err != nil {
		return nil, err
	}
	defer leave()
	if err := q.check(); err != nil {
		return nil, err
	}
	out := &FreePorts{Ephemeral: r.cfg.Binder.Ephemeral(q.Netns), Services: r.Services()}
	// A port is what was found first, in the order of these constants.
	const (
		assigned = iota
		free
		reserved
		inUse
	)
	var state [1 << 16]uint8
	var protos []ianadb.Protocol
	for _, p := range q.Protos {
		known, ok := ianaProtocol(p)
		if !ok {
			return nil, fmt.Errorf("protocol %v is not in the service registry", p)
		}
		protos = append(protos, known)
	}
	for _, run := range out.Services.Free(ianadb.Range(q.Within), protos...) {
		for port := int(run.First); port <= int(run.Last); port++ {
			state[port] = free
		}
	}
	find := func(port uint16, what uint8) {
		if state[port] == free {
			state[port] = what
		}
	}
	r.endQuarantines()
	r.mu.RLock()
	for _, p := range q.Protos {
		kept := r.quarantine.fromOthers(space{q.Netns, p}, c.Principal())
		for port := range kept.all {
			find(port, reserved)
		}
		if in := r.claims[space{q.Netns, p}]; in != nil {
			for port := range in.any.all {
				find(port, reserved)
			}
		}
	}
	r.mu.RUnlock()
	for _, p := range q.Protos {
		seen, err := r.cfg.Binder.PortsInUse(ctx, q.Netns, p, q.Within, func(port uint16) { find(port, inUse) })
		if err != nil {
			return nil, err
		}
		if !seen {
			out.Unseen = append(out.Unseen, p)
		}
	}
	var count [inUse + 1]int
	for port := int(q.Within.First); port <= int(q.Within.Last); port++ {
		count[state[port]]++
		if state[port] != free {
			continue
		}
		if n := len(out.Ranges); n > 0 && int(out.Ranges[n-1].Last)+1 == port {
			out.Ranges[n-1].Last = uint16(port)
		} else {
			out.Ranges = append(out.Ranges, PortRange{uint16(port), uint16(port)})
		}
	}
	out.Assigned, out.Free, out.Reserved, out.InUse = count[assigned], count[free], count[reserved], count[inUse]
	out.Ranges = atLeast(out.Ranges, q.Count)
	return out, nil
}

// atLeast keeps the runs of count ports and more.
func atLeast(runs []PortRange, count int) (long []PortRange) {
	for _, run := range runs {
		if int(run.Last)-int(run.First)+1 >= count {
			long = append(long, run)
		}
	}
	return long
}

func (q *FreeQuery) check() error {
	if len(q.Protos) == 0 {
		return invalid("protocols", "is empty; at least one is wanted")
	}
	for _, p := range q.Protos {
		if err := (Endpoint{Proto: p, Addr: AnyAddr, First: 1, Last: 1}).validate(); err != nil {
			return err
		}
	}
	if q.Within == (PortRange{}) {
		q.Within = PortRange{1, 65535}
	}
	switch {
	case q.Within.First == 0:
		return invalid("within", "0 is not a port; allowed are 1 to 65535")
	case q.Within.Last < q.Within.First:
		return invalid("within", "%d-%d runs backwards", q.Within.First, q.Within.Last)
	case q.Count < 0 || q.Count > int(q.Within.Last)-int(q.Within.First)+1:
		return invalid("count", "%d contiguous ports do not fit into %d-%d", q.Count, q.Within.First, q.Within.Last)
	}
	return nil
}
