package daemon_test

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/portd/portd/internal/nstest"
	"github.com/portd/portd/internal/portdtest"
	pb "github.com/portd/portd/proto/portd/v1"
)

// A rule that comes while portd runs is told of by the next answer, in whois and in the list of all ports.
func TestRedirectsAreTold(t *testing.T) {
	nstest.Need(t)
	c := portdtest.Start(t).Client(t)
	rules, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	table := rules.AddTable(&nftables.Table{Name: "told", Family: nftables.TableFamilyIPv4})
	pre := rules.AddChain(&nftables.Chain{
		Name: "pre", Table: table, Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityNATDest,
	})
	rules.AddRule(&nftables.Rule{Table: table, Chain: pre, Exprs: []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_TCP}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{7499 >> 8, 7499 & 0xff}},
		&expr.Immediate{Register: 1, Data: []byte{0, 80}},
		&expr.Redir{RegisterProtoMin: 1},
	}})
	ask := func() *pb.WhoisResponse {
		t.Helper()
		who, err := c.Ports.Whois(t.Context(), &pb.WhoisRequest{Query: &pb.WhoisRequest_Port{Port: 7499}})
		if err != nil {
			t.Fatal(err)
		}
		return who
	}
	if before := ask(); len(before.GetRedirects()) != 0 {
		t.Errorf("before there is a rule: %v", before.GetRedirects())
	}
	switch err := rules.Flush(); {
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EOPNOTSUPP):
		t.Skipf("needs to make rules of nftables: %v", err)
	case err != nil:
		t.Fatal(err)
	}
	t.Cleanup(func() {
		rules.DelTable(table)
		_ = rules.Flush()
	})
	want := []*pb.Redirect{{
		Protocol: pb.Protocol_PROTOCOL_TCP, Ports: &pb.PortRange{First: 7499, Last: 7499}, To: ":80", Rule: "nftables ip told pre",
	}}
	if diff := cmp.Diff(want, ask().GetRedirects(), protocmp.Transform()); diff != "" {
		t.Errorf("whois (-want +got):\n%s", diff)
	}
	stream, err := c.Ports.ListPortUses(t.Context(), &pb.ListPortUsesRequest{Ports: &pb.PortRange{First: 7490, Last: 7499}})
	if err != nil {
		t.Fatal(err)
	}
	part, err := stream.Recv()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, part.GetRedirects(), protocmp.Transform()); diff != "" {
		t.Errorf("list (-want +got):\n%s", diff)
	}
}
