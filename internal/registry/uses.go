package registry

import (
	"cmp"
	"context"
	"slices"
)

// A Use is one use of a port on this host: a reservation's endpoint, or a socket that portd does not own.
type Use struct {
	Reservation *Reservation // nil: Holders has the one foreign socket
	Index       int
	// Holders are the foreign sockets; with a reservation, those on an endpoint of it that is lost or only recorded.
	Holders []Holder
}

// Uses says who has a port, or any of several, now: of one protocol or (0) of any that the kernel shows. It looks at the
// kernel's sockets once for each protocol, however many ports are asked for. Of 0, which is no port, it says nothing.
func (r *Registry) Uses(ctx context.Context, c Caller, netns string, proto Protocol, ports PortRange) ([]Use, error) {
	leave, err := r.visit(c, &netns)
	if err != nil {
		return nil, err
	}
	defer leave()
	ports.First = max(ports.First, 1)
	if ports.Last < ports.First {
		return nil, nil
	}
	var protos []Protocol
	if proto != 0 {
		protos = []Protocol{proto}
	}
	eps := everyAddress(netns, protos, ports)
	holders, err := r.Holders(ctx, c, eps...)
	if err != nil {
		return nil, err
	}
	uses := r.join(eps, holders, func(*Use, Holder) bool { return true })
	if ports.First != ports.Last {
		slices.SortStableFunc(uses, func(a, b Use) int { return cmp.Compare(a.first(), b.first()) })
	}
	return uses, nil
}

// everyAddress is ports on all addresses, of some protocols, or (none) of every one.
func everyAddress(netns string, protos []Protocol, ports PortRange) (eps []Endpoint) {
	for _, k := range protocols {
		if len(protos) == 0 || slices.Contains(protos, k.p) {
			eps = append(eps, Endpoint{Netns: netns, Proto: k.p, Addr: AnyAddr, First: ports.First, Last: ports.Last})
		}
	}
	return eps
}

// join is the reservations on the endpoints, and the sockets: those that stand where a reservation has none of its own go with it,
// the others by themselves. tell says of each, and the reservation's use that it goes with or nil, whether it is to be told of.
func (r *Registry) join(eps []Endpoint, holders []Holder, tell func(with *Use, h Holder) bool) (uses []Use) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	for _, ep := range eps {
		entries := r.order
		if ep.Ports() == 1 {
			entries = r.claims.overlapping(ep)
		}
		for _, e := range entries {
			if e.res == nil {
				continue
			}
			for i, a := range e.res.Assigned {
				if a.Endpoint.Overlaps(ep) {
					uses = append(uses, Use{Reservation: e.res, Index: i})
				}
			}
		}
	}
	unheld := map[SocketKey]*Use{} // of reservations that portd itself has no socket for, or not for all of their ports
	for i, u := range uses {
		if res := u.Reservation; res.Spec.Mode == Recorded || len(res.Assigned[u.Index].Lost) > 0 {
			unheld[SocketKey{res.ID, u.Index}] = &uses[i]
		}
	}
	others := make([]Use, 0, len(holders))
	for i, h := range holders {
		switch u := r.standsInLocked(unheld, h); {
		case !tell(u, h):
		case u != nil:
			u.Holders = append(u.Holders, h)
		default:
			others = append(others, Use{Holders: holders[i : i+1 : i+1]})
		}
	}
	return append(uses, others...)
}

// first is the first port of a use.
func (u Use) first() uint16 {
	if u.Reservation != nil {
		return u.Reservation.Assigned[u.Index].Endpoint.First
	}
	return u.Holders[0].Endpoint.First
}

// standsInLocked is the first of some uses that h overlaps.
func (r *Registry) standsInLocked(uses map[SocketKey]*Use, h Holder) *Use {
	if len(uses) == 0 {
		return nil
	}
	for _, e := range r.claims.overlapping(h.Endpoint) {
		if e.res == nil {
			continue
		}
		for i, a := range e.res.Assigned {
			if u := uses[SocketKey{e.res.ID, i}]; u != nil && a.Endpoint.Overlaps(h.Endpoint) {
				return u
			}
		}
	}
	return nil
}

// Holders are the sockets that portd does not own on any of the endpoints, with their processes as far as the caller
// could see them in /proc.
func (r *Registry) Holders(ctx context.Context, c Caller, eps ...Endpoint) ([]Holder, error) {
	holders, err := r.cfg.Binder.Holders(ctx, eps...)
	return r.showing(c, holders), err
}

// HoldersThere are the Holders in those network namespaces that the caller may enter. Whoever looks at a reservation, which everybody
// may, learns nothing else of the namespace that it is in.
func (r *Registry) HoldersThere(ctx context.Context, c Caller, eps ...Endpoint) ([]Holder, error) {
	r.mu.RLock()
	eps = slices.DeleteFunc(slices.Clone(eps), func(ep Endpoint) bool {
		owner := uint32(0)
		if u := r.netns[ep.Netns]; u != nil {
			owner = u.owner
		}
		return r.cfg.Policy.Enter(c, ep.Netns, owner) != nil
	})
	r.mu.RUnlock()
	if len(eps) == 0 {
		return nil, nil
	}
	return r.Holders(ctx, c, eps...)
}

// showing hides the processes that the caller may not see, and says who may.
func (r *Registry) showing(c Caller, holders []Holder) []Holder {
	for i := range holders {
		h := &holders[i]
		var seen, unseen []Process
		for _, p := range h.Processes {
			if r.cfg.Policy.SeeProcess(c, p) {
				seen = append(seen, p)
			} else {
				unseen = append(unseen, p)
			}
		}
		if len(unseen) > 0 {
			h.Hidden = hiddenFrom(unseen)
		}
		h.Processes = seen
	}
	return holders
}

// hiddenFrom says who may see the processes that somebody may not.
func hiddenFrom(processes []Process) string {
	if slices.ContainsFunc(processes, func(p Process) bool { return p.Viewer != 0 }) {
		return "the process is another user's: that user and root (CAP_SYS_PTRACE) may see it"
	}
	return "the process is root's, or guards what it has open: root (CAP_SYS_PTRACE) may see it"
}
