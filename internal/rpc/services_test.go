package rpc_test

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"golang.org/x/sync/errgroup"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	"github.com/portd/portd/internal/services"
	pb "github.com/portd/portd/proto/portd/v1"
)

// line is an entry in a few words.
func line(e *pb.ServiceEntry) string {
	s := e.GetName() + " " + e.GetPortNumber() + "/" + short(e.GetProtocol())
	if e.GetSource() == pb.EntrySource_ENTRY_SOURCE_HOST {
		s += " of " + e.GetChangedBy()
	}
	return s
}

func lines(all []*pb.ServiceEntry) (out []string) {
	for _, e := range all {
		out = append(out, line(e))
	}
	return out
}

// myapp is an entry that clashes with nothing.
func myapp() *pb.ServiceEntry {
	return &pb.ServiceEntry{
		Name: "myapp", Protocol: pb.Protocol_PROTOCOL_TCP, Ports: &pb.PortRange{First: 8123}, Description: "what we make",
	}
}

func TestServicesByBothDoors(t *testing.T) {
	h := start(t, nil)
	conn, rest := h.grpc(t), h.rest(t)
	services, ports := pb.NewServiceRegistryServiceClient(conn), pb.NewPortServiceClient(conn)
	if _, err := services.AddServices(t.Context(), &pb.AddServicesRequest{Services: []*pb.ServiceEntry{myapp()}}); err != nil {
		t.Fatal(err)
	}
	lookup := func(req *pb.LookupServicesRequest) func(context.Context) (proto.Message, error) {
		return func(ctx context.Context) (proto.Message, error) { return services.LookupServices(ctx, req) }
	}
	search := func(req *pb.SearchServicesRequest) func(context.Context) (proto.Message, error) {
		return func(ctx context.Context) (proto.Message, error) { return services.SearchServices(ctx, req) }
	}
	list := func(req *pb.ListServicesRequest) func(context.Context) (proto.Message, error) {
		return func(ctx context.Context) (proto.Message, error) { return services.ListServices(ctx, req) }
	}
	add := func(req *pb.AddServicesRequest) func(context.Context) (proto.Message, error) {
		return func(ctx context.Context) (proto.Message, error) { return services.AddServices(ctx, req) }
	}
	edit := func(req *pb.EditServicesRequest) func(context.Context) (proto.Message, error) {
		return func(ctx context.Context) (proto.Message, error) { return services.EditServices(ctx, req) }
	}
	remove := func(req *pb.RemoveServicesRequest) func(context.Context) (proto.Message, error) {
		return func(ctx context.Context) (proto.Message, error) { return services.RemoveServices(ctx, req) }
	}
	whois := func(req *pb.WhoisRequest) func(context.Context) (proto.Message, error) {
		return func(ctx context.Context) (proto.Message, error) { return ports.Whois(ctx, req) }
	}
	free := func(req *pb.ListFreePortsRequest) func(context.Context) (proto.Message, error) {
		return func(ctx context.Context) (proto.Message, error) { return ports.ListFreePorts(ctx, req) }
	}
	const tcp, udp = pb.Protocol_PROTOCOL_TCP, pb.Protocol_PROTOCOL_UDP
	const post, asIANA = http.MethodPost, pb.EntrySource_ENTRY_SOURCE_IANA
	tests := []question{
		{
			name: "a port of our own", grpc: lookup(&pb.LookupServicesRequest{Query: &pb.LookupServicesRequest_Port{Port: 8123}, Protocol: tcp}),
			path: "/v1/services:lookup?port=8123&protocol=PROTOCOL_TCP",
		},
		{
			name: "a range", grpc: lookup(&pb.LookupServicesRequest{Query: &pb.LookupServicesRequest_Ports{Ports: &pb.PortRange{First: 6000, Last: 6010}}}),
			path: "/v1/services:lookup?ports.first=6000&ports.last=6010",
		},
		{
			name: "a range from 0", grpc: lookup(&pb.LookupServicesRequest{Query: &pb.LookupServicesRequest_Ports{Ports: &pb.PortRange{Last: 9}}}),
			path: "/v1/services:lookup?ports.last=9",
		},
		{
			name: "a range that runs backwards", grpc: lookup(&pb.LookupServicesRequest{Query: &pb.LookupServicesRequest_Ports{Ports: &pb.PortRange{First: 9, Last: 8}}}),
			path: "/v1/services:lookup?ports.first=9&ports.last=8", code: codes.InvalidArgument, http: 400,
		},
		{
			name: "a service code", grpc: lookup(&pb.LookupServicesRequest{Query: &pb.LookupServicesRequest_ServiceCode{ServiceCode: 1885957735}}),
			path: "/v1/services:lookup?serviceCode=1885957735",
		},
		{
			name: "a typo", grpc: lookup(&pb.LookupServicesRequest{Query: &pb.LookupServicesRequest_Name{Name: "htpps"}}),
			path: "/v1/services:lookup?name=htpps", code: codes.NotFound, http: 404,
		},
		{
			name: "a name that is none", grpc: lookup(&pb.LookupServicesRequest{Query: &pb.LookupServicesRequest_Name{Name: "\x1b[2J"}}),
			path: "/v1/services:lookup?name=%1b[2J", code: codes.NotFound, http: 404,
		},
		{
			name: "whois a range", grpc: whois(&pb.WhoisRequest{Query: &pb.WhoisRequest_Ports{Ports: &pb.PortRange{First: 1, Last: 9}}, Protocol: udp}),
			path: "/v1/ports:whois?ports.first=1&ports.last=9&protocol=PROTOCOL_UDP",
		},
		{
			name: "whois a service code", grpc: whois(&pb.WhoisRequest{Query: &pb.WhoisRequest_ServiceCode{ServiceCode: 1145656131}}),
			path: "/v1/ports:whois?service_code=1145656131",
		},
		{
			name: "whois nobody", grpc: whois(&pb.WhoisRequest{Query: &pb.WhoisRequest_Name{Name: "htpps"}}),
			path: "/v1/ports:whois?name=htpps", code: codes.NotFound, http: 404,
		},
		{
			name: "search", grpc: search(&pb.SearchServicesRequest{Query: "mail tls", PageSize: 3}),
			path: "/v1/services:search?query=mail+tls&pageSize=3",
		},
		{
			name: "search for nothing", grpc: search(&pb.SearchServicesRequest{}),
			path: "/v1/services:search", code: codes.InvalidArgument, http: 400,
		},
		{
			name: "search for nine words", grpc: search(&pb.SearchServicesRequest{Query: "a b c d e f g h i"}),
			path: "/v1/services:search?query=a+b+c+d+e+f+g+h+i", code: codes.InvalidArgument, http: 400,
		},
		{name: "list", grpc: list(&pb.ListServicesRequest{}), path: "/v1/services"},
		{
			name: "list IANA's of dccp", grpc: list(&pb.ListServicesRequest{Source: asIANA, Protocol: pb.Protocol_PROTOCOL_DCCP, PageSize: 1000}),
			path: "/v1/services?source=ENTRY_SOURCE_IANA&protocol=PROTOCOL_DCCP&pageSize=1000",
		},
		{
			name: "list by a token that is none", grpc: list(&pb.ListServicesRequest{PageToken: "?"}),
			path: "/v1/services?pageToken=?", code: codes.InvalidArgument, http: 400,
		},
		{
			name: "add again", grpc: add(&pb.AddServicesRequest{Services: []*pb.ServiceEntry{myapp()}}), method: post, path: "/v1/services",
			body: `{"services": [{"name": "myapp", "protocol": "PROTOCOL_TCP", "ports": {"first": 8123}, "description": "what we make"}]}`,
		},
		{
			name: "add nothing", grpc: add(&pb.AddServicesRequest{}), method: post, path: "/v1/services", body: `{}`, code: codes.InvalidArgument, http: 400,
		},
		{
			name: "add without a protocol", method: post, path: "/v1/services",
			grpc: add(&pb.AddServicesRequest{Services: []*pb.ServiceEntry{{Name: "x", Ports: &pb.PortRange{First: 8124}}}}),
			body: `{"services": [{"name": "x", "ports": {"first": 8124}}]}`, code: codes.InvalidArgument, http: 400,
		},
		{
			name: "add a port that is none", method: post, path: "/v1/services",
			grpc: add(&pb.AddServicesRequest{Services: []*pb.ServiceEntry{{Name: "x", Protocol: tcp, Ports: &pb.PortRange{First: 70000}}}}),
			body: `{"services": [{"name": "x", "protocol": "PROTOCOL_TCP", "ports": {"first": 70000}}]}`, code: codes.InvalidArgument, http: 400,
		},
		{
			name: "add what clashes", method: post, path: "/v1/services",
			grpc: add(&pb.AddServicesRequest{Services: []*pb.ServiceEntry{{Name: "notweb", Protocol: tcp, Ports: &pb.PortRange{First: 443}}}}),
			body: `{"services": [{"name": "notweb", "protocol": "PROTOCOL_TCP", "ports": {"first": 443}}]}`, code: codes.AlreadyExists, http: 409,
		},
		{
			name: "edit", method: post, path: "/v1/services:edit",
			grpc: edit(&pb.EditServicesRequest{
				Name: "myapp", Service: &pb.ServiceEntry{Description: "ours"}, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"description"}},
			}),
			body: `{"name": "myapp", "service": {"description": "ours"}, "updateMask": "description"}`,
		},
		{
			name: "edit nothing", grpc: edit(&pb.EditServicesRequest{Name: "myapp"}), method: post, path: "/v1/services:edit",
			body: `{"name": "myapp"}`, code: codes.InvalidArgument, http: 400,
		},
		{
			name: "edit what cannot be", method: post, path: "/v1/services:edit",
			grpc: edit(&pb.EditServicesRequest{Name: "myapp", UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"notes", "changed_by"}}}),
			body: `{"name": "myapp", "updateMask": "notes,changedBy"}`, code: codes.InvalidArgument, http: 400,
		},
		{
			name: "edit what is not there", method: post, path: "/v1/services:edit",
			grpc: edit(&pb.EditServicesRequest{Name: "https", UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"notes"}}}),
			body: `{"name": "https", "updateMask": "notes"}`, code: codes.NotFound, http: 404,
		},
		{
			name: "remove what is not there", grpc: remove(&pb.RemoveServicesRequest{Name: "https"}), method: post, path: "/v1/services:remove",
			body: `{"name": "https"}`, code: codes.NotFound, http: 404,
		},
		{
			name: "remove port 0", grpc: remove(&pb.RemoveServicesRequest{Name: "myapp", Ports: &pb.PortRange{}}), method: post, path: "/v1/services:remove",
			body: `{"name": "myapp", "ports": {}}`, code: codes.InvalidArgument, http: 400,
		},
		{
			name: "remove nothing", grpc: remove(&pb.RemoveServicesRequest{}), method: post, path: "/v1/services:remove",
			body: `{}`, code: codes.InvalidArgument, http: 400,
		},
		{
			name: "undo nothing", method: post, path: "/v1/services:undoImport", body: `{}`, code: codes.NotFound, http: 404,
			grpc: func(ctx context.Context) (proto.Message, error) {
				return services.UndoImport(ctx, &pb.UndoImportRequest{})
			},
		},
		{
			name: "free ports", path: "/v1/ports:free?protocols=PROTOCOL_TCP&protocols=PROTOCOL_UDP&within.first=1&within.last=1000&count=4",
			grpc: free(&pb.ListFreePortsRequest{Protocols: []pb.Protocol{tcp, udp}, Within: &pb.PortRange{First: 1, Last: 1000}, Count: 4}),
		},
		{
			name: "free ports of nothing", grpc: free(&pb.ListFreePortsRequest{}), path: "/v1/ports:free", code: codes.InvalidArgument, http: 400,
		},
		{
			name: "free ports of any protocol", grpc: free(&pb.ListFreePortsRequest{Protocols: []pb.Protocol{0}}),
			path: "/v1/ports:free?protocols=PROTOCOL_UNSPECIFIED", code: codes.InvalidArgument, http: 400,
		},
		{
			name: "status", path: "/v1/status",
			grpc: func(ctx context.Context) (proto.Message, error) {
				return pb.NewDaemonServiceClient(conn).GetStatus(ctx, &pb.GetStatusRequest{})
			},
		},
	}
	for _, q := range tests {
		q.ask(t, rest)
	}
}

