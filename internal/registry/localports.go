package registry

import "context"

// LocalPorts keeps ports from programs that ask the kernel for any port, or connect from one (ip_local_reserved_ports), in portd's
// own network namespace. A held port is safe from them anyhow; one that is only recorded, or lost, is not. Its methods
// may be called at the same time.
type LocalPorts interface {
	// Keep and LetGo count: ports are kept while they were kept more often than let go. Neither waits for the kernel.
	Keep(ports PortRange)
	LetGo(ports PortRange)
	// Settle returns when the kernel knows of every Keep before it, or cannot be told. The error is that ctx has ended.
	Settle(ctx context.Context) error
}

// nobodyKeeps is LocalPorts where there is none.
type nobodyKeeps struct{}

func (nobodyKeeps) Keep(PortRange)               {}
func (nobodyKeeps) LetGo(PortRange)              {}
func (nobodyKeeps) Settle(context.Context) error { return nil }

// keep keeps the ports of endpoints, and letGo takes that back.
func (r *Registry) keep(eps ...Endpoint) {
	for _, ep := range eps {
		if ep.Netns == HostNetns && ep.Proto != Unix {
			r.cfg.LocalPorts.Keep(PortRange{ep.First, ep.Last})
		}
	}
}

func (r *Registry) letGo(eps ...Endpoint) {
	for _, ep := range eps {
		if ep.Netns == HostNetns && ep.Proto != Unix {
			r.cfg.LocalPorts.LetGo(PortRange{ep.First, ep.Last})
		}
	}
}

// keepRecorded keeps endpoints for the program that will bind them, from the moment when they are claimed: they are to be let go, once,
// when the reservation is in the table, which keeps them itself, or has come to nothing. LocalPorts.Settle says when others get
// their ports by their numbers alone.
func (r *Registry) keepRecorded(m Mode, eps []Endpoint) {
	if m == Recorded {
		r.keep(eps...)
	}
}

func (r *Reservation) endpoints() []Endpoint {
	eps := make([]Endpoint, len(r.Assigned))
	for i, a := range r.Assigned {
		eps[i] = a.Endpoint
	}
	return eps
}
