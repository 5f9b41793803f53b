package rpc

import (
	"context"

	"github.com/portd/portd/internal/registry"
	pb "github.com/portd/portd/proto/portd/v1"
)

func (s *reservations) Adopt(ctx context.Context, req *pb.AdoptRequest) (*pb.AdoptResponse, error) {
	want, err := toAdopt(req)
	if err != nil {
		return nil, err
	}
	out, err := s.reg.Adopt(ctx, callerOf(ctx), want)
	if err != nil {
		return nil, err
	}
	answer := &pb.AdoptResponse{Reservation: s.shown(out.Reservation)}
	who := newPeople()
	for _, p := range out.AlsoOpenIn {
		answer.AlsoOpenIn = append(answer.AlsoOpenIn, who.process(p))
	}
	return answer, nil
}

func toAdopt(req *pb.AdoptRequest) (want registry.AdoptRequest, err error) {
	want = registry.AdoptRequest{
		PID: req.GetPid(), Name: req.GetName(), Labels: req.GetLabels(), Lease: req.GetLeaseId(), RequestID: req.GetRequestId(),
	}
	if req.GetEndpoint() == nil {
		return want, invalid("endpoint", "is missing: it says what the program listens on")
	}
	if want.Endpoint, err = toEndpointSpec("endpoint", req.GetEndpoint()); err != nil {
		return want, err
	}
	want.NewLease, err = toLeaseSpec("new_lease", req.GetNewLease())
	return want, err
}
