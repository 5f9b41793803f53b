package skew_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/portd/portd/client"
	pb "github.com/portd/portd/proto/portd/v1"
)

// reserve reserves something by the words that portctl takes for it.
func (s *stage) reserve(what string, req *pb.ReserveRequest) *pb.Reservation {
	s.Helper()
	spec, err := client.ParseSpec(what)
	if err != nil {
		s.Fatal(err)
	}
	if req.Spec == nil {
		req.Spec = &pb.ReservationSpec{}
	}
	req.Spec.Endpoints = append(req.Spec.Endpoints, spec)
	got, err := s.client.Reservations.Reserve(s.Context(), req)
	if err != nil {
		s.Fatalf("reserve %s: %v", what, err)
	}
	return got.GetReservation()
}

// furnish makes something of each kind that portd keeps: in the store, in the keeper, or in the hand-over between daemons.
func (s *stage) furnish() {
	s.Helper()
	ctx := s.Context()
	for i := range 60 {
		s.reserve(fmt.Sprintf("tcp/%d", 20_000+i), &pb.ReserveRequest{})
	}
	s.reserve("udp/21000-21099", &pb.ReserveRequest{Name: "range", Labels: map[string]string{"team": "skew"}})
	s.reserve("tcp/127.0.0.1:22000", &pb.ReserveRequest{Name: "recorded", Spec: &pb.ReservationSpec{Mode: pb.Mode_MODE_RECORDED}})
	s.reserve("unix"+s.dir+"/app.sock", &pb.ReserveRequest{Name: "path"})
	s.reserve("tcp/22001", &pb.ReserveRequest{Name: "hour", NewLease: &pb.LeaseSpec{Kind: &pb.LeaseSpec_Ttl{Ttl: durationpb.New(time.Hour)}}})
	s.reserve("udp/22002", &pb.ReserveRequest{Name: "several", Spec: &pb.ReservationSpec{BindOptions: &pb.BindOptions{Group: 3}}})
	s.reserve("tcp/any", &pb.ReserveRequest{Name: "before"})
	if _, err := s.client.Reservations.Release(ctx, &pb.ReleaseRequest{Reservation: "before"}); err != nil { // which leaves who had it
		s.Fatal(err)
	}
	for what, name := range map[string]string{"tcp/8080": "go", "tcp/8081": "python", "tcp/8082": "c", "unix" + s.dir + "/listens.sock": "listens"} {
		s.reserve(what, &pb.ReserveRequest{Name: name})
		_, err := s.client.Reservations.Listen(ctx, &pb.ListenRequest{Reservation: name, Options: &pb.ListenOptions{
			Backlog: 512, Handoff: &pb.HandoffOptions{Strategy: pb.Strategy_STRATEGY_ROUND_ROBIN},
		}})
		if err != nil {
			s.Fatal(err)
		}
	}
	if _, err := s.client.Services.AddServices(ctx, &pb.AddServicesRequest{Services: []*pb.ServiceEntry{{
		Name: "skewed", Ports: &pb.PortRange{First: 8123}, Protocol: pb.Protocol_PROTOCOL_TCP, Description: "Our own",
	}}}); err != nil {
		s.Fatal(err)
	}
	s.repeat()
	// A program's socket, of which portd has a duplicate.
	ln, err := net.Listen("tcp", "127.0.0.1:22003")
	if err != nil {
		s.Fatal(err)
	}
	s.Cleanup(func() { ln.Close() })
	spec, err := client.ParseSpec("tcp/127.0.0.1:22003")
	if err == nil {
		_, err = s.client.Reservations.Adopt(ctx, &pb.AdoptRequest{Endpoint: spec, Name: "adopted", Pid: int32(os.Getpid())})
	}
	if err != nil {
		s.Fatal(err)
	}
}

// repeat makes a request that was made before, maybe of the other release: it has the first one's answer.
func (s *stage) repeat() {
	s.Helper()
	got := s.reserve("tcp/any", &pb.ReserveRequest{Name: "repeated", RequestId: "the-one-request"})
	if s.repeated == "" {
		s.repeated = got.GetId()
	}
	if got.GetId() != s.repeated {
		s.Errorf("a request that is repeated reserves %s, and not %s", got.GetId(), s.repeated)
	}
}

