package rpc

import (
	"context"
	"log/slog"

	"github.com/portd/portd/internal/registry"
	pb "github.com/portd/portd/proto/portd/v1"
)

type reservations struct {
	pb.UnimplementedReservationServiceServer
	reg *registry.Registry
	log *slog.Logger
}

func (s *reservations) Reserve(ctx context.Context, req *pb.ReserveRequest) (*pb.ReserveResponse, error) {
	want, err := toReserve(req)
	if err != nil {
		return nil, err
	}
	out, err := s.reg.Reserve(ctx, callerOf(ctx), *want)
	if err != nil {
		return nil, err
	}
	return &pb.ReserveResponse{
		Reservation: s.shown(out.Reservation), Existed: out.Existed, PassedOver: fromPassedOver(out.Passed),
	}, nil
}

func (s *reservations) Release(ctx context.Context, req *pb.ReleaseRequest) (*pb.ReleaseResponse, error) {
	out, err := s.reg.Release(ctx, callerOf(ctx), req.GetReservation(), req.GetRequestId(), registry.IfRevision(req.GetExpectedRevision()))
	if err != nil {
		return nil, err
	}
	return &pb.ReleaseResponse{
		Reservation: fromReservation(out.Reservation), StillBoundBy: fromHolders(out.StillBound), Revision: int64(out.Revision),
	}, nil
}

func (s *reservations) GetReservation(ctx context.Context, req *pb.GetReservationRequest) (*pb.GetReservationResponse, error) {
	r, err := s.reg.Get(ctx, callerOf(ctx), req.GetReservation())
	if err != nil {
		return nil, err
	}
	return &pb.GetReservationResponse{Reservation: s.boundBy(ctx, r, s.shown(r, s.culprits(ctx, r)...))}, nil
}

func (s *reservations) ListReservations(ctx context.Context, req *pb.ListReservationsRequest) (*pb.ListReservationsResponse, error) {
	f, err := toFilter("filter", req.GetFilter())
	if err != nil {
		return nil, err
	}
	list, err := s.reg.List(ctx, callerOf(ctx), f, toPage(req))
	if err != nil {
		return nil, err
	}
	holders := s.culprits(ctx, list.Items...)
	out := &pb.ListReservationsResponse{NextPageToken: list.Next, Revision: int64(list.Revision), StoreId: list.StoreID}
	for _, r := range list.Items {
		out.Reservations = append(out.Reservations, s.shown(r, holders...))
	}
	return out, nil
}

// shown is a reservation that is there, with the time that its lease ends.
func (s *reservations) shown(r *registry.Reservation, holders ...registry.Holder) *pb.Reservation {
	out := fromReservation(r, holders...)
	out.ExpireTime = fromTime(s.reg.Expires(r.Lease))
	return out
}

// culprits are the sockets that have what these reservations have lost: looked for once, and only where something is. A
// reservation is shown without them where they cannot be seen.
func (s *reservations) culprits(ctx context.Context, rs ...*registry.Reservation) []registry.Holder {
	var lost []registry.Endpoint
	for _, r := range rs {
		for _, a := range r.Assigned {
			for _, ports := range a.Lost {
				ep := a.Endpoint
				ep.First, ep.Last = ports.First, ports.Last
				lost = append(lost, ep)
			}
		}
	}
	if len(lost) == 0 {
		return nil
	}
	holders, err := s.reg.HoldersThere(ctx, callerOf(ctx), lost...)
	if err != nil {
		s.log.Warn("cannot see who has the lost ports", "err", err)
	}
	return holders
}

func (s *reservations) WatchReservations(req *pb.WatchReservationsRequest, to pb.ReservationService_WatchReservationsServer) error {
	w, err := toWatch(req)
	if err != nil {
		return err
	}
	ctx := to.Context()
	return s.reg.Watch(ctx, callerOf(ctx), w, func(storeID string, ch registry.Change) error {
		return to.Send(s.expiring(fromChange(storeID, ch), ch))
	})
}

// expiring says in the events of a change when the leases end that are there still.
func (s *reservations) expiring(out *pb.WatchReservationsResponse, ch registry.Change) *pb.WatchReservationsResponse {
	for i, ev := range ch.Events {
		switch {
		case ev.Type == registry.EventReleased, ev.Type == registry.EventExpired:
		case ev.Reservation != nil && ev.Reservation.Lease != "":
			out.Events[i].Reservation.ExpireTime = fromTime(s.reg.Expires(ev.Reservation.Lease))
		case ev.Type == registry.EventLeaseCreated:
			out.Events[i].Lease.ExpireTime = fromTime(s.reg.Expires(ev.Lease.ID))
		}
	}
	return out
}

func (s *reservations) Listen(ctx context.Context, req *pb.ListenRequest) (*pb.ListenResponse, error) {
	how, err := toListen(req)
	if err != nil {
		return nil, err
	}
	only := registry.IfRevision(req.GetExpectedRevision())
	r, err := s.reg.Listen(ctx, callerOf(ctx), req.GetReservation(), how, req.GetRequestId(), only)
	if err != nil {
		return nil, err
	}
	return &pb.ListenResponse{Reservation: s.shown(r)}, nil
}

func (s *reservations) Close(ctx context.Context, req *pb.CloseRequest) (*pb.CloseResponse, error) {
	r, err := s.reg.Unlisten(ctx, callerOf(ctx), req.GetReservation(), req.GetRequestId(), registry.IfRevision(req.GetExpectedRevision()))
	if err != nil {
		return nil, err
	}
	return &pb.CloseResponse{Reservation: s.shown(r)}, nil
}
