package rpc

import (
	"context"
	"fmt"
	"slices"

	"github.com/portd/portd/internal/registry"
	"github.com/portd/portd/internal/services"
	pb "github.com/portd/portd/proto/portd/v1"
)

// maxWhois is how many ports of a name Whois looks at: each is a look at the kernel's sockets.
const maxWhois = 64

type ports struct {
	pb.UnimplementedPortServiceServer
	reg     *registry.Registry
	workers Workers
}

func (s *ports) Whois(ctx context.Context, req *pb.WhoisRequest) (*pb.WhoisResponse, error) {
	found, err := services.Lookup(s.reg.Services(), toLookup(req))
	if err != nil {
		return nil, err
	}
	me, out := callerOf(ctx), &pb.WhoisResponse{Lookup: found}
	wanted := wantedBy(req, found)
	if len(wanted) > maxWhois {
		out.Hidden = append(out.Hidden, fmt.Sprintf("only the first %d of %d ports were looked at: ask for one", maxWhois, len(wanted)))
		wanted = wanted[:maxWhois]
	}
	var seen []registry.SocketKey
	for _, w := range wanted {
		uses, err := s.reg.Uses(ctx, me, req.GetNetns(), w.proto, registry.PortRange{First: w.port, Last: w.port})
		if err != nil {
			return nil, err
		}
		// A range of a reservation is one use of all its ports.
		uses = slices.DeleteFunc(uses, func(u registry.Use) bool {
			return u.Reservation != nil && slices.Contains(seen, registry.SocketKey{Reservation: u.Reservation.ID, Index: u.Index})
		})
		for _, u := range uses {
			use := fromUse(u, me.Principal())
			if r := u.Reservation; r != nil {
				key := registry.SocketKey{Reservation: r.ID, Index: u.Index}
				seen = append(seen, key)
				use.GetReservation().Workers = uint32(s.workers.Totals(key).Workers)
			}
			out.Uses = append(out.Uses, use)
		}
		for _, h := range hidden(uses) {
			if !slices.Contains(out.Hidden, h) {
				out.Hidden = append(out.Hidden, h)
			}
		}
	}
	return out, nil
}

// toLookup is the registry's part of the question.
func toLookup(req *pb.WhoisRequest) *pb.LookupServicesRequest {
	out := &pb.LookupServicesRequest{Protocol: req.GetProtocol()}
	switch q := req.GetQuery().(type) {
	case *pb.WhoisRequest_Port:
		out.Query = &pb.LookupServicesRequest_Port{Port: q.Port}
	case *pb.WhoisRequest_Ports:
		out.Query = &pb.LookupServicesRequest_Ports{Ports: q.Ports}
	case *pb.WhoisRequest_Name:
		out.Query = &pb.LookupServicesRequest_Name{Name: q.Name}
	case *pb.WhoisRequest_ServiceCode:
		out.Query = &pb.LookupServicesRequest_ServiceCode{ServiceCode: q.ServiceCode}
	}
	return out
}

// A place is a port of one protocol, or (0) of every one.
type place struct {
	proto registry.Protocol
	port  uint16
}

// wantedBy are the ports that a question is about, one at a time, each once: those it names, or else those of the entries found.
func wantedBy(req *pb.WhoisRequest, found *pb.ServiceLookup) (wanted []place) {
	add := func(p pb.Protocol, ports *pb.PortRange) {
		for port := ports.GetFirst(); port <= max(ports.GetFirst(), ports.GetLast()); port++ {
			if w := (place{protocols[p], uint16(port)}); !slices.Contains(wanted, w) {
				wanted = append(wanted, w)
			}
		}
	}
	asked := req.GetProtocol()
	switch q := req.GetQuery().(type) {
	case *pb.WhoisRequest_Port:
		add(asked, &pb.PortRange{First: q.Port})
	case *pb.WhoisRequest_Ports:
		add(asked, q.Ports)
	default:
		for _, e := range found.GetEntries() {
			if e.GetPorts() != nil {
				add(or(asked, e.GetProtocol()), e.GetPorts())
			}
		}
	}
	return wanted
}
