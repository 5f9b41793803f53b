package rpc_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	pb "github.com/portd/portd/proto/portd/v1"
)

// The same question by either door gets the same answer, be it an error with its details.
func TestSameByBothDoors(t *testing.T) {
	h := start(t, nil)
	conn, rest := h.grpc(t), h.rest(t)
	mine := reserve(t, conn, "mine")
	port := mine.GetAssigned()[0].GetEndpoint().GetPorts().GetFirst()
	foreign, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer foreign.Close()
	foreignPort := uint32(foreign.Addr().(*net.TCPAddr).Port)

	reservations := pb.NewReservationServiceClient(conn)
	exact := func(port uint32) *pb.ReserveRequest {
		return &pb.ReserveRequest{Spec: spec(&pb.EndpointSpec{Choice: &pb.EndpointSpec_Exact{Exact: &pb.PortRange{First: port}}})}
	}
	exactJSON := func(port uint32) string {
		return fmt.Sprintf(`{"spec": {"endpoints": [{"protocols": ["PROTOCOL_TCP"], "exact": {"first": %d}}]}}`, port)
	}
	tests := []question{
		{
			name: "status",
			grpc: func(ctx context.Context) (proto.Message, error) {
				return pb.NewDaemonServiceClient(conn).GetStatus(ctx, &pb.GetStatusRequest{})
			},
			path: "/v1/status",
		},
		{
			name: "pools",
			grpc: func(ctx context.Context) (proto.Message, error) {
				return pb.NewPortServiceClient(conn).ListPools(ctx, &pb.ListPoolsRequest{})
			},
			path: "/v1/pools",
		},
		{
			name: "a pool that is not there",
			grpc: func(ctx context.Context) (proto.Message, error) {
				return pb.NewPortServiceClient(conn).ListPools(ctx, &pb.ListPoolsRequest{Name: "nosuch"})
			},
			path: "/v1/pools?name=nosuch",
			code: codes.NotFound, http: http.StatusNotFound,
		},
		{
			name: "look up a port",
			grpc: func(ctx context.Context) (proto.Message, error) {
				return pb.NewServiceRegistryServiceClient(conn).LookupServices(ctx, &pb.LookupServicesRequest{Query: &pb.LookupServicesRequest_Port{Port: 443}})
			},
			path: "/v1/services:lookup?port=443",
		},
		{
			name: "look up port 0",
			grpc: func(ctx context.Context) (proto.Message, error) {
				return pb.NewServiceRegistryServiceClient(conn).LookupServices(ctx, &pb.LookupServicesRequest{Query: &pb.LookupServicesRequest_Port{}})
			},
			path: "/v1/services:lookup?port=0",
		},
		{
			name: "look up a name with a slash",
			grpc: func(ctx context.Context) (proto.Message, error) {
				return pb.NewServiceRegistryServiceClient(conn).LookupServices(ctx, &pb.LookupServicesRequest{Query: &pb.LookupServicesRequest_Name{Name: "CL/1"}})
			},
			path: "/v1/services:lookup?name=CL/1",
		},
		{
			name: "look up an unknown name",
			grpc: func(ctx context.Context) (proto.Message, error) {
				return pb.NewServiceRegistryServiceClient(conn).LookupServices(ctx, &pb.LookupServicesRequest{Query: &pb.LookupServicesRequest_Name{Name: "dns"}})
			},
			path: "/v1/services:lookup?name=dns", code: codes.NotFound, http: http.StatusNotFound,
		},
		{
			name: "look up nothing",
			grpc: func(ctx context.Context) (proto.Message, error) {
				return pb.NewServiceRegistryServiceClient(conn).LookupServices(ctx, &pb.LookupServicesRequest{})
			},
			path: "/v1/services:lookup", code: codes.InvalidArgument, http: http.StatusBadRequest,
		},
		{
			name: "whois",
			grpc: func(ctx context.Context) (proto.Message, error) {
				return pb.NewPortServiceClient(conn).Whois(ctx, &pb.WhoisRequest{Query: &pb.WhoisRequest_Port{Port: port}})
			},
			path: fmt.Sprint("/v1/ports:whois?port=", port),
		},
		{
			name: "whois beyond the last port",
			grpc: func(ctx context.Context) (proto.Message, error) {
				return pb.NewPortServiceClient(conn).Whois(ctx, &pb.WhoisRequest{Query: &pb.WhoisRequest_Port{Port: 65536}})
			},
			path: "/v1/ports:whois?port=65536", code: codes.InvalidArgument, http: http.StatusBadRequest,
		},
		{
			name: "reserve again",
			grpc: func(ctx context.Context) (proto.Message, error) {
				req := &pb.ReserveRequest{Name: "mine", Spec: spec(&pb.EndpointSpec{Choice: &pb.EndpointSpec_Any{Any: &pb.AnyPorts{}}})}
				return reservations.Reserve(ctx, req)
			},
			method: "POST", path: "/v1/reservations", body: `{"name": "mine", "spec": {"endpoints": [{"protocols": ["PROTOCOL_TCP"], "any": {}}]}}`,
		},
		{
			name:   "reserve what is reserved",
			grpc:   func(ctx context.Context) (proto.Message, error) { return reservations.Reserve(ctx, exact(port)) },
			method: "POST", path: "/v1/reservations", body: exactJSON(port), code: codes.AlreadyExists, http: http.StatusConflict,
		},
		{
			name:   "reserve what another program has",
			grpc:   func(ctx context.Context) (proto.Message, error) { return reservations.Reserve(ctx, exact(foreignPort)) },
			method: "POST", path: "/v1/reservations", body: exactJSON(foreignPort), code: codes.AlreadyExists, http: http.StatusConflict,
		},
		{
			name:   "reserve 70000",
			grpc:   func(ctx context.Context) (proto.Message, error) { return reservations.Reserve(ctx, exact(70000)) },
			method: "POST", path: "/v1/reservations", body: exactJSON(70000), code: codes.InvalidArgument, http: http.StatusBadRequest,
		},
		{
			name: "reserve nothing",
			grpc: func(ctx context.Context) (proto.Message, error) {
				return reservations.Reserve(ctx, &pb.ReserveRequest{})
			},
			method: "POST", path: "/v1/reservations", body: `{}`, code: codes.InvalidArgument, http: http.StatusBadRequest,
		},
		{
			name: "a lease by a process, where none are watched",
			grpc: func(ctx context.Context) (proto.Message, error) {
				req := exact(port)
				req.NewLease = &pb.LeaseSpec{Kind: &pb.LeaseSpec_Process{Process: &pb.ProcessLease{Pid: 1}}}
				return reservations.Reserve(ctx, req)
			},
			method: "POST", path: "/v1/reservations",
			body: `{"newLease": {"process": {"pid": 1}}, "spec": {"endpoints": [{"protocols": ["PROTOCOL_TCP"], "any": {}}]}}`,
			code: codes.FailedPrecondition, http: http.StatusBadRequest,
		},
		{
			name: "get by id",
			grpc: func(ctx context.Context) (proto.Message, error) {
				return reservations.GetReservation(ctx, &pb.GetReservationRequest{Reservation: mine.GetId()})
			},
			path: "/v1/reservations/" + mine.GetId(),
		},
		{
			name: "get by endpoint",
			grpc: func(ctx context.Context) (proto.Message, error) {
				return reservations.GetReservation(ctx, &pb.GetReservationRequest{Reservation: mine.GetAssigned()[0].GetEndpoint().GetText()})
			},
			path: "/v1/reservations:find?reservation=" + url.QueryEscape(mine.GetAssigned()[0].GetEndpoint().GetText()),
		},
		{
			name: "get what is not there",
			grpc: func(ctx context.Context) (proto.Message, error) {
				return reservations.GetReservation(ctx, &pb.GetReservationRequest{Reservation: "nobody"})
			},
			path: "/v1/reservations/nobody", code: codes.NotFound, http: http.StatusNotFound,
		},
		{
			name: "list",
			grpc: func(ctx context.Context) (proto.Message, error) {
				return reservations.ListReservations(ctx, &pb.ListReservationsRequest{
					PageSize: 1, Filter: &pb.ReservationFilter{Protocol: pb.Protocol_PROTOCOL_TCP, Ports: &pb.PortRange{First: port}},
				})
			},
			path: fmt.Sprint("/v1/reservations?pageSize=1&filter.protocol=PROTOCOL_TCP&filter.ports.first=", port),
		},
		{
			name: "list by a negative page",
			grpc: func(ctx context.Context) (proto.Message, error) {
				return reservations.ListReservations(ctx, &pb.ListReservationsRequest{PageSize: -1})
			},
			path: "/v1/reservations?page_size=-1", code: codes.InvalidArgument, http: http.StatusBadRequest,
		},
		{
			name: "watch the future",
			grpc: func(ctx context.Context) (proto.Message, error) {
				s, err := reservations.WatchReservations(ctx, &pb.WatchReservationsRequest{StartRevision: 1000})
				if err != nil {
					return nil, err
				}
				return s.Recv()
			},
			path: "/v1/reservations:watch?startRevision=1000", code: codes.InvalidArgument, http: http.StatusBadRequest,
		},
		{
			name: "watch another store",
			grpc: func(ctx context.Context) (proto.Message, error) {
				s, err := reservations.WatchReservations(ctx, &pb.WatchReservationsRequest{StartRevision: 1, StoreId: "gone"})
				if err != nil {
					return nil, err
				}
				return s.Recv()
			},
			path: "/v1/reservations:watch?startRevision=1&storeId=gone", code: codes.FailedPrecondition, http: http.StatusBadRequest,
		},
		{
			name: "release what is not there",
			grpc: func(ctx context.Context) (proto.Message, error) {
				return reservations.Release(ctx, &pb.ReleaseRequest{Reservation: "tcp/1"})
			},
			method: "POST", path: "/v1/reservations:release", body: `{"reservation": "tcp/1"}`, code: codes.NotFound, http: http.StatusNotFound,
		},
		{
			name: "leases",
			grpc: func(ctx context.Context) (proto.Message, error) {
				return pb.NewLeaseServiceClient(conn).ListLeases(ctx, &pb.ListLeasesRequest{})
			},
			path: "/v1/leases",
		},
		{
			name: "a session with too long a grace",
			grpc: func(ctx context.Context) (proto.Message, error) {
				s, err := pb.NewLeaseServiceClient(conn).OpenSession(ctx, &pb.OpenSessionRequest{ResumeToken: "stolen"})
				if err != nil {
					return nil, err
				}
				return s.Recv()
			},
			method: "POST", path: "/v1/leases:openSession", body: `{"resumeToken": "stolen"}`, code: codes.NotFound, http: http.StatusNotFound,
		},
		{
			name: "listeners",
			grpc: func(ctx context.Context) (proto.Message, error) {
				return pb.NewHandoffServiceClient(conn).ListListeners(ctx, &pb.ListListenersRequest{Reservation: "mine"})
			},
			path: "/v1/listeners?reservation=mine",
		},
		{
			name: "connections by a token that is none",
			grpc: func(ctx context.Context) (proto.Message, error) {
				return pb.NewHandoffServiceClient(conn).ListConnections(ctx, &pb.ListConnectionsRequest{PageToken: "?"})
			},
			path: "/v1/connections?pageToken=?", code: codes.InvalidArgument, http: http.StatusBadRequest,
		},
	}
	for _, q := range tests {
		q.ask(t, rest)
	}
}