// info is what an error says to programs.
func info(err error) *errdetails.ErrorInfo {
	for _, d := range status.Convert(err).Details() {
		if i, ok := d.(*errdetails.ErrorInfo); ok {
			return i
		}
	}
	return nil
}

func TestNearNames(t *testing.T) {
	services := pb.NewServiceRegistryServiceClient(start(t, nil).grpc(t))
	_, err := services.LookupServices(t.Context(), &pb.LookupServicesRequest{Query: &pb.LookupServicesRequest_Name{Name: "htpps"}})
	near := info(err).GetMetadata()["near"]
	if status.Code(err) != codes.NotFound || !strings.HasPrefix(near, "https") || info(err).GetReason() != "NOT_FOUND" ||
		!strings.Contains(err.Error(), "near: "+strings.ReplaceAll(near, ",", ", ")) {
		t.Errorf("got %v, near %q", err, near)
	}
	_, err = services.LookupServices(t.Context(), &pb.LookupServicesRequest{Query: &pb.LookupServicesRequest_Name{Name: "qqqqqqqqqqqqqq"}})
	if status.Code(err) != codes.NotFound || info(err).GetMetadata()["near"] != "" {
		t.Errorf("near to nothing: %v", err)
	}
}

// An error is small, whatever the question was: it goes in headers, of which many clients take 8 kB.
func TestErrorsAreSmall(t *testing.T) {
	services := pb.NewServiceRegistryServiceClient(start(t, nil).grpc(t))
	long := strings.Repeat("\x1b[2J", 10_000)
	ask := func(req *pb.LookupServicesRequest) error { return second(services.LookupServices(t.Context(), req)) }
	for what, err := range map[string]error{
		"look up a name": ask(&pb.LookupServicesRequest{Query: &pb.LookupServicesRequest_Name{Name: long}}),
		"look up a letter": ask(&pb.LookupServicesRequest{
			Query: &pb.LookupServicesRequest_Name{Name: strings.Repeat("x", 1000)}, Protocol: pb.Protocol_PROTOCOL_TCP,
		}),
		"search":      second(services.SearchServices(t.Context(), &pb.SearchServicesRequest{Query: long})),
		"page":        second(services.ListServices(t.Context(), &pb.ListServicesRequest{PageToken: long})),
		"remove":      second(services.RemoveServices(t.Context(), &pb.RemoveServicesRequest{Name: long})),
		"remove name": second(services.RemoveServices(t.Context(), &pb.RemoveServicesRequest{Name: "\x1b[2J"})),
		"edit": second(services.EditServices(t.Context(), &pb.EditServicesRequest{
			Name: "myapp", UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{long}},
		})),
		"add": second(services.AddServices(t.Context(), &pb.AddServicesRequest{Services: []*pb.ServiceEntry{{Name: long}}})),
		"alias": second(services.AddServices(t.Context(), &pb.AddServicesRequest{Services: []*pb.ServiceEntry{
			{Name: "x", Protocol: pb.Protocol_PROTOCOL_TCP, AliasOf: long},
		}})),
		"code": second(services.AddServices(t.Context(), &pb.AddServicesRequest{Services: []*pb.ServiceEntry{
			{Name: "x", Protocol: pb.Protocol_PROTOCOL_DCCP, Ports: &pb.PortRange{First: 29}, ServiceCode: strings.Repeat("9", 4000)},
		}})),
		"clash": second(services.AddServices(t.Context(), &pb.AddServicesRequest{Services: []*pb.ServiceEntry{
			{Name: "x", Protocol: pb.Protocol_PROTOCOL_TCP, Ports: &pb.PortRange{First: 1, Last: 65535}},
		}})),
	} {
		if size := proto.Size(status.Convert(err).Proto()); err == nil || size > 2048 || strings.Contains(err.Error(), "\x1b") {
			t.Errorf("%s: %d bytes: %.200q", what, size, err)
		}
	}
}

