package rpc_test

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health/grpc_health_v1"
	reflectionv1 "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"

	pb "github.com/portd/portd/proto/portd/v1"
)

// connect is a bare connection; it gives up by itself after a while.
func (h *host) connect(t testing.TB) net.Conn {
	t.Helper()
	c, err := net.Dial("unix", h.socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return c
}

func isReset(err error) bool {
	return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

// Silence and garbage are dropped after a bounded time, and nobody else notices.
func TestStrangers(t *testing.T) {
	const most = 9 * time.Second // 5 s of patience and a busy machine
	preface := "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
	drip := func(each string) func(net.Conn) {
		return func(c net.Conn) {
			tick := time.NewTicker(200 * time.Millisecond)
			defer tick.Stop()
			for range tick.C {
				if _, err := io.WriteString(c, each); err != nil {
					return
				}
			}
		}
	}
	say := func(s string) func(net.Conn) { return func(c net.Conn) { _, _ = io.WriteString(c, s) } }
	strangers := map[string]func(net.Conn){
		"silence":                   say(""),
		"two bytes":                 say("PR"),
		"a word":                    say("PRI"),
		"the preface and silence":   say(preface),
		"the preface and garbage":   say(preface + strings.Repeat("\xff", 100)),
		"garbage":                   say(strings.Repeat("\x00\xff", 5000)),
		"a frame of 16 MB":          say(preface + "\xff\xff\xff\x00\x00\x00\x00\x00\x01"),
		"TLS":                       say("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"),
		"half a request":            say("GET /v1/status HTTP/1.1\r\nHost: portd\r\n"),
		"headers drop by drop":      func(c net.Conn) { say("GET / HTTP/1.1\r\nHost: portd\r\n")(c); drip("X-A: b\r\n")(c) },
		"headers without end":       func(c net.Conn) { say("GET / HTTP/1.1\r\n")(c); say("X-A: " + strings.Repeat("b", 1<<20))(c) },
		"a body that does not come": say("POST /v1/reservations HTTP/1.1\r\nHost: portd\r\nContent-Length: 100\r\n\r\n{"),
		"a body drop by drop": func(c net.Conn) {
			say("POST /v1/reservations HTTP/1.1\r\nHost: portd\r\nContent-Length: 100000\r\n\r\n")(c)
			drip(" ")(c)
		},
		"a chunked body without end": func(c net.Conn) {
			say("POST /v1/reservations HTTP/1.1\r\nHost: portd\r\nTransfer-Encoding: chunked\r\n\r\n")(c)
			drip("1\r\n \r\n")(c)
		},
		"an HTTP/1 request of nobody": say("\r\n\r\n\r\n\r\n"),
	}
	h := start(t, nil)
	var meeting sync.WaitGroup
	for name, speak := range strangers {
		c := h.connect(t)
		begin := time.Now()
		meeting.Go(func() {
			speak(c)
			if _, err := io.Copy(io.Discard, c); err != nil && !isReset(err) {
				t.Errorf("%s: %v", name, err)
			}
			if took := time.Since(begin); took > most {
				t.Errorf("%s was dropped after %v", name, took)
			}
		})
	}
	gone := make(chan struct{})
	go func() {
		meeting.Wait()
		close(gone)
	}()
	// Meanwhile others are served, by old connections and new ones, and streams go on.
	conn, rest := h.grpc(t), h.rest(t)
	watch := h.rest(t).open(t, http.MethodGet, "/v1/reservations:watch?progressInterval=0.5s", "")
	session := h.rest(t).open(t, http.MethodPost, "/v1/leases:openSession", "{}")
	var first pb.OpenSessionResponse
	if err := session.recv(&first); err != nil {
		t.Fatal(err)
	}
	rest.Transport.(*http.Transport).DisableKeepAlives = true
	served, slowest := 0, time.Duration(0)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for done := false; !done; {
		select {
		case <-gone:
			done = true
		case <-tick.C:
		}
		begin := time.Now()
		if _, err := pb.NewDaemonServiceClient(conn).GetStatus(t.Context(), &pb.GetStatusRequest{}); err != nil {
			t.Fatal(err)
		}
		if err := rest.call(t.Context(), http.MethodGet, "/v1/status", "", &pb.GetStatusResponse{}); err != nil {
			t.Fatal(err)
		}
		served++
		slowest = max(slowest, time.Since(begin))
	}
	t.Logf("%d times served meanwhile, in %v at most", served, slowest)
	if slowest > time.Second {
		t.Errorf("others had to wait for %v", slowest)
	}
	for range served / 100 { // two a second
		if err := watch.recv(&pb.WatchReservationsResponse{}); err != nil {
			t.Fatal("a quiet stream was dropped: ", err)
		}
	}
	if !connected(t, pb.NewLeaseServiceClient(conn), first.GetLease().GetId()) {
		t.Error("a quiet session was dropped")
	}
}

// A user who opens connections without end is refused before the descriptors run out.
func TestFlood(t *testing.T) {
	h := start(t, nil)
	// The rest of the user's share after portd has started.
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	share := int(min(limit.Cur/4, 4096))
	if uint64(share)*2+200 > limit.Cur {
		t.Skipf("needs %d descriptors, the limit is %d", share*2+200, limit.Cur)
	}
	var flood []net.Conn
	defer func() {
		for _, c := range flood {
			c.Close()
		}
	}()
	for range share + 50 {
		c, err := net.Dial("unix", h.socket)
		if err != nil {
			t.Fatal(err)
		}
		flood = append(flood, c)
	}
	// The last ones are closed at once, long before silence would have them closed.
	last := flood[len(flood)-1]
	if err := last.SetReadDeadline(time.Now().Add(3 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if n, err := last.Read(make([]byte, 1)); err == nil || os.IsTimeout(err) {
		t.Errorf("one too many was not refused: %d, %v", n, err)
	}
	if !strings.Contains(h.log.String(), "too many connections") {
		t.Error("the log says nothing of it")
	}
	for _, c := range flood {
		c.Close()
	}
	// His place is his again.
	rest := h.rest(t)
	for deadline := time.Now().Add(5 * time.Second); ; {
		err := rest.call(t.Context(), http.MethodGet, "/v1/status", "", &pb.GetStatusResponse{})
		if err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

func TestTooLarge(t *testing.T) {
	h := start(t, nil)
	conn := h.grpc(t)
	req := &pb.ReserveRequest{Name: string(bytes.Repeat([]byte("x"), 1<<20+16))}
	if _, err := pb.NewReservationServiceClient(conn).Reserve(t.Context(), req); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("a message over 1 MiB: %v", err)
	}
	if _, err := pb.NewDaemonServiceClient(conn).GetStatus(t.Context(), &pb.GetStatusRequest{}); err != nil {
		t.Error(err)
	}
}

func TestHealthAndReflection(t *testing.T) {
	conn := start(t, nil).grpc(t)
	for _, service := range []string{"", "portd.v1.ReservationService"} {
		resp, err := grpc_health_v1.NewHealthClient(conn).Check(t.Context(), &grpc_health_v1.HealthCheckRequest{Service: service})
		if err != nil || resp.GetStatus() != grpc_health_v1.HealthCheckResponse_SERVING {
			t.Errorf("health of %q: %v, %v", service, resp, err)
		}
	}
	stream, err := reflectionv1.NewServerReflectionClient(conn).ServerReflectionInfo(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ask := &reflectionv1.ServerReflectionRequest{MessageRequest: &reflectionv1.ServerReflectionRequest_ListServices{}}
	if err := stream.Send(ask); err != nil {
		t.Fatal(err)
	}
	resp, err := stream.Recv()
	if err != nil {
		t.Fatal(err)
	}
	has := map[string]bool{}
	for _, s := range resp.GetListServicesResponse().GetService() {
		has[s.GetName()] = true
	}
	for _, want := range []grpc.ServiceDesc{
		pb.ReservationService_ServiceDesc, pb.LeaseService_ServiceDesc, pb.PortService_ServiceDesc,
		pb.ServiceRegistryService_ServiceDesc, pb.HandoffService_ServiceDesc, pb.DaemonService_ServiceDesc,
		grpc_health_v1.Health_ServiceDesc,
	} {
		if !has[want.ServiceName] {
			t.Errorf("reflection does not show %s", want.ServiceName)
		}
	}
}
