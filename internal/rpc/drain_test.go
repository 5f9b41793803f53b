package rpc_test

import (
	"net/http"
	"os"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/portd/portd/internal/registry"
	"github.com/portd/portd/internal/rpc"
	pb "github.com/portd/portd/proto/portd/v1"
)

// What is asked for comes to the hand-off as it is meant, and what it did comes back: only of the reservation that was named.
func TestDrainWorkers(t *testing.T) {
	var asked rpc.Drain
	var answer rpc.Drained
	var fails error
	h := start(t, crew{drain: func(d rpc.Drain) (rpc.Drained, error) {
		asked = d
		return answer, fails
	}})
	conn := h.grpc(t)
	r := reserve(t, conn, "web")
	ep, err := registry.ParseEndpoint(r.GetAssigned()[0].GetEndpoint().GetText())
	if err != nil {
		t.Fatal(err)
	}
	me := registry.UIDPrincipal(uint32(os.Geteuid()))
	answer = rpc.Drained{
		Workers: []rpc.Worker{{ID: "wrk_a", Generation: "v1", Listeners: []rpc.WorkerListener{
			{Key: registry.SocketKey{Reservation: r.GetId()}, Owner: me, Endpoint: ep, State: rpc.WorkerDraining, Drained: true},
			{Key: registry.SocketKey{Reservation: "rsv_other"}, Owner: me, State: rpc.WorkerReady},
		}}},
		Without: []registry.Endpoint{ep},
	}
	v1, v2 := "v1", "v2"
	handoffs := pb.NewHandoffServiceClient(conn)
	got, err := handoffs.DrainWorkers(t.Context(), &pb.DrainWorkersRequest{
		Reservation: "web", WorkerIds: []string{"wrk_a"}, Generation: &v1, ExceptGeneration: &v2, Ready: 2,
		Within: durationpb.New(time.Second), Wait: durationpb.New(time.Minute),
	})
	if err != nil {
		t.Fatal(err)
	}
	want := rpc.Drain{
		Reservation: r.GetId(), Endpoints: ep.String(), Workers: []string{"wrk_a"}, Generation: &v1, Except: &v2, Ready: 2,
		Within: time.Second, Wait: time.Minute,
	}
	if diff := cmp.Diff(want, asked); diff != "" {
		t.Error(diff)
	}
	w := got.GetWorkers()[0]
	if len(w.GetListeners()) != 1 || !w.GetListeners()[0].GetDrained() || w.GetGeneration() != "v1" || got.GetWithoutWorker()[0].GetText() != ep.String() {
		t.Errorf("%v", got)
	}
	// A generation that is empty is not one that was left out.
	rest := h.rest(t)
	if err := rest.call(t.Context(), http.MethodPost, "/v1/workers:drain", `{"reservation": "web", "generation": ""}`, got); err != nil {
		t.Fatal(err)
	}
	if asked.Generation == nil || *asked.Generation != "" || asked.Except != nil {
		t.Errorf("%+v", asked)
	}
	fails = &registry.UnsupportedError{What: "drain the workers of tcp/80", Why: "0 of 2 were ready", Code: "NOT_READY"}
	_, err = handoffs.DrainWorkers(t.Context(), &pb.DrainWorkersRequest{Reservation: "web"})
	st := status.Convert(err)
	if st.Code() != codes.FailedPrecondition || st.Details()[0].(*errdetails.ErrorInfo).GetReason() != "NOT_READY" {
		t.Errorf("not ready: %v %v", err, st.Details())
	}
	for name, tt := range map[string]struct {
		req  *pb.DrainWorkersRequest
		code codes.Code
	}{
		"of nothing":             {&pb.DrainWorkersRequest{}, codes.InvalidArgument},
		"of nobody":              {&pb.DrainWorkersRequest{Reservation: "nobody"}, codes.NotFound},
		"whose are to be ready?": {&pb.DrainWorkersRequest{Reservation: "web", Ready: 1}, codes.InvalidArgument},
		"what is to be ready?":   {&pb.DrainWorkersRequest{Reservation: "web", ExceptGeneration: &v2, Within: durationpb.New(1)}, codes.InvalidArgument},
		"for less than no time":  {&pb.DrainWorkersRequest{Reservation: "web", Wait: durationpb.New(-1)}, codes.InvalidArgument},
	} {
		if _, err := handoffs.DrainWorkers(t.Context(), tt.req); status.Code(err) != tt.code {
			t.Errorf("%s: %v", name, err)
		}
	}
}