// What was asked for before is answered as if it had not been, after a change too, and whoever asks meanwhile.
func TestHotAnswers(t *testing.T) {
	h := start(t, nil)
	client := pb.NewServiceRegistryServiceClient(h.grpc(t))
	var reqs []*pb.LookupServicesRequest
	for _, port := range []uint32{0, 8, 80, 443, 443 + 256, 443 ^ 32, 8123, 6005, 65535} { // some of them in the same place
		for p := range pb.Protocol(6) {
			reqs = append(reqs, &pb.LookupServicesRequest{Query: &pb.LookupServicesRequest_Port{Port: port}, Protocol: p})
		}
	}
	check := func(what string) {
		t.Helper()
		for range 3 {
			for _, req := range reqs {
				got, err := client.LookupServices(t.Context(), req)
				if err != nil {
					t.Fatal(err)
				}
				want, err := services.Lookup(h.reg.Services(), req)
				if err != nil {
					t.Fatal(err)
				}
				if diff := differ(want, got.GetLookup()); diff != "" || len(got.ProtoReflect().GetUnknown()) > 0 {
					t.Fatalf("%s, %v: %s", what, req, diff)
				}
			}
		}
	}
	check("at first")
	if _, err := client.AddServices(t.Context(), &pb.AddServicesRequest{Services: []*pb.ServiceEntry{myapp()}}); err != nil {
		t.Fatal(err)
	}
	check("with an entry of our own")
	_, next := edition(t)
	if _, err := send(t.Context(), client, pieces(next, 1<<20)...); err != nil {
		t.Fatal(err)
	}
	check("after an import")

	var asking errgroup.Group
	for i := range 4 {
		asking.Go(func() error {
			for range 3 {
				for j := range reqs {
					req := reqs[(i*7+j)%len(reqs)]
					got, err := client.LookupServices(t.Context(), req)
					if err != nil {
						return err
					}
					if a := got.GetLookup().GetAssignments()[0]; a.GetPort() != req.GetPort() {
						return fmt.Errorf("%v is answered with %v", req, a)
					}
				}
			}
			return nil
		})
	}
	asking.Go(func() error {
		for range 5 {
			if _, err := client.UndoImport(t.Context(), &pb.UndoImportRequest{}); err != nil {
				return err
			}
		}
		return nil
	})
	if err := asking.Wait(); err != nil {
		t.Error(err)
	}
	check("after all")
}

