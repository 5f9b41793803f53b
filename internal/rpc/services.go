package rpc

import (
	"context"
	"fmt"

	"github.com/portd/portd/internal/ianadb"
	"github.com/portd/portd/internal/registry"
	pb "github.com/portd/portd/proto/portd/v1"
)

type services struct {
	pb.UnimplementedServiceRegistryServiceServer
	db *ianadb.DB
}

func (s *services) LookupServices(_ context.Context, req *pb.LookupServicesRequest) (*pb.LookupServicesResponse, error) {
	_, byPort := req.GetQuery().(*pb.LookupServicesRequest_Port)
	_, byName := req.GetQuery().(*pb.LookupServicesRequest_Name)
	q, err := toQuestion(req, byPort, byName)
	if err != nil {
		return nil, err
	}
	found, err := lookup(s.db, q)
	if err != nil {
		return nil, err
	}
	return &pb.LookupServicesResponse{Lookup: found}, nil
}

// lookup answers from the service registry: a port always, a name if it is there.
func lookup(db *ianadb.DB, q question) (*pb.ServiceLookup, error) {
	out := &pb.ServiceLookup{RegistryDate: db.Source().Date}
	if q.name != "" {
		for r := range db.ByName(q.name, iana(q.proto)) {
			out.Entries = append(out.Entries, fromEntry(r.Entry()))
		}
		switch {
		case len(out.Entries) > 0:
			return out, nil
		case q.proto != 0:
			return nil, notFound(fmt.Sprintf("the IANA registry has no service %q for %v", q.name, q.proto))
		}
		return nil, notFound(fmt.Sprintf("the IANA registry has no service %q", q.name))
	}
	out.PortClass = classes[ianadb.ClassOf(q.port)]
	for r := range db.ByPort(q.port, iana(q.proto)) {
		out.Entries = append(out.Entries, fromEntry(r.Entry()))
	}
	protos := []registry.Protocol{registry.TCP, registry.UDP, registry.SCTP, registry.DCCP}
	if q.proto != 0 {
		protos = []registry.Protocol{q.proto}
	}
	for _, p := range protos {
		out.Assignments = append(out.Assignments, &pb.PortAssignment{
			Port: uint32(q.port), Protocol: fromProtocol(p), Status: statuses[db.Status(q.port, iana(p))],
		})
	}
	return out, nil
}
