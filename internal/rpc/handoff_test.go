package rpc_test

import (
	"fmt"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/portd/portd/internal/registry"
	"github.com/portd/portd/internal/rpc"
	pb "github.com/portd/portd/proto/portd/v1"
)

func TestListeners(t *testing.T) {
	totals := map[registry.SocketKey]rpc.Totals{}
	h := start(t, crew{totals: totals})
	conn := h.grpc(t)
	handoffs, reservations := pb.NewHandoffServiceClient(conn), pb.NewReservationServiceClient(conn)
	var want []string
	for i, name := range []string{"a", "b", "c"} {
		r := reserve(t, conn, name)
		if _, err := reservations.Listen(t.Context(), &pb.ListenRequest{Reservation: r.GetId(), Options: &pb.ListenOptions{Backlog: 7}}); err != nil {
			t.Fatal(err)
		}
		totals[registry.SocketKey{Reservation: r.GetId()}] = rpc.Totals{Workers: i, HandedOver: uint64(10 * i), Redelivered: 1}
		want = append(want, fmt.Sprintf("%s %s %s backlog=7 nodelay=true workers=%d handed=%d,1", r.GetId(), name, r.GetAssigned()[0].GetEndpoint().GetText(), i, 10*i))
	}
	reserve(t, conn, "held-only")
	var got []string
	pages(t, func(token string) string {
		resp, err := handoffs.ListListeners(t.Context(), &pb.ListListenersRequest{PageSize: 2, PageToken: token})
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range resp.GetListeners() {
			got = append(got, fmt.Sprintf("%s %s %s backlog=%d nodelay=%v workers=%d handed=%d,%d", l.GetReservationId(), l.GetReservationName(),
				l.GetEndpoint().GetText(), l.GetOptions().GetBacklog(), l.GetOptions().GetNoDelay(), l.GetWorkers(), l.GetHandedOver(), l.GetRedelivered()))
		}
		return resp.GetNextPageToken()
	})
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	only, err := handoffs.ListListeners(t.Context(), &pb.ListListenersRequest{Reservation: "b"})
	if err != nil || len(only.GetListeners()) != 1 || only.GetListeners()[0].GetReservationName() != "b" {
		t.Errorf("those of b: %v (%v)", only, err)
	}
}

// pages calls list with every page token in turn.
func pages(t *testing.T, list func(token string) (next string)) {
	t.Helper()
	for token, n := "", 0; ; n++ {
		if token = list(token); token == "" {
			return
		}
		if n > 100 {
			t.Fatal("pages without end")
		}
	}
}

// What arrives between two pages neither repeats nor hides what was there before.
func TestPagesWhileThingsChange(t *testing.T) {
	c := &crew{}
	add := func(seq uint64) {
		c.connections = append(c.connections, rpc.Connection{Seq: seq, Owner: registry.UIDPrincipal(uint32(os.Geteuid())), Peer: netip.AddrPortFrom(netip.IPv6Loopback(), uint16(seq))})
	}
	for _, seq := range []uint64{3, 1, 2, 5, 4} {
		add(seq)
	}
	handoffs := pb.NewHandoffServiceClient(start(t, c).grpc(t))
	var got []string
	pages(t, func(token string) string {
		resp, err := handoffs.ListConnections(t.Context(), &pb.ListConnectionsRequest{PageSize: 2, PageToken: token})
		if err != nil {
			t.Fatal(err)
		}
		for _, conn := range resp.GetConnections() {
			got = append(got, conn.GetPeer())
		}
		add(6 + uint64(len(c.connections)))
		return resp.GetNextPageToken()
	})
	if diff := cmp.Diff([]string{"[::1]:5", "[::1]:4", "[::1]:3", "[::1]:2", "[::1]:1"}, got); diff != "" {
		t.Error(diff)
	}
}

