package rpc_test

import (
	"fmt"
	"net"
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/portd/portd/internal/nstest"
	"github.com/portd/portd/internal/registry"
	"github.com/portd/portd/internal/rpc"
	pb "github.com/portd/portd/proto/portd/v1"
)

func TestLookupServices(t *testing.T) {
	services := pb.NewServiceRegistryServiceClient(start(t, nil).grpc(t))
	byPort := func(port uint32, p pb.Protocol) *pb.LookupServicesRequest {
		return &pb.LookupServicesRequest{Query: &pb.LookupServicesRequest_Port{Port: port}, Protocol: p}
	}
	byName := func(name string, p pb.Protocol) *pb.LookupServicesRequest {
		return &pb.LookupServicesRequest{Query: &pb.LookupServicesRequest_Name{Name: name}, Protocol: p}
	}
	tests := []struct {
		name string
		req  *pb.LookupServicesRequest
		want []string // class, entries, assignments
	}{
		{"80", byPort(80, 0), []string{
			"SYSTEM",
			"http TCP 80-80", "http UDP 80-80", "www TCP 80-80", "www UDP 80-80", "www-http TCP 80-80", "www-http UDP 80-80", "http SCTP 80-80",
			"TCP 80 ASSIGNED", "UDP 80 ASSIGNED", "SCTP 80 ASSIGNED", "DCCP 80 NONE",
		}},
		{"80 of sctp", byPort(80, pb.Protocol_PROTOCOL_SCTP), []string{"SYSTEM", "http SCTP 80-80", "SCTP 80 ASSIGNED"}},
		{"53 of udplite, which has udp's ports", byPort(53, pb.Protocol_PROTOCOL_UDPLITE), []string{"SYSTEM", "domain UDP 53-53", "UDPLITE 53 ASSIGNED"}},
		{"0", byPort(0, pb.Protocol_PROTOCOL_TCP), []string{"SYSTEM", " TCP 0-0", "TCP 0 RESERVED"}},
		{"65535", byPort(65535, pb.Protocol_PROTOCOL_TCP), []string{"DYNAMIC", "TCP 65535 DYNAMIC"}},
		{"https, in capitals", byName("HTTPS", 0), []string{"UNSPECIFIED", "https TCP 443-443", "https UDP 443-443", "https SCTP 443-443", "https TCP"}},
		{"https of sctp", byName("https", pb.Protocol_PROTOCOL_SCTP), []string{"UNSPECIFIED", "https SCTP 443-443"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			resp, err := services.LookupServices(t.Context(), tt.req)
			if err != nil {
				t.Fatal(err)
			}
			l := resp.GetLookup()
			got := []string{short(l.GetPortClass())}
			for _, e := range l.GetEntries() {
				s := e.GetName() + " " + short(e.GetProtocol())
				if p := e.GetPorts(); p != nil {
					s += fmt.Sprintf(" %d-%d", p.GetFirst(), p.GetLast())
				}
				got = append(got, s)
			}
			for _, a := range l.GetAssignments() {
				got = append(got, fmt.Sprintf("%s %d %s", short(a.GetProtocol()), a.GetPort(), short(a.GetStatus())))
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// short is an enum's value without the enum's name.
func short(e fmt.Stringer) string {
	s := e.String()
	for _, prefix := range []string{"PORT_CLASS_", "PROTOCOL_", "ASSIGNMENT_STATUS_", "ENDPOINT_STATE_", "SOCKET_STATE_"} {
		if len(s) > len(prefix) && s[:len(prefix)] == prefix {
			return s[len(prefix):]
		}
	}
	return s
}

// Whois by name tells of every port of the name: here one that is ours, one that is another program's and one that is free.
func TestWhoisByName(t *testing.T) {
	nstest.Need(t)
	h := start(t, everywhere{crew{}, 3})
	conn := h.grpc(t)
	resp, err := pb.NewReservationServiceClient(conn).Reserve(t.Context(), &pb.ReserveRequest{
		Name: "web", Spec: spec(&pb.EndpointSpec{Choice: &pb.EndpointSpec_Exact{Exact: &pb.PortRange{First: 8000, Last: 8009}}}),
	})
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := net.Listen("tcp4", "127.0.0.1:8080")
	if err != nil {
		t.Fatal(err)
	}
	defer foreign.Close()
	who, err := pb.NewPortServiceClient(conn).Whois(t.Context(), &pb.WhoisRequest{
		Query: &pb.WhoisRequest_Name{Name: "http-alt"}, Protocol: pb.Protocol_PROTOCOL_TCP,
	})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, u := range who.GetUses() {
		s := u.GetEndpoint().GetText()
		if r := u.GetReservation(); r != nil {
			s += fmt.Sprintf(" %s %s yours=%v %s workers=%d", r.GetName(), r.GetOwner(), r.GetYours(), r.GetState(), r.GetWorkers())
			if r.GetId() != resp.GetReservation().GetId() {
				t.Errorf("%s is reserved by %s", s, r.GetId())
			}
		}
		if f := u.GetHolder(); f != nil {
			s += fmt.Sprintf(" %s uid=%d", short(f.GetState()), f.GetUid())
			if len(f.GetProcesses()) != 1 || int(f.GetProcesses()[0].GetPid()) != os.Getpid() {
				t.Errorf("%s is of %v, want this process", s, f.GetProcesses())
			}
		}
		got = append(got, s)
	}
	want := []string{
		fmt.Sprintf("tcp/8000-8009 web uid:%d yours=true held workers=3", os.Geteuid()), // http-alt is 591, 8008 and 8080
		fmt.Sprintf("tcp/127.0.0.1:8080 LISTENING uid=%d", os.Geteuid()),
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if n := len(who.GetLookup().GetEntries()); n < 3 {
		t.Errorf("http-alt has %d entries", n)
	}
}

// everywhere has as many workers on every listener.
type everywhere struct {
	crew
	workers int
}

func (e everywhere) Totals(registry.SocketKey) rpc.Totals { return rpc.Totals{Workers: e.workers} }

// A name of many ports is looked at up to a bound, and the answer says so.
func TestWhoisOfManyPorts(t *testing.T) {
	conn := start(t, nil).grpc(t)
	who, err := pb.NewPortServiceClient(conn).Whois(t.Context(), &pb.WhoisRequest{Query: &pb.WhoisRequest_Name{Name: "x11"}})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"only the first 64 of 128 ports were looked at: ask for one"}
	if diff := cmp.Diff(want, who.GetHidden()); diff != "" {
		t.Error(diff)
	}
}

// What a reservation has lost to another program is shown with that program.
func TestLost(t *testing.T) {
	nstest.Need(t)
	dir := t.TempDir()
	h := startIn(t, dir, nil)
	resp, err := pb.NewReservationServiceClient(h.grpc(t)).Reserve(t.Context(), &pb.ReserveRequest{
		Name: "web", Spec: spec(&pb.EndpointSpec{Choice: &pb.EndpointSpec_Exact{Exact: &pb.PortRange{First: 8000, Last: 8003}}}),
	})
	if err != nil {
		t.Fatal(err)
	}
	h.stop()
	thief, err := net.Listen("tcp4", "127.0.0.1:8001")
	if err != nil {
		t.Fatal(err)
	}
	defer thief.Close()

	reservations := pb.NewReservationServiceClient(startIn(t, dir, nil).grpc(t))
	got, err := reservations.GetReservation(t.Context(), &pb.GetReservationRequest{Reservation: "web"})
	if err != nil {
		t.Fatal(err)
	}
	list, err := reservations.ListReservations(t.Context(), &pb.ListReservationsRequest{
		Filter: &pb.ReservationFilter{States: []pb.EndpointState{pb.EndpointState_ENDPOINT_STATE_LOST}},
	})
	if err != nil || len(list.GetReservations()) != 1 {
		t.Fatalf("lost reservations: %v (%v)", list, err)
	}
	for _, r := range []*pb.Reservation{got.GetReservation(), list.GetReservations()[0]} {
		if r.GetId() != resp.GetReservation().GetId() || len(r.GetAssigned()) != 1 {
			t.Fatalf("got %v", r)
		}
		a := r.GetAssigned()[0]
		if len(a.GetExceptions()) != 1 || short(a.GetState()) != "HELD" {
			t.Fatalf("got %v, want it held but for one port", a)
		}
		e := a.GetExceptions()[0]
		if e.GetPorts().GetFirst() != 8001 || e.GetPorts().GetLast() != 8001 || short(e.GetState()) != "LOST" ||
			len(e.GetHolders()) != 1 || e.GetHolders()[0].GetEndpoint().GetText() != "tcp/127.0.0.1:8001" {
			t.Errorf("got %v, want 8001 lost to who listens on it", e)
		}
	}
}
