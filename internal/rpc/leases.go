package rpc

import (
	"context"
	"fmt"
	"time"

	"github.com/portd/portd/internal/registry"
	pb "github.com/portd/portd/proto/portd/v1"
)

// heartbeat is how often an open session shows that portd is alive.
const heartbeat = 30 * time.Second

type leases struct {
	pb.UnimplementedLeaseServiceServer
	reg *registry.Registry
}

func (s *leases) OpenSession(req *pb.OpenSessionRequest, to pb.LeaseService_OpenSessionServer) error {
	grace, err := toDuration("grace", req.GetGrace())
	if err != nil {
		return err
	}
	ctx := to.Context()
	session, err := s.reg.OpenSession(ctx, callerOf(ctx), grace, req.GetResumeToken())
	if err != nil {
		return err
	}
	defer session.Close()
	lease := registry.LeaseStatus{Lease: session.Lease, Connected: true}
	if err := to.Send(&pb.OpenSessionResponse{Lease: fromLease(lease), ResumeToken: session.Token, Resumed: session.Resumed}); err != nil {
		return err
	}
	tick := time.NewTicker(heartbeat)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-session.Done():
			return notFound(fmt.Sprintf("session %s has ended", session.Lease.ID))
		case <-tick.C:
			if err := to.Send(&pb.OpenSessionResponse{}); err != nil {
				return err
			}
		}
	}
}

func (s *leases) CreateLease(ctx context.Context, req *pb.CreateLeaseRequest) (*pb.CreateLeaseResponse, error) {
	spec, err := toLeaseSpec("spec", req.GetSpec())
	if err != nil {
		return nil, err
	}
	if spec == nil {
		return nil, invalid("spec", "is missing: it says what ends the lease")
	}
	lease, err := s.reg.CreateLease(ctx, callerOf(ctx), *spec, req.GetRequestId())
	if err != nil {
		return nil, err
	}
	return &pb.CreateLeaseResponse{Lease: fromLease(lease)}, nil
}

func (s *leases) RenewLease(ctx context.Context, req *pb.RenewLeaseRequest) (*pb.RenewLeaseResponse, error) {
	lease, err := s.reg.RenewLease(ctx, callerOf(ctx), req.GetLeaseId())
	if err != nil {
		return nil, err
	}
	return &pb.RenewLeaseResponse{Lease: fromLease(lease)}, nil
}

func (s *leases) EndLease(ctx context.Context, req *pb.EndLeaseRequest) (*pb.EndLeaseResponse, error) {
	ended, err := s.reg.EndLease(ctx, callerOf(ctx), req.GetLeaseId(), req.GetRequestId())
	if err != nil {
		return nil, err
	}
	out := &pb.EndLeaseResponse{Revision: int64(ended.Revision)}
	for _, r := range ended.Released {
		out.Released = append(out.Released, fromReservation(r))
	}
	return out, nil
}

func (s *leases) GetLease(ctx context.Context, req *pb.GetLeaseRequest) (*pb.GetLeaseResponse, error) {
	lease, err := s.reg.GetLease(ctx, callerOf(ctx), req.GetLeaseId())
	if err != nil {
		return nil, err
	}
	return &pb.GetLeaseResponse{Lease: fromLease(lease)}, nil
}

func (s *leases) ListLeases(ctx context.Context, req *pb.ListLeasesRequest) (*pb.ListLeasesResponse, error) {
	list, err := s.reg.ListLeases(ctx, callerOf(ctx), registry.Principal(req.GetOwner()), toPage(req))
	if err != nil {
		return nil, err
	}
	out := &pb.ListLeasesResponse{NextPageToken: list.Next, Revision: int64(list.Revision), StoreId: list.StoreID}
	for _, l := range list.Items {
		out.Leases = append(out.Leases, fromLease(l))
	}
	return out, nil
}

// notFound is a registry.ErrNotFound with a sentence of its own.
type notFound string

func (e notFound) Error() string        { return string(e) }
func (e notFound) Is(target error) bool { return target == registry.ErrNotFound }