func TestWorkers(t *testing.T) {
	me := registry.UIDPrincipal(uint32(os.Geteuid()))
	began := time.Unix(1_700_000_000, 0)
	c := &crew{}
	h := start(t, c)
	conn := h.grpc(t)
	r := reserve(t, conn, "web")
	key := registry.SocketKey{Reservation: r.GetId()}
	ep, err := registry.ParseEndpoint(r.GetAssigned()[0].GetEndpoint().GetText())
	if err != nil {
		t.Fatal(err)
	}
	*c = crew{
		workers: []rpc.Worker{
			{ID: "wrk_late", Attached: began.Add(time.Second), Listeners: []rpc.WorkerListener{
				{Key: registry.SocketKey{Reservation: "rsv_gone"}, Owner: me, State: rpc.WorkerDraining, Socket: true},
			}},
			{
				ID: "wrk_early", UID: 12, PID: 34, Command: "server", Attached: began, Sent: 56, Done: 55,
				Listeners: []rpc.WorkerListener{{Key: key, Owner: me, Endpoint: ep, State: rpc.WorkerReady, Room: 2}},
			},
		},
		connections: []rpc.Connection{
			{Seq: 1, Key: key, Owner: me, Worker: "wrk_early"},
			{Seq: 2, Key: key, Owner: me, Worker: "wrk_late"},
			{Seq: 3, Key: registry.SocketKey{Reservation: "rsv_gone"}, Owner: me, Worker: "wrk_late", Redelivered: true},
		},
	}
	handoffs := pb.NewHandoffServiceClient(conn)
	list := func(req *pb.ListWorkersRequest) (got []string) {
		t.Helper()
		resp, err := handoffs.ListWorkers(t.Context(), req)
		if err != nil {
			t.Fatal(err)
		}
		for _, w := range resp.GetWorkers() {
			l := w.GetListeners()[0]
			got = append(got, fmt.Sprintf("%s %s %d %s %d/%d %v %v room=%d socket=%v", w.GetId(), w.GetOwner(), w.GetPid(), w.GetCommand(), w.GetDone(), w.GetSent(),
				w.GetAttachTime().AsTime().Unix(), l.GetState(), l.GetRoom(), l.GetSocket()))
		}
		return got
	}
	early := "wrk_early uid:12 34 server 55/56 1700000000 WORKER_STATE_READY room=2 socket=false"
	late := "wrk_late uid:0 0  0/0 1700000001 WORKER_STATE_DRAINING room=0 socket=true"
	if diff := cmp.Diff([]string{early, late}, list(&pb.ListWorkersRequest{})); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{early}, list(&pb.ListWorkersRequest{Reservation: "web"})); diff != "" {
		t.Error("of one reservation:", diff)
	}
	for _, tt := range []struct {
		req  *pb.ListConnectionsRequest
		want int
	}{
		{&pb.ListConnectionsRequest{}, 3},
		{&pb.ListConnectionsRequest{Reservation: "web"}, 2},
		{&pb.ListConnectionsRequest{WorkerId: "wrk_late"}, 2},
		{&pb.ListConnectionsRequest{Reservation: r.GetId(), WorkerId: "wrk_late"}, 1},
	} {
		resp, err := handoffs.ListConnections(t.Context(), tt.req)
		if err != nil || len(resp.GetConnections()) != tt.want {
			t.Errorf("%v: %v (%v), want %d", tt.req, resp, err, tt.want)
		}
	}
	if _, err := handoffs.ListConnections(t.Context(), &pb.ListConnectionsRequest{Reservation: "nobody"}); status.Code(err) != codes.NotFound {
		t.Errorf("of no reservation: %v", err)
	}
}

