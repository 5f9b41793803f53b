package rpc

import (
	"context"
	"fmt"
	"strings"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/portd/portd/internal/registry"
	pb "github.com/portd/portd/proto/portd/v1"
)

func (s *ports) ListPools(_ context.Context, req *pb.ListPoolsRequest) (*pb.ListPoolsResponse, error) {
	out := &pb.ListPoolsResponse{}
	var names []string
	for _, p := range s.reg.Pools() {
		names = append(names, p.Name)
		if req.GetName() == "" || req.GetName() == p.Name {
			out.Pools = append(out.Pools, fromPool(p))
		}
	}
	if len(out.Pools) == 0 {
		return nil, notFound(fmt.Sprintf("there is no pool %q; there are %s", req.GetName(), strings.Join(names, ", ")))
	}
	if st := s.policy(); !st.Loaded.IsZero() {
		out.PolicyFile = st.File
	}
	return out, nil
}

func fromPolicy(st PolicyStatus) *pb.PolicyStatus {
	return &pb.PolicyStatus{File: st.File, LoadTime: fromTime(st.Loaded), Error: st.Err, ErrorTime: fromTime(st.Failed)}
}

func fromPool(p registry.PoolStatus) *pb.Pool {
	out := &pb.Pool{Name: p.Name, Strategy: p.Strategy.String(), Quarantine: durationpb.New(p.Quarantine)}
	for proto := pb.Protocol_PROTOCOL_TCP; int(proto) < len(protocols); proto++ {
		ports, has := p.Ports[protocols[proto]]
		if !has {
			continue
		}
		n := p.Counts[protocols[proto]]
		one := &pb.PoolPorts{
			Protocol: proto, Avoid: ports.Avoid.Names(),
			Size: uint32(n.Size), Reserved: uint32(n.Reserved), Quarantined: uint32(n.Quarantined),
		}
		for _, r := range ports.Ranges {
			one.Ranges = append(one.Ranges, fromPortRange(r))
		}
		out.Ports = append(out.Ports, one)
	}
	return out
}
