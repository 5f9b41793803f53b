package rpc

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/portd/portd/internal/registry"
	"github.com/portd/portd/internal/services"
	"github.com/portd/portd/internal/shortage"
	pb "github.com/portd/portd/proto/portd/v1"
)

// Bounds of one answer of Whois: each run of ports is a look at the kernel's sockets, and a client takes so many bytes.
const (
	maxRuns = 64
	maxUses = 1000
)

type ports struct {
	pb.UnimplementedPortServiceServer
	reg     *registry.Registry
	workers Workers
	policy  func() PolicyStatus
	hot     *hot // nil: answers are not for the wire
}

func (s *ports) Whois(ctx context.Context, req *pb.WhoisRequest) (*pb.WhoisResponse, error) {
	now := s.reg.Services()
	out, err := s.lookup(now, req)
	if err != nil {
		return nil, err
	}
	me, wanted := callerOf(ctx), wantedBy(req, out.GetLookup())
	if len(wanted) > maxRuns {
		out.Hidden = append(out.Hidden, fmt.Sprintf("only the first %d of %d runs of ports were looked at: ask for fewer", maxRuns, len(wanted)))
		wanted = wanted[:maxRuns]
	}
	var uses []registry.Use
	var redirected redirections
	for _, w := range wanted {
		err := redirected.add(ctx, s.reg, me, req.GetNetns(), w)
		var more []registry.Use
		if err == nil {
			more, err = s.reg.Uses(ctx, me, req.GetNetns(), w.proto, w.ports)
		}
		if why := shortage.Of(err); why != nil && req.GetNetns() == "" {
			out.Hidden = append(out.Hidden, registry.NobodyKnows+": "+why.Error())
			break
		}
		if req.GetNetns() == "" && errors.Is(err, registry.ErrUnsupported) { // what the port is meant for is known all the same
			out.Hidden = append(out.Hidden, registry.NobodyKnows+": "+err.Error())
			break
		}
		if err != nil {
			return nil, err
		}
		uses = append(uses, more...)
	}
	uses = eachOnce(uses)
	if len(uses) > maxUses {
		out.Hidden = append(out.Hidden, fmt.Sprintf("only the first %d of %d uses are shown: ask for fewer ports", maxUses, len(uses)))
		uses = uses[:maxUses]
	}
	out.Hidden = append(append(out.Hidden, hidden(uses)...), redirected.hidden...)
	whole := func() *pb.WhoisResponse {
		who := newPeople()
		for _, u := range uses {
			out.Uses = append(out.Uses, s.use(who, u, me.Principal()))
		}
		out.Redirects = redirected.messages()
		return out
	}
	if q, ok := req.GetQuery().(*pb.WhoisRequest_Port); ok && s.hot != nil {
		if all, plain := s.says(uses, me.Principal(), redirected.all, out.Hidden); plain {
			return s.hot.whois(now, q.Port, req.GetProtocol(), all, whole)
		}
	}
	return whole(), nil
}

// lookup is an answer with the registry's part in it: for a port as it goes over the wire, where it goes there.
func (s *ports) lookup(now *registry.Services, req *pb.WhoisRequest) (*pb.WhoisResponse, error) {
	out := &pb.WhoisResponse{}
	find := func() (*pb.LookupServicesResponse, error) {
		found, err := services.Lookup(now, toLookup(req))
		return &pb.LookupServicesResponse{Lookup: found}, err
	}
	if q, ok := req.GetQuery().(*pb.WhoisRequest_Port); ok && s.hot != nil {
		bytes, err := s.hot.lookup(now, q.Port, req.GetProtocol(), find)
		if err == nil {
			out.ProtoReflect().SetUnknown(bytes.ProtoReflect().GetUnknown()) // lookup has the same number in both answers
		}
		return out, err
	}
	found, err := find()
	out.Lookup = found.GetLookup()
	return out, err
}

// eachOnce leaves out the reservations that are there already: a range of one is one use of all its ports.
func eachOnce(uses []registry.Use) []registry.Use {
	if len(uses) < 2 {
		return uses
	}
	seen := map[registry.SocketKey]bool{}
	return slices.DeleteFunc(uses, func(u registry.Use) bool {
		if u.Reservation == nil {
			return false
		}
		key := registry.SocketKey{Reservation: u.Reservation.ID, Index: u.Index}
		again := seen[key]
		seen[key] = true
		return again
	})
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

// A run is some ports of one protocol, or (0) of every one.
type run struct {
	proto registry.Protocol
	ports registry.PortRange
}

// wantedBy are the ports that a question is about, each run once: those it names, or else those of the entries found. What
// is no port was refused before.
func wantedBy(req *pb.WhoisRequest, found *pb.ServiceLookup) (wanted []run) {
	add := func(p pb.Protocol, ports *pb.PortRange) {
		first := uint16(ports.GetFirst())
		w := run{protocols[p], registry.PortRange{First: first, Last: max(first, uint16(ports.GetLast()))}}
		if !slices.Contains(wanted, w) {
			wanted = append(wanted, w)
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

func (s *ports) ListFreePorts(ctx context.Context, req *pb.ListFreePortsRequest) (*pb.ListFreePortsResponse, error) {
	q, err := toFreeQuery(req)
	if err != nil {
		return nil, err
	}
	free, err := s.reg.FreePorts(ctx, callerOf(ctx), q)
	if err != nil {
		return nil, err
	}
	out := &pb.ListFreePortsResponse{
		RegistryDate: free.Services.Current.Date, HostChecked: len(free.Unseen) == 0,
		Assigned: uint32(free.Assigned), Reserved: uint32(free.Reserved), InUse: uint32(free.InUse), Free: uint32(free.Free),
		Ephemeral: fromPortRange(free.Ephemeral),
	}
	for _, r := range free.Ranges {
		out.Ranges = append(out.Ranges, fromPortRange(r))
	}
	return out, nil
}

func toFreeQuery(req *pb.ListFreePortsRequest) (q registry.FreeQuery, err error) {
	q = registry.FreeQuery{Netns: req.GetNetns(), Count: int(min(req.GetCount(), 65536))} // more is as much too many
	if q.Protos, err = toProtocols(req.GetProtocols()); err != nil {
		return q, err
	}
	q.Within, err = toPortRange("within", req.GetWithin())
	return q, err
}