// me is the principal of this process, and own are the host's own entries.
func (h *host) me(t *testing.T) string {
	t.Helper()
	st, err := pb.NewDaemonServiceClient(h.grpc(t)).GetStatus(t.Context(), &pb.GetStatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	return st.GetCaller()
}

func (h *host) own(t *testing.T) []string {
	t.Helper()
	l, err := pb.NewServiceRegistryServiceClient(h.grpc(t)).ListServices(t.Context(), &pb.ListServicesRequest{Source: pb.EntrySource_ENTRY_SOURCE_HOST})
	if err != nil {
		t.Fatal(err)
	}
	return lines(l.GetServices())
}

// All ports at once fit into what a gRPC client takes that nobody has told to take more, and REST has the same.
func TestLookupAllPorts(t *testing.T) {
	h := start(t, nil)
	q := question{
		name: "all ports", path: "/v1/ports:whois?ports.first=0&ports.last=65535&protocol=PROTOCOL_SCTP",
		grpc: func(ctx context.Context) (proto.Message, error) {
			return pb.NewPortServiceClient(h.grpc(t)).Whois(ctx, &pb.WhoisRequest{
				Query: &pb.WhoisRequest_Ports{Ports: &pb.PortRange{Last: 65535}}, Protocol: pb.Protocol_PROTOCOL_SCTP,
			})
		},
	}
	q.ask(t, h.rest(t))
	all, err := pb.NewServiceRegistryServiceClient(h.grpc(t)).LookupServices(t.Context(), &pb.LookupServicesRequest{
		Query: &pb.LookupServicesRequest_Ports{Ports: &pb.PortRange{Last: 65535}},
	})
	if n := len(all.GetLookup().GetEntries()); err != nil || n < 13_000 {
		t.Errorf("%d entries (%v)", n, err)
	}
}
