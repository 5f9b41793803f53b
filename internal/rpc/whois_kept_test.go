package rpc_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/portd/portd/internal/nstest"
	"github.com/portd/portd/internal/registry"
	"github.com/portd/portd/internal/rpc"
	pb "github.com/portd/portd/proto/portd/v1"
)

// An answer that is kept as it goes over the wire is never an old one: after each change the next answer tells of it, and the ones
// after that are the same. REST's answers, which are never kept, say as much.
func TestWhoisIsNeverLate(t *testing.T) {
	nstest.Need(t)
	const port = 8123
	totals := map[registry.SocketKey]rpc.Totals{}
	h := start(t, crew{totals: totals})
	conn, rest := h.grpc(t), h.rest(t)
	reservations, leases := pb.NewReservationServiceClient(conn), pb.NewLeaseServiceClient(conn)
	says := func(step, want string) {
		t.Helper()
		for range 3 {
			for proto, query := range map[pb.Protocol]string{pb.Protocol_PROTOCOL_TCP: "&protocol=PROTOCOL_TCP", pb.Protocol_PROTOCOL_UNSPECIFIED: ""} {
				got := whois(t, conn, port, proto)
				if diff := cmp.Diff(want, told(got)); diff != "" {
					t.Fatalf("%s, %v (-want +got):\n%s", step, proto, diff)
				}
				anew := &pb.WhoisResponse{}
				if err := rest.call(t.Context(), http.MethodGet, fmt.Sprintf("/v1/ports:whois?port=%d%s", port, query), "", anew); err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(told(anew), told(got)); diff != "" {
					t.Fatalf("%s, %v (-by REST +by gRPC):\n%s", step, proto, diff)
				}
			}
		}
	}
	take := func(name, lease string) *pb.Reservation {
		t.Helper()
		resp, err := reservations.Reserve(t.Context(), &pb.ReserveRequest{
			Name: name, LeaseId: lease,
			Spec: spec(&pb.EndpointSpec{Choice: &pb.EndpointSpec_Exact{Exact: &pb.PortRange{First: port, Last: port}}}),
		})
		if err != nil {
			t.Fatal(err)
		}
		return resp.GetReservation()
	}
	release := func(r *pb.Reservation) {
		t.Helper()
		if _, err := reservations.Release(t.Context(), &pb.ReleaseRequest{Reservation: r.GetId()}); err != nil {
			t.Fatal(err)
		}
	}

	says("at first", "")
	a := take("a", "")
	says("reserved", "a held workers=0\n")
	totals[registry.SocketKey{Reservation: a.GetId()}] = rpc.Totals{Workers: 2}
	says("two workers", "a held workers=2\n")
	totals[registry.SocketKey{Reservation: a.GetId()}] = rpc.Totals{Workers: 1, HandedOver: 7}
	says("one worker", "a held workers=1\n")
	clear(totals)
	if _, err := reservations.Listen(t.Context(), &pb.ListenRequest{Reservation: a.GetId()}); err != nil {
		t.Fatal(err)
	}
	says("listening", "a listening workers=0\n")

	entries := pb.NewServiceRegistryServiceClient(conn)
	if _, err := entries.AddServices(t.Context(), &pb.AddServicesRequest{Services: []*pb.ServiceEntry{myapp()}}); err != nil {
		t.Fatal(err)
	}
	says("with an entry", "myapp\na listening workers=0\n")

	rules, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	table := redirect(rules, port)
	if err := rules.Flush(); err != nil {
		t.Fatal(err)
	}
	says("redirected", "myapp\na listening workers=0\nto 10.0.0.1:80\n")
	rules.DelTable(table)
	if err := rules.Flush(); err != nil {
		t.Fatal(err)
	}
	says("not redirected", "myapp\na listening workers=0\n")

	release(a)
	says("released", "myapp\n")
	ln, err := net.ListenTCP("tcp4", &net.TCPAddr{Port: port})
	if err != nil {
		t.Fatal(err)
	}
	says("foreign", "myapp\nLISTENING by 1\n")
	ln.Close()
	says("closed", "myapp\n")

	made, err := leases.CreateLease(t.Context(), &pb.CreateLeaseRequest{
		Spec: &pb.LeaseSpec{Kind: &pb.LeaseSpec_Ttl{Ttl: durationpb.New(10 * time.Minute)}},
	})
	if err != nil {
		t.Fatal(err)
	}
	b := take("b", made.GetLease().GetId())
	says("reserved again", "myapp\nb held workers=0 ttl 10m0s\n")
	before := expires(t, conn, port)
	if _, err := leases.RenewLease(t.Context(), &pb.RenewLeaseRequest{LeaseId: made.GetLease().GetId()}); err != nil {
		t.Fatal(err)
	}
	if after := expires(t, conn, port); !after.After(before) {
		t.Errorf("renewed until %v, and before that until %v", after, before)
	}
	release(b)
	says("released again", "myapp\n")
}

