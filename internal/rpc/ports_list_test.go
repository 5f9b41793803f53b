package rpc_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/portd/portd/internal/nstest"
	pb "github.com/portd/portd/proto/portd/v1"
)

// received is all parts of an answer as one, and how many they were.
func received(t *testing.T, recv func(*pb.ListPortUsesResponse) error) (all *pb.ListPortUsesResponse, parts int) {
	t.Helper()
	all = &pb.ListPortUsesResponse{}
	for {
		part := &pb.ListPortUsesResponse{}
		switch err := recv(part); {
		case errors.Is(err, io.EOF):
			return all, parts
		case err != nil:
			t.Fatal(err)
		}
		parts++
		if len(part.GetUses()) > 500 {
			t.Errorf("a part of %d uses", len(part.GetUses()))
		}
		all.Uses = append(all.Uses, part.GetUses()...)
		all.Hidden = append(all.Hidden, part.GetHidden()...)
		all.Connections += part.GetConnections()
		all.Leftovers += part.GetLeftovers()
	}
}

func listUses(t *testing.T, conn pb.PortServiceClient, req *pb.ListPortUsesRequest) (*pb.ListPortUsesResponse, int) {
	t.Helper()
	stream, err := conn.ListPortUses(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	return received(t, func(m *pb.ListPortUsesResponse) error {
		part, err := stream.Recv()
		if err == nil {
			m.Uses, m.Hidden, m.Connections, m.Leftovers = part.Uses, part.Hidden, part.Connections, part.Leftovers
		}
		return err
	})
}

// said is each use in short.
func said(t *testing.T, uses []*pb.PortUse) (lines []string) {
	t.Helper()
	holder := func(h *pb.Holder) string {
		line := fmt.Sprintf("%s %s", h.GetEndpoint().GetText(), short(h.GetState()))
		for _, p := range h.GetProcesses() {
			if int(p.GetPid()) != os.Getpid() || p.Uid == nil || int(p.GetUid()) != os.Geteuid() {
				t.Errorf("%s is of %v", line, p)
			}
			line += " ours"
		}
		return line
	}
	for _, u := range uses {
		if h := u.GetHolder(); h != nil {
			lines = append(lines, holder(h))
		}
		if r := u.GetReservation(); r != nil {
			line := fmt.Sprintf("%s %s %s workers=%d", u.GetEndpoint().GetText(), r.GetState(), r.GetName(), r.GetWorkers())
			for _, h := range r.GetHolders() {
				line += "; " + holder(h)
			}
			lines = append(lines, line)
		}
	}
	return lines
}

// Every port is told of once, in order, with what it is here, by gRPC and REST alike; connections are counted.
func TestListPortUses(t *testing.T) {
	nstest.Need(t)
	h := start(t, everywhere{crew{}, 2})
	conn := h.grpc(t)
	at := func(first, last uint32) *pb.EndpointSpec {
		tcp := []pb.Protocol{pb.Protocol_PROTOCOL_TCP}
		return &pb.EndpointSpec{Protocols: tcp, Choice: &pb.EndpointSpec_Exact{Exact: &pb.PortRange{First: first, Last: last}}}
	}
	for _, req := range []*pb.ReserveRequest{
		{Name: "block", Spec: spec(at(9100, 9103))},
		{Name: "own", Spec: &pb.ReservationSpec{Mode: pb.Mode_MODE_RECORDED, Endpoints: []*pb.EndpointSpec{at(9104, 9105)}}},
	} {
		if _, err := pb.NewReservationServiceClient(conn).Reserve(t.Context(), req); err != nil {
			t.Fatal(err)
		}
	}
	var config net.ListenConfig
	config.SetMultipathTCP(false)
	for _, addr := range []string{"127.0.0.1:9104", "127.0.0.1:9106"} {
		ln, err := config.Listen(t.Context(), "tcp4", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
	}
	udp, err := net.ListenPacket("udp4", "127.0.0.1:9106")
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	from := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 9107}}
	from.SetMultipathTCP(false)
	c, err := from.DialContext(t.Context(), "tcp4", "127.0.0.1:9106")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()

	want := []string{
		"tcp/9100-9103 held block workers=2",
		"tcp/9104-9105 recorded own workers=2; tcp/127.0.0.1:9104 LISTENING ours",
		"tcp/127.0.0.1:9106 LISTENING ours",
		"udp/127.0.0.1:9106 BOUND ours",
	}
	ports := &pb.PortRange{First: 9100, Last: 9109}
	req := &pb.ListPortUsesRequest{Ports: ports}
	byGRPC, parts := listUses(t, pb.NewPortServiceClient(conn), req)
	stream := h.rest(t).open(t, http.MethodGet, "/v1/ports:uses?ports.first=9100&ports.last=9109", "")
	byREST, _ := received(t, func(m *pb.ListPortUsesResponse) error { return stream.recv(m) })
	for name, got := range map[string]*pb.ListPortUsesResponse{"gRPC": byGRPC, "REST": byREST} {
		if diff := cmp.Diff(want, said(t, got.GetUses())); diff != "" {
			t.Errorf("by %s (-want +got):\n%s", name, diff)
		}
		if got.GetConnections() != 1 || got.GetLeftovers() != 0 {
			t.Errorf("by %s: %d connections, %d leftovers", name, got.GetConnections(), got.GetLeftovers())
		}
	}
	if parts != 1 {
		t.Errorf("%d parts", parts)
	}
	req.Connections = true
	req.Protocols = []pb.Protocol{pb.Protocol_PROTOCOL_TCP}
	got, _ := listUses(t, pb.NewPortServiceClient(conn), req)
	want = append(want[:3:3], "tcp/127.0.0.1:9107 CONNECTED ours")
	if diff := cmp.Diff(want, said(t, got.GetUses())); diff != "" {
		t.Errorf("with connections (-want +got):\n%s", diff)
	}
	req.Netns = "elsewhere"
	refused, err := pb.NewPortServiceClient(conn).ListPortUses(t.Context(), req)
	if err == nil {
		_, err = refused.Recv()
	}
	if status.Code(err) != codes.NotFound {
		t.Errorf("a network namespace that is not there: %v", err)
	}
}

// What is too much for one message comes in several.
func TestListPortUsesInParts(t *testing.T) {
	nstest.Need(t)
	conn := start(t, nil).grpc(t)
	const count = 1200
	for i := range count {
		c, err := net.ListenPacket("udp4", fmt.Sprintf("127.0.0.1:%d", 20000+i))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	got, parts := listUses(t, pb.NewPortServiceClient(conn), &pb.ListPortUsesRequest{
		Protocols: []pb.Protocol{pb.Protocol_PROTOCOL_UDP}, Ports: &pb.PortRange{First: 20000, Last: 20000 + count - 1},
	})
	if len(got.GetUses()) != count || parts != 3 {
		t.Fatalf("%d uses in %d parts", len(got.GetUses()), parts)
	}
	for i, u := range got.GetUses() {
		if u.GetEndpoint().GetPorts().GetFirst() != uint32(20000+i) {
			t.Fatalf("use %d is %s", i, u.GetEndpoint().GetText())
		}
	}
}
