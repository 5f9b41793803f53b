package registry

import (
	"cmp"
	"context"
	"slices"
)

// A UsesQuery asks for every port that is reserved or bound here.
type UsesQuery struct {
	Netns  string     // empty: the caller's own
	Protos []Protocol // none: all of them
	Ports  PortRange  // the zero PortRange: 1 to 65535
	// Connections tells also of the local ports of connections, and of closed ones that the kernel still remembers.
	Connections bool
}

// A UseList is every use of some ports, in order of the ports.
type UseList struct {
	Uses []Use
	// Sockets of connections, and of closed ones, that are not portd's, whether or not they are among the uses.
	Connections, Leftovers int
	// Unseen are protocols that the kernel has and whose sockets it does not show to portd, or not all.
	Unseen []Protocol
}

// ListUses is all uses of many ports, after one look at the kernel's sockets for each protocol. A connection is told of unasked
// where nothing else stands in the place of a reservation that is lost or only recorded.
func (r *Registry) ListUses(ctx context.Context, c Caller, q UsesQuery) (*UseList, error) {
	leave, err := r.visit(c, &q.Netns)
	if err != nil {
		return nil, err
	}
	defer leave()
	if q.Ports == (PortRange{}) {
		q.Ports = PortRange{1, 65535}
	}
	eps := everyAddress(q.Netns, q.Protos, q.Ports)
	out := &UseList{}
	for _, ep := range eps {
		if !ep.Proto.Streams() {
			continue // all that there are are seen
		}
		seen, err := r.cfg.Binder.PortsInUse(ctx, ep.Netns, ep.Proto, PortRange{q.Ports.First, q.Ports.First}, func(uint16) {})
		if err != nil {
			return nil, err
		}
		if !seen {
			out.Unseen = append(out.Unseen, ep.Proto)
		}
	}
	holders, err := r.Holders(ctx, c, eps...)
	if err != nil {
		return nil, err
	}
	out.Uses = r.join(eps, holders, func(with *Use, h Holder) bool {
		switch h.State {
		case SocketConnected:
			out.Connections++
		case SocketLeftover:
			out.Leftovers++
		default:
			return true
		}
		return q.Connections || with != nil && len(with.Holders) == 0
	})
	// By protocol they are in order already, and so are the sockets of a port by what they do with it.
	slices.SortStableFunc(out.Uses, func(a, b Use) int {
		return cmp.Or(cmp.Compare(a.first(), b.first()), cmp.Compare(a.proto(), b.proto()))
	})
	return out, nil
}

func (u Use) proto() Protocol {
	if u.Reservation != nil {
		return u.Reservation.Assigned[u.Index].Endpoint.Proto
	}
	return u.Holders[0].Endpoint.Proto
}
