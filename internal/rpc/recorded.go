package rpc

import (
	"context"
	"slices"

	"github.com/portd/portd/internal/registry"
	pb "github.com/portd/portd/proto/portd/v1"
)

// boundBy says in out, which is r as it is shown, whether programs have bound what is recorded for them. Of a program that connects from
// its port the connections are told, where nothing else is bound there. Without a look at the sockets nothing is said.
func (s *reservations) boundBy(ctx context.Context, r *registry.Reservation, out *pb.Reservation) *pb.Reservation {
	if r.Spec.Mode != registry.Recorded {
		return out
	}
	eps := make([]registry.Endpoint, len(r.Assigned))
	for i, a := range r.Assigned {
		eps[i] = a.Endpoint
	}
	holders, err := s.reg.HoldersThere(ctx, callerOf(ctx), eps...)
	if err != nil {
		s.log.Warn("cannot see who has the recorded ports", "err", err)
		return out
	}
	who := newPeople()
	for i, ep := range eps {
		there := slices.DeleteFunc(slices.Clone(holders), func(h registry.Holder) bool {
			return h.State == registry.SocketLeftover || !ep.Overlaps(h.Endpoint)
		})
		bound := slices.IndexFunc(there, func(h registry.Holder) bool { return h.State == registry.SocketConnected })
		if bound > 0 { // they come last
			there = there[:bound]
		}
		out.Assigned[i].BoundBy = who.holders(there)
	}
	return out
}