// populate has workers of both releases serve, in all languages, and clients of theirs connect from then on.
func (s *stage) populate(some ...*release) {
	s.Helper()
	for i, r := range some {
		s.work("go", r, "go")
		python := s.work("python", r, "python")
		c := s.work("c", r, "c")
		// These have reserved their ports themselves, for as long as their sessions last.
		own := fmt.Sprintf("tcp/127.0.0.1:%d", 8090+i)
		s.work("go", r, own)
		s.gather(own[len("tcp/"):], greets)
		socket := fmt.Sprintf("udp/%d", 8095+i)
		s.reserve(socket, &pb.ReserveRequest{})
		s.work("python-socket", r, socket)
		if i > 0 {
			continue
		}
		s.gather("127.0.0.1:8080", greets)
		if python {
			s.gather("127.0.0.1:8081", echoes)
		}
		if c {
			s.gather("127.0.0.1:8082", echoes)
		}
	}
}

// everything is what a portd says of all that it has, and of how that came about.
type everything struct {
	Reservations []*pb.Reservation
	Leases       []*pb.Lease
	Services     []*pb.ServiceEntry
	History      []*pb.WatchReservationsResponse
	StoreID      string
	Lost         []string // endpoints
}

// look asks portd for everything.
func (s *stage) look() (all everything) {
	s.Helper()
	ctx, cancel := context.WithTimeout(s.Context(), 20*time.Second)
	defer cancel()
	list, err1 := s.client.Reservations.ListReservations(ctx, &pb.ListReservationsRequest{PageSize: 1000})
	leases, err2 := s.client.Leases.ListLeases(ctx, &pb.ListLeasesRequest{PageSize: 1000})
	services, err3 := s.client.Services.ListServices(ctx, &pb.ListServicesRequest{Source: pb.EntrySource_ENTRY_SOURCE_HOST})
	st, err4 := s.client.Daemon.GetStatus(ctx, &pb.GetStatusRequest{})
	if err := errors.Join(err1, err2, err3, err4); err != nil {
		s.Fatal(err)
	}
	all = everything{
		Reservations: list.GetReservations(), Leases: leases.GetLeases(), Services: services.GetServices(),
		History: s.history(1, st.GetRevision()), StoreID: st.GetStoreId(),
	}
	for _, r := range all.Reservations {
		for _, a := range r.GetAssigned() {
			if a.GetState() == pb.EndpointState_ENDPOINT_STATE_LOST {
				all.Lost = append(all.Lost, a.GetEndpoint().GetText())
			}
		}
	}
	return all
}

// history is what happened between two revisions, both included.
func (s *stage) history(from, to int64) (all []*pb.WatchReservationsResponse) {
	s.Helper()
	if to < from {
		return nil
	}
	ctx, cancel := context.WithTimeout(s.Context(), 20*time.Second)
	defer cancel()
	stream, err := s.client.Reservations.WatchReservations(ctx, &pb.WatchReservationsRequest{StartRevision: from})
	for err == nil {
		var m *pb.WatchReservationsResponse
		if m, err = stream.Recv(); err != nil {
			break
		}
		if len(m.GetEvents()) > 0 {
			all = append(all, m)
		}
		if m.GetRevision() >= to {
			return all
		}
	}
	s.Fatalf("history from %d to %d: %v", from, to, err)
	return nil
}

// same fails the test unless everything is as it was, except for what ends when: after portd was down every lease has its whole time again.
func (s *stage) same(before everything) {
	s.Helper()
	s.repeat()
	diff := ""
	for late := time.Now().Add(10 * time.Second); time.Now().Before(late); time.Sleep(20 * time.Millisecond) { // who has a session resumes it
		diff = cmp.Diff(before, s.look(), protocmp.Transform(),
			protocmp.IgnoreFields(&pb.Reservation{}, "expire_time"), protocmp.IgnoreFields(&pb.Lease{}, "expire_time"),
			protocmp.IgnoreFields(&pb.WatchReservationsResponse{}, "store_id")) // it is the status's
		if diff == "" {
			return
		}
	}
	s.Errorf("what was there (-) and is (+):\n%s", diff)
}

// change makes changes of several kinds by both releases' portctls, and returns what is there then.
func (s *stage) change(some ...*release) everything {
	s.Helper()
	for _, r := range some {
		s.portctl(r, "reserve", "tcp", "23000", "--name", "passing", "--label", "by="+r.name)
		s.portctl(r, "reserve", "tcp", "23001", "--name", "minute", "--ttl", "1m")
		s.portctl(r, "listen", "passing")
		s.portctl(r, "set", "passing", "--name", "passed")
		s.portctl(r, "renew", "minute")
		s.portctl(r, "release", "minute")
		s.portctl(r, "close", "passed")
		s.portctl(r, "release", "passed")
		s.portctl(r, "service", "edit", "skewed", "--description", "Our own, by "+r.name)
	}
	last := some[len(some)-1]
	s.reserve("tcp/any", &pb.ReserveRequest{Name: fmt.Sprintf("left-%s-%d", last, s.daemon(0))})
	return s.look()
}
