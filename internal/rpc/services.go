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
}

func (s *serviceRegistry) LookupServices(_ context.Context, req *pb.LookupServicesRequest) (*pb.LookupServicesResponse, error) {
	found, err := services.Lookup(s.reg.Services(), req)
	if err != nil {
		return nil, err
	}
	return &pb.LookupServicesResponse{Lookup: found}, nil
}

func (s *serviceRegistry) SearchServices(_ context.Context, req *pb.SearchServicesRequest) (*pb.SearchServicesResponse, error) {
	return services.Search(s.reg.Services(), req)
}

func (s *serviceRegistry) ListServices(_ context.Context, req *pb.ListServicesRequest) (*pb.ListServicesResponse, error) {
	return services.List(s.reg.Services(), req)
}
