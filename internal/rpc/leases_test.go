package rpc_test

import (
	"net/http"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/portd/portd/proto/portd/v1"
)

// The life of a lease by REST.
func TestLeaseByREST(t *testing.T) {
	rest := start(t, nil).rest(t)
	made := &pb.CreateLeaseResponse{}
	if err := rest.call(t.Context(), http.MethodPost, "/v1/leases", `{"spec": {"ttl": "600s"}, "requestId": "1"}`, made); err != nil {
		t.Fatal(err)
	}
	again := &pb.CreateLeaseResponse{}
	if err := rest.call(t.Context(), http.MethodPost, "/v1/leases", `{"spec": {"ttl": "600s"}, "requestId": "1"}`, again); err != nil {
		t.Fatal(err)
	}
	lease := made.GetLease()
	if lease.GetSpec().GetTtl().AsDuration() != 10*time.Minute || again.GetLease().GetId() != lease.GetId() {
		t.Errorf("made %v, and again %v", lease, again.GetLease())
	}
	path := "/v1/leases/" + lease.GetId()
	renewed := &pb.RenewLeaseResponse{}
	if err := rest.call(t.Context(), http.MethodPost, path+":renew", `{}`, renewed); err != nil {
		t.Fatal(err)
	}
	if before, after := lease.GetExpireTime().AsTime(), renewed.GetLease().GetExpireTime().AsTime(); !after.After(before) {
		t.Errorf("renewed until %v, and before that until %v", after, before)
	}
	if err := rest.call(t.Context(), http.MethodDelete, path, "", &pb.EndLeaseResponse{}); err != nil {
		t.Fatal(err)
	}
	err := rest.call(t.Context(), http.MethodPost, path+":renew", `{}`, renewed)
	if status.Code(err) != codes.NotFound {
		t.Errorf("renewing what has ended: got %v, want NotFound", err)
	}
}
