package rpc_test

import (
	"context"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/portd/portd/proto/portd/v1"
)

// Requests that never come whole end: soon those beyond what a user may have of them, the others after a while, however they
// were to come. A stream that has begun may take longer than that for what comes next, and who sends his requests whole notices nothing.
func TestLateRequests(t *testing.T) {
	const most, more = 64, 16
	h := start(t, nil)
	imports, err := pb.NewServiceRegistryServiceClient(h.grpc(t)).ImportServices(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	options := &pb.ImportServicesRequest{Part: &pb.ImportServicesRequest_Options{Options: &pb.ImportOptions{DryRun: true}}}
	if err := imports.Send(options); err != nil {
		t.Fatal(err)
	}

	conn := h.grpc(t)
	many := h.grpc(t)
	ended := make(chan error, most+more)
	began := time.Now()
	for i := range most + more {
		method := []string{"/portd.v1.ReservationService/Reserve", "/portd.v1.ReservationService/WatchReservations"}[i%2]
		half, err := conn.NewStream(t.Context(), &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, method)
		if err != nil {
			t.Fatal(err)
		}
		go func() { ended <- half.RecvMsg(new(pb.ReserveResponse)) }()
	}
	if _, err := pb.NewDaemonServiceClient(conn).GetStatus(t.Context(), &pb.GetStatusRequest{}); err != nil { // the daemon has seen what came before it
		t.Fatal(err)
	}
	sendMuch(t, many)
	sent := time.Since(began) // under the race detector on a busy host, that alone may take seconds
	for i := range most + more {
		code := status.Code(<-ended)
		if code != codes.Canceled && code != codes.ResourceExhausted {
			t.Errorf("a call without its request ends with %v", code)
		}
		switch took := time.Since(began); {
		case i == more-1 && took > sent+4*time.Second:
			t.Errorf("the %d calls that are too many took %v to end", more, took)
		case i == most+more-1 && took < 4*time.Second:
			t.Errorf("all ended within %v", took)
		}
		if i == more { // the others wait
			if _, err := pb.NewDaemonServiceClient(conn).GetStatus(t.Context(), &pb.GetStatusRequest{}); err != nil {
				t.Errorf("a whole request beside them: %v", err)
			}
		}
	}

	if err := imports.Send(&pb.ImportServicesRequest{Part: &pb.ImportServicesRequest_Data{Data: []byte("no registry")}}); err != nil {
		t.Fatal(err)
	}
	if _, err := imports.CloseAndRecv(); status.Code(err) != codes.InvalidArgument {
		t.Errorf("an import that paused ends with %v, want what is wrong with its file", err)
	}
}

// The same by REST: the body is what does not come.
func TestLateBodies(t *testing.T) {
	const most, more = 64, 8
	h := start(t, nil)
	many := h.grpc(t)
	var all sync.WaitGroup
	early := make(chan struct{}, most+more)
	for range most + more {
		c, err := new(net.Dialer).DialContext(t.Context(), "unix", h.socket)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := io.WriteString(c, "POST /v1/reservations HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n{"); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		all.Go(func() {
			_ = c.SetReadDeadline(began.Add(20 * time.Second))
			if _, err := io.Copy(io.Discard, c); err != nil && !isReset(err) {
				t.Errorf("a request without its body: %v", err)
			}
			if time.Since(began) < 4*time.Second {
				early <- struct{}{}
			}
		})
	}
	sendMuch(t, many)
	all.Wait()
	if n := len(early); n != more {
		t.Errorf("%d were answered before they were late, want %d", n, more)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if _, err := pb.NewDaemonServiceClient(h.grpc(t)).GetStatus(ctx, &pb.GetStatusRequest{}); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

// sendMuch sends so much that what is late and has no place ends, in requests that are whole: half as much again as it takes, for a
// late request counts from where the daemon sees it.
func sendMuch(t *testing.T, conn grpc.ClientConnInterface) {
	t.Helper()
	name := strings.Repeat("x", 1000<<10)
	for range 13 {
		if _, err := pb.NewReservationServiceClient(conn).Reserve(t.Context(), &pb.ReserveRequest{Name: name}); status.Code(err) != codes.InvalidArgument {
			t.Fatalf("a name of a mebibyte: %.100v", err)
		}
	}
}
