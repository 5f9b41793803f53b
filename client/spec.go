package client

import (
	"fmt"

	"github.com/portd/portd/internal/registry"
	pb "github.com/portd/portd/proto/portd/v1"
)

// ParseSpec reads what may be reserved as portctl reads it: "tcp/8080", "tcp,udp/53", "tcp/[::1]:8000-8009", "tcp/any",
// "tcp/https", "unix/run/app.sock". The error is an ErrInvalid.
func ParseSpec(text string) (*pb.EndpointSpec, error) {
	s, err := registry.ParseSpec(text)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	spec := &pb.EndpointSpec{Netns: s.Netns, V6Only: s.V6Only, Device: s.Device}
	for _, p := range s.Protos {
		spec.Protocols = append(spec.Protocols, protocols[p])
	}
	for _, a := range s.Addrs {
		spec.Addresses = append(spec.Addresses, a.String())
	}
	switch {
	case s.Any != nil:
		spec.Choice = &pb.EndpointSpec_Any{Any: &pb.AnyPorts{}}
	case s.Path != "":
		spec.Choice = &pb.EndpointSpec_Path{Path: s.Path}
	case s.Service != "":
		spec.Choice = &pb.EndpointSpec_Service{Service: s.Service}
	default:
		spec.Choice = &pb.EndpointSpec_Exact{Exact: &pb.PortRange{First: uint32(s.Exact.First), Last: uint32(s.Exact.Last)}}
	}
	return spec, nil
}

var protocols = map[registry.Protocol]pb.Protocol{
	registry.TCP:     pb.Protocol_PROTOCOL_TCP,
	registry.UDP:     pb.Protocol_PROTOCOL_UDP,
	registry.SCTP:    pb.Protocol_PROTOCOL_SCTP,
	registry.DCCP:    pb.Protocol_PROTOCOL_DCCP,
	registry.UDPLite: pb.Protocol_PROTOCOL_UDPLITE,
	registry.Unix:    pb.Protocol_PROTOCOL_UNIX,
}
