package rpc_test

import (
	"fmt"
	"net/http"
	"slices"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"google.golang.org/genproto/googleapis/rpc/errdetails"

	pb "github.com/portd/portd/proto/portd/v1"
)

// TestForHowLong asks who has a port in every way that there is: each says what ends it, and when.
func TestForHowLong(t *testing.T) {
	h := start(t, nil)
	conn := h.grpc(t)
	reservations, ports := pb.NewReservationServiceClient(conn), pb.NewPortServiceClient(conn)
	watch, err := reservations.WatchReservations(t.Context(), &pb.WatchReservationsRequest{StartRevision: 1})
	if err != nil {
		t.Fatal(err)
	}
	resp, err := reservations.Reserve(t.Context(), &pb.ReserveRequest{
		Spec:     spec(&pb.EndpointSpec{Choice: &pb.EndpointSpec_Any{Any: &pb.AnyPorts{}}}),
		NewLease: &pb.LeaseSpec{Kind: &pb.LeaseSpec_Ttl{Ttl: durationpb.New(time.Hour)}},
	})
	if err != nil {
		t.Fatal(err)
	}
	res := resp.GetReservation()
	port := res.GetAssigned()[0].GetEndpoint().GetPorts().GetFirst()
	check := func(where, lease string, expires *timestamppb.Timestamp) {
		t.Helper()
		if lease != "ttl 1h0m0s" {
			t.Errorf("%s: the lease is %q, want ttl 1h0m0s", where, lease)
		}
		if d := expires.AsTime().Sub(res.GetExpireTime().AsTime()).Abs(); d > time.Second {
			t.Errorf("%s: it ends at %v, want %v", where, expires.AsTime(), res.GetExpireTime().AsTime())
		}
	}

	whois, err := ports.Whois(t.Context(), &pb.WhoisRequest{Query: &pb.WhoisRequest_Port{Port: port}})
	if err != nil || len(whois.GetUses()) != 1 {
		t.Fatalf("%v, %v", whois, err)
	}
	check("whois", whois.GetUses()[0].GetReservation().GetLease(), whois.GetUses()[0].GetReservation().GetExpireTime())

	uses, err := ports.ListPortUses(t.Context(), &pb.ListPortUsesRequest{Ports: &pb.PortRange{First: port}})
	if err != nil {
		t.Fatal(err)
	}
	part, err := uses.Recv()
	if err != nil || len(part.GetUses()) == 0 {
		t.Fatalf("%v, %v", part, err)
	}
	check("list", part.GetUses()[0].GetReservation().GetLease(), part.GetUses()[0].GetReservation().GetExpireTime())

	_, err = reservations.Reserve(t.Context(), &pb.ReserveRequest{
		Spec: spec(&pb.EndpointSpec{Choice: &pb.EndpointSpec_Exact{Exact: &pb.PortRange{First: port}}}),
	})
	if status.Code(err) != codes.AlreadyExists {
		t.Fatal(err)
	}
	for _, d := range status.Convert(err).Details() {
		if c, ok := d.(*pb.PortConflict); ok {
			check("a refusal", c.GetUses()[0].GetReservation().GetLease(), c.GetUses()[0].GetReservation().GetExpireTime())
		}
	}

	for told := 0; told < 2; {
		ch, err := watch.Recv()
		if err != nil {
			t.Fatal(err)
		}
		for _, ev := range ch.GetEvents() {
			switch ev.GetType() {
			case pb.EventType_EVENT_TYPE_RESERVED:
				check("the event", "ttl 1h0m0s", ev.GetReservation().GetExpireTime())
				told++
			case pb.EventType_EVENT_TYPE_LEASE_CREATED:
				check("the lease's event", "ttl 1h0m0s", ev.GetLease().GetExpireTime())
				told++
			}
		}
	}
}

// TestUpdateByBothDoors changes a reservation by gRPC and by REST, and is refused alike.
func TestUpdateByBothDoors(t *testing.T) {
	h := start(t, nil)
	conn, rest := h.grpc(t), h.rest(t)
	reservations := pb.NewReservationServiceClient(conn)
	res := reserve(t, conn, "web")
	got, err := reservations.UpdateReservation(t.Context(), &pb.UpdateReservationRequest{
		Reservation: "web", Name: "shop", Labels: map[string]string{"team": "a"},
		UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"name", "labels"}}, ExpectedRevision: res.GetRevision(),
	})
	if err != nil || got.GetReservation().GetName() != "shop" || got.GetReservation().GetLabels()["team"] != "a" {
		t.Fatalf("%v, %v", got, err)
	}
	rev := got.GetReservation().GetRevision()
	path := "/v1/reservations/" + res.GetId()
	got = &pb.UpdateReservationResponse{}
	body := fmt.Sprintf(`{"name": "store", "updateMask": "name", "expectedRevision": %d}`, rev)
	if err := rest.call(t.Context(), http.MethodPatch, path, body, got); err != nil {
		t.Fatal(err)
	}
	if got.GetReservation().GetName() != "store" || got.GetReservation().GetLabels()["team"] != "a" || got.GetReservation().GetRevision() <= rev {
		t.Errorf("got %v", got)
	}

	for name, tt := range map[string]struct {
		body, reason string
		code         codes.Code
		metadata     map[string]string
	}{
		"too late":      {body, "CONFLICT", codes.Aborted, map[string]string{"expected_revision": fmt.Sprint(rev), "revision": fmt.Sprint(got.GetReservation().GetRevision())}},
		"nothing":       {`{}`, "INVALID_ARGUMENT", codes.InvalidArgument, map[string]string{"field": "update_mask"}},
		"what is fixed": {`{"updateMask": "spec"}`, "INVALID_ARGUMENT", codes.InvalidArgument, map[string]string{"field": "update_mask.paths[0]"}},
		"not named":     {`{"name": "x", "leaseId": "lse_x", "updateMask": "name"}`, "INVALID_ARGUMENT", codes.InvalidArgument, map[string]string{"field": "lease_id"}},
		"no revision":   {`{"name": "x", "updateMask": "name", "expectedRevision": -1}`, "INVALID_ARGUMENT", codes.InvalidArgument, map[string]string{"field": "expected_revision"}},
	} {
		err := rest.call(t.Context(), http.MethodPatch, path, tt.body, &pb.UpdateReservationResponse{})
		if status.Code(err) != tt.code {
			t.Errorf("%s: got %v, want %v", name, err, tt.code)
			continue
		}
		i := slices.IndexFunc(status.Convert(err).Details(), func(d any) bool { _, is := d.(*errdetails.ErrorInfo); return is })
		info := status.Convert(err).Details()[i].(*errdetails.ErrorInfo)
		if info.GetReason() != tt.reason {
			t.Errorf("%s: the reason is %s, want %s", name, info.GetReason(), tt.reason)
		}
		for k, v := range tt.metadata {
			if info.GetMetadata()[k] != v {
				t.Errorf("%s: %s is %q, want %q", name, k, info.GetMetadata()[k], v)
			}
		}
	}
	rest409 := rest.call(t.Context(), http.MethodDelete, path+"?expectedRevision="+fmt.Sprint(rev), "", &pb.ReleaseResponse{})
	if status.Code(rest409) != codes.Aborted {
		t.Errorf("release: got %v, want Aborted", rest409)
	}
}