// What is known of a connection, of how long they wait, and of all listeners together.
func TestConnectionsAndWaits(t *testing.T) {
	me := registry.UIDPrincipal(uint32(os.Geteuid()))
	c := &crew{}
	h := start(t, c)
	conn := h.grpc(t)
	r := reserve(t, conn, "web")
	if _, err := pb.NewReservationServiceClient(conn).Listen(t.Context(), &pb.ListenRequest{Reservation: r.GetId()}); err != nil {
		t.Fatal(err)
	}
	key := registry.SocketKey{Reservation: r.GetId()}
	ep, err := registry.ParseEndpoint(r.GetAssigned()[0].GetEndpoint().GetText())
	if err != nil {
		t.Fatal(err)
	}
	peer := netip.MustParseAddrPort("[fe80::1%lo]:1")
	*c = crew{
		connections: []rpc.Connection{
			{Seq: 1, Key: key, Owner: me, Endpoint: ep},
			{Seq: 2, Key: key, Owner: me, Endpoint: ep, Peer: peer, State: "ESTABLISHED/CLOSE-WAIT"},
			{
				Seq: 3, Key: key, Owner: me, Endpoint: ep, Peer: netip.MustParseAddrPort("192.0.2.1:40000"), Local: netip.MustParseAddrPort("192.0.2.2:80"),
				State: "ESTABLISHED", Figures: true, RTT: 1500 * time.Microsecond, BytesReceived: 10, BytesSent: 20,
			},
		},
		totals: map[registry.SocketKey]rpc.Totals{key: {
			HandedOver: 7, Held: 1, Waiting: 2, PerSecond: 0.5, Waits: []rpc.WaitBucket{{AtMost: time.Millisecond, Count: 3}, {Count: 1}},
		}},
	}
	handoffs := pb.NewHandoffServiceClient(conn)
	text := func(req *pb.ListConnectionsRequest) (lines []string) {
		t.Helper()
		resp, err := handoffs.ListConnections(t.Context(), req)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range resp.GetConnections() {
			lines = append(lines, fmt.Sprintf("%s -> %s %s %s known=%v rtt=%v %d/%d", c.GetPeer(), c.GetLocal(), c.GetListener().GetText(), c.GetState(),
				c.Rtt != nil, c.GetRtt().AsDuration(), c.GetBytesReceived(), c.GetBytesSent()))
		}
		return lines
	}
	want := []string{
		"192.0.2.1:40000 -> 192.0.2.2:80 " + ep.String() + " ESTABLISHED known=true rtt=1.5ms 10/20",
		"[fe80::1%lo]:1 ->  " + ep.String() + " ESTABLISHED/CLOSE-WAIT known=false rtt=0s 0/0",
		" ->  " + ep.String() + "  known=false rtt=0s 0/0",
	}
	if diff := cmp.Diff(want, text(&pb.ListConnectionsRequest{PageSize: 1 << 30})); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(want[:2], text(&pb.ListConnectionsRequest{Open: true})); diff != "" {
		t.Error("open:", diff)
	}
	for _, req := range []*pb.ListConnectionsRequest{{PageSize: -1}, {PageToken: "?"}, {PageToken: "eA"}, {PageToken: "MA"}} {
		if _, err := handoffs.ListConnections(t.Context(), req); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%v: %v", req, err)
		}
	}
	listeners, err := handoffs.ListListeners(t.Context(), &pb.ListListenersRequest{})
	if err != nil {
		t.Fatal(err)
	}
	l := listeners.GetListeners()[0]
	waits := l.GetWait().GetBuckets()
	if l.GetHeld() != 1 || l.GetWaiting() != 2 || l.GetPerSecond() != 0.5 || l.GetWait().GetSamples() != 4 || len(waits) != 2 ||
		waits[0].GetAtMost().AsDuration() != time.Millisecond || waits[0].GetCount() != 3 || waits[1].AtMost != nil || waits[1].GetCount() != 1 {
		t.Errorf("%v", l)
	}
	st, err := pb.NewDaemonServiceClient(conn).GetStatus(t.Context(), &pb.GetStatusRequest{})
	if err != nil || st.GetHandoff().GetHandedOver() != 7 {
		t.Errorf("%v (%v)", st.GetHandoff(), err)
	}
}
