package rpc_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"

	pb "github.com/portd/portd/proto/portd/v1"
)

// What whois says of the registry is what a look-up says, the first time and when it is kept for the wire.
func TestWhoisLooksUp(t *testing.T) {
	h := start(t, nil)
	conn := h.grpc(t)
	services, ports := pb.NewServiceRegistryServiceClient(conn), pb.NewPortServiceClient(conn)
	for range 2 {
		for _, proto := range []pb.Protocol{pb.Protocol_PROTOCOL_UNSPECIFIED, pb.Protocol_PROTOCOL_UDP} {
			who, err := ports.Whois(t.Context(), &pb.WhoisRequest{Query: &pb.WhoisRequest_Port{Port: 443}, Protocol: proto})
			if err != nil {
				t.Fatal(err)
			}
			found, err := services.LookupServices(t.Context(), &pb.LookupServicesRequest{
				Query: &pb.LookupServicesRequest_Port{Port: 443}, Protocol: proto,
			})
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(found.GetLookup(), who.GetLookup(), protocmp.Transform()); diff != "" || len(who.GetLookup().GetEntries()) == 0 {
				t.Errorf("%v (-look-up +whois):\n%s", proto, diff)
			}
		}
	}
	if _, err := ports.Whois(t.Context(), &pb.WhoisRequest{Query: &pb.WhoisRequest_Port{Port: 70000}}); err == nil {
		t.Error("port 70000 has an answer")
	}
}
