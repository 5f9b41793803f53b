package rpc_test

import (
	"net/http"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/portd/portd/proto/portd/v1"
)

// A panic is the operator's to read and one call's misfortune. That it is the same over REST shows that the interceptors
// run there too.
func TestPanic(t *testing.T) {
	h := start(t, crew{panics: true})
	conn, rest := h.grpc(t), h.rest(t)
	_, err := pb.NewHandoffServiceClient(conn).ListWorkers(t.Context(), &pb.ListWorkersRequest{})
	for door, err := range map[string]error{
		"gRPC": err,
		"REST": rest.call(t.Context(), http.MethodGet, "/v1/workers", "", &pb.ListWorkersResponse{}),
	} {
		if st := status.Convert(err); st.Code() != codes.Internal || st.Message() != "internal error" {
			t.Errorf("%s: %v", door, err)
		}
	}
	log := h.log.String()
	if n := strings.Count(log, "all hands lost"); n != 2 || !strings.Contains(log, "handoff.go") {
		t.Errorf("the log tells of it %d times, with a stack or without:\n%s", n, log)
	}
	if _, err := pb.NewReservationServiceClient(conn).ListReservations(t.Context(), &pb.ListReservationsRequest{}); err != nil {
		t.Errorf("after the panic: %v", err)
	}
}
