package rpc_test

import (
	"fmt"
	"net"
	"os"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/portd/portd/internal/nstest"
	"github.com/portd/portd/internal/registry"
	"github.com/portd/portd/internal/rpc"
	pb "github.com/portd/portd/proto/portd/v1"
)

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

// Whois of a range tells of every port of it.
func TestWhoisRange(t *testing.T) {
	nstest.Need(t)
	h := start(t, nil)
	conn := h.grpc(t)
	_, err := pb.NewReservationServiceClient(conn).Reserve(t.Context(), &pb.ReserveRequest{
		Name: "web", Spec: spec(&pb.EndpointSpec{Choice: &pb.EndpointSpec_Exact{Exact: &pb.PortRange{First: 6000, Last: 6003}}}),
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, port := range []string{"6007", "6005", "6011"} {
		foreign, err := net.Listen("tcp4", "127.0.0.1:"+port)
		if err != nil {
			t.Fatal(err)
		}
		defer foreign.Close()
	}
	ports := pb.NewPortServiceClient(conn)
	for name, req := range map[string]*pb.WhoisRequest{
		"range": {Query: &pb.WhoisRequest_Ports{Ports: &pb.PortRange{First: 6000, Last: 6010}}},
		"tcp":   {Query: &pb.WhoisRequest_Ports{Ports: &pb.PortRange{First: 6000, Last: 6010}}, Protocol: pb.Protocol_PROTOCOL_TCP},
	} {
		who, err := ports.Whois(t.Context(), req)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, u := range who.GetUses() {
			got = append(got, u.GetEndpoint().GetText())
		}
		if diff := cmp.Diff([]string{"tcp/6000-6003", "tcp/127.0.0.1:6005", "tcp/127.0.0.1:6007"}, got); diff != "" || len(who.GetHidden()) > 0 {
			t.Errorf("%s: %s %v", name, diff, who.GetHidden())
		}
	}
	byName, err := ports.Whois(t.Context(), &pb.WhoisRequest{Query: &pb.WhoisRequest_Name{Name: "x11"}})
	if err != nil || len(byName.GetUses()) != 4 || len(byName.GetHidden()) > 0 { // 6000-6063, tcp and udp
		t.Errorf("x11: %v (%v)", byName.GetUses(), err)
	}
}

// Free ports are those that nobody has, with the registry, the reservations and the sockets of others each left out.
func TestListFreePorts(t *testing.T) {
	nstest.Need(t)
	h := start(t, nil)
	conn := h.grpc(t)
	services, ports := pb.NewServiceRegistryServiceClient(conn), pb.NewPortServiceClient(conn)
	within := &pb.PortRange{First: 29170, Last: 29998} // the largest run that IANA has assigned nothing of
	ask := func(count uint32, p ...pb.Protocol) *pb.ListFreePortsResponse {
		t.Helper()
		resp, err := ports.ListFreePorts(t.Context(), &pb.ListFreePortsRequest{Protocols: p, Within: within, Count: count})
		if err != nil {
			t.Fatal(err)
		}
		return resp
	}
	ranges := func(r *pb.ListFreePortsResponse) (all []string) {
		for _, p := range r.GetRanges() {
			all = append(all, fmt.Sprintf("%d-%d", p.GetFirst(), p.GetLast()))
		}
		return all
	}
	if got := ask(0, pb.Protocol_PROTOCOL_TCP); !cmp.Equal(ranges(got), []string{"29170-29998"}) || got.GetFree() != 829 || !got.GetHostChecked() {
		t.Fatalf("nobody is there: %v", got)
	}
	_, err := services.AddServices(t.Context(), &pb.AddServicesRequest{Services: []*pb.ServiceEntry{
		{Name: "myapp", Protocol: pb.Protocol_PROTOCOL_TCP, Ports: &pb.PortRange{First: 29200, Last: 29209}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	_, err = pb.NewReservationServiceClient(conn).Reserve(t.Context(), &pb.ReserveRequest{
		Spec: spec(&pb.EndpointSpec{Choice: &pb.EndpointSpec_Exact{Exact: &pb.PortRange{First: 29300, Last: 29304}}}),
	})
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := net.Listen("tcp4", "127.0.0.1:29400")
	if err != nil {
		t.Fatal(err)
	}
	defer foreign.Close()
	packets, err := net.ListenPacket("udp6", "[::1]:29500")
	if err != nil {
		t.Fatal(err)
	}
	defer packets.Close()

	got := ask(0, pb.Protocol_PROTOCOL_TCP)
	want := []string{"29170-29199", "29210-29299", "29305-29399", "29401-29998"}
	if diff := cmp.Diff(want, ranges(got)); diff != "" {
		t.Error(diff)
	}
	if got.GetAssigned() != 10 || got.GetReserved() != 5 || got.GetInUse() != 1 || got.GetFree() != 829-16 || got.GetRegistryDate() == "" {
		t.Errorf("got %v", got)
	}
	if diff := cmp.Diff([]string{"29305-29399", "29401-29499", "29501-29998"}, ranges(ask(95, pb.Protocol_PROTOCOL_TCP, pb.Protocol_PROTOCOL_UDP))); diff != "" {
		t.Errorf("95 of both: %s", diff)
	}
}

// A question about very much is answered in part, and the answer says so.
func TestWhoisBounds(t *testing.T) {
	nstest.Need(t)
	h := start(t, nil)
	conn := h.grpc(t)
	services, ports := pb.NewServiceRegistryServiceClient(conn), pb.NewPortServiceClient(conn)
	var many []*pb.ServiceEntry
	for port := range uint32(65) {
		many = append(many, &pb.ServiceEntry{Name: "many", Protocol: pb.Protocol_PROTOCOL_TCP, Ports: &pb.PortRange{First: 29200 + 2*port}})
	}
	if _, err := services.AddServices(t.Context(), &pb.AddServicesRequest{Services: many, Override: true}); err != nil {
		t.Fatal(err)
	}
	var addresses []string
	for i := range 91 {
		addresses = append(addresses, fmt.Sprintf("127.0.1.%d", i+1))
	}
	for port := range uint32(11) {
		noted := spec(&pb.EndpointSpec{Addresses: addresses, Choice: &pb.EndpointSpec_Exact{Exact: &pb.PortRange{First: 29500 + port}}})
		noted.Mode = pb.Mode_MODE_RECORDED
		if _, err := pb.NewReservationServiceClient(conn).Reserve(t.Context(), &pb.ReserveRequest{Spec: noted}); err != nil {
			t.Fatal(err)
		}
	}
	for hidden, req := range map[string]*pb.WhoisRequest{
		"only the first 64 of 65 runs of ports were looked at: ask for fewer": {Query: &pb.WhoisRequest_Name{Name: "many"}},
		"only the first 1000 of 1001 uses are shown: ask for fewer ports": {
			Query: &pb.WhoisRequest_Ports{Ports: &pb.PortRange{First: 29500, Last: 29600}}, Protocol: pb.Protocol_PROTOCOL_TCP,
		},
	} {
		who, err := ports.Whois(t.Context(), req)
		if err != nil || !slices.Contains(who.GetHidden(), hidden) || len(who.GetUses()) > 1000 {
			t.Errorf("%d uses, hidden %q (%v), want %q", len(who.GetUses()), who.GetHidden(), err, hidden)
		}
	}
}
