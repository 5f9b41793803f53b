package rpc

import (
	"context"

	"github.com/portd/portd/internal/registry"
	"github.com/portd/portd/internal/services"
	pb "github.com/portd/portd/proto/portd/v1"
)

type serviceRegistry struct {
	pb.UnimplementedServiceRegistryServiceServer
	reg *registry.Registry
	hot *hot // nil: answers are not for the wire
}

func (s *serviceRegistry) LookupServices(_ context.Context, req *pb.LookupServicesRequest) (*pb.LookupServicesResponse, error) {
	now := s.reg.Services()
	find := func() (*pb.LookupServicesResponse, error) {
		found, err := services.Lookup(now, req)
		if err != nil {
			return nil, err
		}
		return &pb.LookupServicesResponse{Lookup: found}, nil
	}
	if q, ok := req.GetQuery().(*pb.LookupServicesRequest_Port); ok && s.hot != nil {
		return s.hot.lookup(now, q.Port, req.GetProtocol(), find)
	}
	return find()
}

func (s *serviceRegistry) SearchServices(_ context.Context, req *pb.SearchServicesRequest) (*pb.SearchServicesResponse, error) {
	return services.Search(s.reg.Services(), req)
}

func (s *serviceRegistry) ListServices(_ context.Context, req *pb.ListServicesRequest) (*pb.ListServicesResponse, error) {
	return services.List(s.reg.Services(), req)
}