// A question is the same by either door.
type question struct {
	name         string
	grpc         func(context.Context) (proto.Message, error)
	method, path string
	body         string
	code         codes.Code
	http         int
}

// ask asks by both doors and compares the answers, or the errors with their details. It returns gRPC's.
func (q question) ask(t *testing.T, rest rest) (answer proto.Message, err error) {
	t.Helper()
	t.Run(q.name, func(t *testing.T) {
		if answer, err = q.grpc(t.Context()); status.Code(err) != q.code {
			t.Fatalf("gRPC: %v, want %v", err, q.code)
		}
		method := q.method
		if method == "" {
			method = http.MethodGet
		}
		got := answer.ProtoReflect().New().Interface()
		gotErr := rest.call(t.Context(), method, q.path, q.body, got)
		var he *httpError
		if code := http.StatusOK; errors.As(gotErr, &he) && he.code != q.http || gotErr != nil && he == nil {
			t.Fatalf("REST: %v, want %d", gotErr, max(code, q.http))
		}
		if err != nil {
			if len(status.Convert(err).Details()) == 0 {
				t.Errorf("gRPC: %v has no details", err)
			}
			if diff := cmp.Diff(status.Convert(err).Proto(), status.Convert(gotErr).Proto(), protocmp.Transform()); diff != "" {
				t.Errorf("REST fails in another way (-gRPC +REST):\n%s", diff)
			}
			return
		}
		if gotErr != nil {
			t.Fatal(gotErr)
		}
		if diff := differ(answer, got); diff != "" {
			t.Errorf("REST answers otherwise (-gRPC +REST):\n%s", diff)
		}
	})
	return answer, err
}

// differ says how got is not what is wanted, or "". Where both are the same, as large ones mostly are, proto.Equal knows soon.
func differ(want, got proto.Message) string {
	if proto.Equal(want, got) {
		return ""
	}
	return cmp.Diff(want, got, protocmp.Transform())
}