// Whose a reservation is each caller is told for himself, though the other's answer is kept.
func TestWhoisYours(t *testing.T) {
	nstest.Need(t)
	h := start(t, nil)
	mine := h.grpc(t)
	r := reserve(t, mine, "mine")
	port := r.GetAssigned()[0].GetEndpoint().GetPorts().GetFirst()
	other := uintptr(65534)
	if os.Getuid() == 65534 {
		other--
	}
	probe, err := dialAs(h.socket, other)
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EINVAL) {
		t.Skipf("needs another user to be: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	probe.Close()
	theirs, err := dialGRPC(h.socket, grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) {
		return dialAs(h.socket, other)
	}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { theirs.Close() })
	for range 3 {
		for conn, want := range map[*grpc.ClientConn]bool{mine: true, theirs: false} {
			uses := whois(t, conn, port, pb.Protocol_PROTOCOL_TCP).GetUses()
			if len(uses) != 1 || uses[0].GetReservation().GetYours() != want {
				t.Errorf("%v, want one that is yours=%v", uses, want)
			}
		}
	}
}

// dialAs connects as a user, on a thread that is never used again.
func dialAs(socket string, uid uintptr) (c net.Conn, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if _, _, errno := syscall.RawSyscall(syscall.SYS_SETRESUID, uid, uid, uid); errno != 0 {
			err = fmt.Errorf("become user %d: %w", uid, errno)
			return
		}
		c, err = net.Dial("unix", socket)
	}()
	<-done
	return c, err
}

func whois(t *testing.T, conn *grpc.ClientConn, port uint32, p pb.Protocol) *pb.WhoisResponse {
	t.Helper()
	got, err := pb.NewPortServiceClient(conn).Whois(t.Context(), &pb.WhoisRequest{Query: &pb.WhoisRequest_Port{Port: port}, Protocol: p})
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// told is what an answer says, but for when.
func told(who *pb.WhoisResponse) string {
	var s strings.Builder
	for _, e := range who.GetLookup().GetEntries() {
		if e.GetName() == myapp().GetName() {
			fmt.Fprintln(&s, e.GetName())
		}
	}
	for _, u := range who.GetUses() {
		if r := u.GetReservation(); r != nil {
			fmt.Fprintln(&s, strings.TrimSpace(fmt.Sprintf("%s %s workers=%d %s", r.GetName(), r.GetState(), r.GetWorkers(), r.GetLease())))
		}
		if f := u.GetHolder(); f != nil {
			fmt.Fprintf(&s, "%s by %d\n", short(f.GetState()), len(f.GetProcesses()))
		}
	}
	for _, r := range who.GetRedirects() {
		fmt.Fprintln(&s, "to", r.GetTo())
	}
	return s.String()
}

func expires(t *testing.T, conn *grpc.ClientConn, port uint32) time.Time {
	t.Helper()
	uses := whois(t, conn, port, pb.Protocol_PROTOCOL_TCP).GetUses()
	if len(uses) != 1 {
		t.Fatalf("uses: %v", uses)
	}
	return uses[0].GetReservation().GetExpireTime().AsTime()
}

// redirect sends what arrives for a port of TCP elsewhere.
func redirect(c *nftables.Conn, port uint16) *nftables.Table {
	table := c.AddTable(&nftables.Table{Name: "nat", Family: nftables.TableFamilyIPv4})
	chain := c.AddChain(&nftables.Chain{
		Name: "pre", Table: table, Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityNATDest,
	})
	c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_TCP}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.BigEndian.PutUint16(port)},
		&expr.Immediate{Register: 1, Data: net.IPv4(10, 0, 0, 1).To4()},
		&expr.Immediate{Register: 2, Data: binaryutil.BigEndian.PutUint16(80)},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: 1, RegProtoMin: 2},
	}})
	return table
}
