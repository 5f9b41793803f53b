package rpc

import (
	"context"

	"github.com/portd/portd/internal/registry"
	pb "github.com/portd/portd/proto/portd/v1"
)

// Bounds of one part of ListPortUses, far below the 4 MiB that a gRPC client takes unless told otherwise.
const (
	maxPartUses  = 500
	maxPartBytes = 1 << 20
)

func (s *ports) ListPortUses(req *pb.ListPortUsesRequest, to pb.PortService_ListPortUsesServer) error {
	q, err := toUsesQuery(req)
	if err != nil {
		return err
	}
	ctx := to.Context()
	me := callerOf(ctx)
	list, err := s.reg.ListUses(ctx, me, q)
	if err != nil {
		return err
	}
	redirected, err := s.redirected(ctx, me, q)
	if err != nil {
		return err
	}
	who, part, size := newPeople(), &pb.ListPortUsesResponse{}, 0
	for _, u := range list.Uses {
		use, n := s.use(who, u, me.Principal()), weight(u)
		if len(part.Uses) == maxPartUses || size > 0 && size+n > maxPartBytes {
			if err := to.Send(part); err != nil {
				return err
			}
			part, size = &pb.ListPortUsesResponse{}, 0
		}
		part.Uses, size = append(part.Uses, use), size+n
	}
	part.Redirects = redirected.messages()
	part.Hidden = append(hidden(list.Uses), redirected.hidden...)
	for _, p := range list.Unseen {
		part.Hidden = append(part.Hidden, unseen(p))
	}
	part.Connections, part.Leftovers = uint32(list.Connections), uint32(list.Leftovers)
	return to.Send(part)
}

// redirected are the NAT rules that a list tells of.
func (s *ports) redirected(ctx context.Context, me registry.Caller, q registry.UsesQuery) (d redirections, err error) {
	if q.Ports == (registry.PortRange{}) {
		q.Ports = registry.PortRange{First: 1, Last: 65535}
	}
	protos := q.Protos
	if len(protos) == 0 {
		protos = []registry.Protocol{0} // every one
	}
	for _, p := range protos {
		if err := d.add(ctx, s.reg, me, q.Netns, run{p, q.Ports}); err != nil {
			return d, err
		}
	}
	return d, nil
}

// weight is about how many bytes a use takes. To know it exactly costs as much as to send it.
func weight(u registry.Use) int {
	n := 500
	for _, h := range u.Holders {
		n += 300 + len(h.Hidden)
		for _, p := range h.Processes {
			n += 100 + len(p.Cgroup) + len(p.Container) + len(p.Unit)
		}
	}
	return n
}

// unseen says which sockets of a protocol the kernel does not show.
func unseen(p registry.Protocol) string {
	if p == registry.TCP {
		return "this kernel does not show TCP sockets that are bound and do not listen"
	}
	return "portd does not see the sockets of " + p.String()
}

// use is a use with the number of its workers, and with what ends it.
func (s *ports) use(who people, u registry.Use, me registry.Principal) *pb.PortUse {
	use := who.use(u, me)
	if r := u.Reservation; r != nil {
		key := registry.SocketKey{Reservation: r.ID, Index: u.Index}
		use.GetReservation().Workers = uint32(s.workers.Totals(key).Workers)
		if r.Lease != "" {
			end, known := who.endings[r.Lease]
			if !known {
				end = s.reg.Ending(r.Lease)
				who.endings[r.Lease] = end
			}
			ends(use, end)
		}
	}
	return use
}

func toUsesQuery(req *pb.ListPortUsesRequest) (q registry.UsesQuery, err error) {
	q = registry.UsesQuery{Netns: req.GetNetns(), Connections: req.GetConnections()}
	if q.Protos, err = toProtocols(req.GetProtocols()); err != nil {
		return q, err
	}
	q.Ports, err = toPortRange("ports", req.GetPorts())
	return q, err
}

// toProtocols takes protocols none of which may be unspecified.
func toProtocols(wanted []pb.Protocol) (protos []registry.Protocol, err error) {
	for i, p := range wanted {
		proto, err := toProtocol(at("protocols", i), p)
		switch {
		case err != nil:
			return nil, err
		case proto == 0:
			return nil, invalid(at("protocols", i), "is unspecified; %s", protocolsAllowed)
		}
		protos = append(protos, proto)
	}
	return protos, nil
}
