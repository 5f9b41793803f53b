package rpc

import (
	"context"

	"github.com/portd/portd/internal/registry"
	pb "github.com/portd/portd/proto/portd/v1"
)

func (s *reservations) UpdateReservation(ctx context.Context, req *pb.UpdateReservationRequest) (*pb.UpdateReservationResponse, error) {
	u, err := toUpdate(req)
	if err != nil {
		return nil, err
	}
	only := registry.IfRevision(req.GetExpectedRevision())
	r, err := s.reg.Update(ctx, callerOf(ctx), req.GetReservation(), u, req.GetRequestId(), only)
	if err != nil {
		return nil, err
	}
	return &pb.UpdateReservationResponse{Reservation: s.shown(r)}, nil
}

// toUpdate takes the fields that the mask names. A field that has a value and is not named is refused: it would be forgotten in
// silence.
func toUpdate(req *pb.UpdateReservationRequest) (u registry.Update, err error) {
	for i, path := range req.GetUpdateMask().GetPaths() {
		switch path {
		case "name":
			u.Name = &req.Name
		case "labels":
			u.Labels = map[string]string{}
			if req.GetLabels() != nil {
				u.Labels = req.GetLabels()
			}
		case "lease_id":
			u.Lease = &req.LeaseId
		default:
			return u, invalid(at("update_mask.paths", i), "%q is not to be changed; known are name, labels and lease_id", path)
		}
	}
	for _, f := range []struct {
		field        string
		given, named bool
	}{
		{"name", req.GetName() != "", u.Name != nil},
		{"labels", len(req.GetLabels()) > 0, u.Labels != nil},
		{"lease_id", req.GetLeaseId() != "", u.Lease != nil},
	} {
		if f.given && !f.named {
			return u, invalid(f.field, "has a value and update_mask does not name it; add %q, or leave the field out", f.field)
		}
	}
	return u, nil
}
