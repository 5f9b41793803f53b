package rpc_test

import (
	"net"
	"strings"
	"testing"

	"github.com/portd/portd/internal/nstest"
	pb "github.com/portd/portd/proto/portd/v1"
)

// Ports that BenchmarkWhois asks for, in a network namespace of its own.
const (
	benchHeld    = 7001
	benchNothing = 7002
	benchForeign = 7003
)

// BenchmarkWhois asks who has a port, from a process of its own, and reports how much longer that takes than a call that does nothing:
// a port that portd holds, one with nothing at all, and one on which another program listens; TCP alone, and all protocols.
func BenchmarkWhois(b *testing.B) {
	nstest.Need(b)
	h := start(b, nil)
	conn := h.grpc(b)
	if _, err := pb.NewReservationServiceClient(conn).Reserve(b.Context(), &pb.ReserveRequest{
		Spec: spec(&pb.EndpointSpec{Choice: &pb.EndpointSpec_Exact{Exact: &pb.PortRange{First: benchHeld, Last: benchHeld}}}),
	}); err != nil {
		b.Fatal(err)
	}
	ln, err := net.ListenTCP("tcp4", &net.TCPAddr{Port: benchForeign})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { ln.Close() })
	for _, name := range []string{"held", "nothing", "foreign"} {
		for _, proto := range []string{"tcp", "udp", "all"} {
			b.Run(name+"/"+proto, func(b *testing.B) { compareApart(b, h.socket, "whois/"+name+"/"+proto) })
		}
	}
}

// whoisOf is the question of a benchmark by its name.
func whoisOf(name string) (req *pb.WhoisRequest, is bool) {
	parts := strings.Split(name, "/")
	if len(parts) != 3 || parts[0] != "whois" {
		return nil, false
	}
	port := map[string]uint32{"held": benchHeld, "nothing": benchNothing, "foreign": benchForeign}[parts[1]]
	req = &pb.WhoisRequest{Query: &pb.WhoisRequest_Port{Port: port}}
	switch parts[2] {
	case "tcp":
		req.Protocol = pb.Protocol_PROTOCOL_TCP
	case "udp":
		req.Protocol = pb.Protocol_PROTOCOL_UDP
	}
	return req, true
}
