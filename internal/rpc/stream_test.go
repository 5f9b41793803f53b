package rpc_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	spb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	pb "github.com/portd/portd/proto/portd/v1"
)

// A restStream is a streamed answer, a line per message.
type restStream struct {
	body  io.Closer
	lines *bufio.Reader
}

func (r rest) open(t *testing.T, method, path, body string) *restStream {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, "http://portd"+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := r.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { resp.Body.Close() })
	if typ := resp.Header.Get("Content-Type"); resp.StatusCode != http.StatusOK || typ != "application/x-ndjson" {
		t.Fatalf("%s %s: %s, a stream of %s", method, path, resp.Status, typ)
	}
	return &restStream{resp.Body, bufio.NewReader(resp.Body)}
}

// recv reads the next message, or the error that ends the stream.
func (s *restStream) recv(m proto.Message) error {
	line, err := s.lines.ReadBytes('\n')
	if err != nil {
		return err
	}
	var chunk struct{ Result, Error json.RawMessage }
	if err := json.Unmarshal(line, &chunk); err != nil {
		return err
	}
	if chunk.Error != nil {
		var st spb.Status
		return errors.Join(protojson.Unmarshal(chunk.Error, &st), status.FromProto(&st).Err())
	}
	return protojson.Unmarshal(chunk.Result, m)
}

// A change shows up on a REST stream at once, not when a buffer is full.
func TestWatchByREST(t *testing.T) {
	h := start(t, nil)
	conn := h.grpc(t)
	stream := h.rest(t).open(t, http.MethodGet, "/v1/reservations:watch?filter.labels[team]=a", "")
	var mark pb.WatchReservationsResponse
	if err := stream.recv(&mark); err != nil || len(mark.GetEvents()) > 0 || mark.GetStoreId() == "" {
		t.Fatalf("the first answer is %v (%v), want a progress mark", &mark, err)
	}
	reserve(t, conn, "not-selected")
	resp, err := pb.NewReservationServiceClient(conn).Reserve(t.Context(), &pb.ReserveRequest{
		Labels: map[string]string{"team": "a"}, Spec: spec(&pb.EndpointSpec{Choice: &pb.EndpointSpec_Any{Any: &pb.AnyPorts{}}}),
	})
	if err != nil {
		t.Fatal(err)
	}
	var change pb.WatchReservationsResponse
	if err := stream.recv(&change); err != nil {
		t.Fatal(err)
	}
	if e := change.GetEvents(); len(e) != 1 || e[0].GetType() != pb.EventType_EVENT_TYPE_RESERVED ||
		e[0].GetReservation().GetId() != resp.GetReservation().GetId() || change.GetRevision() != resp.GetReservation().GetRevision() {
		t.Errorf("got %v, want the reservation %v", &change, resp.GetReservation())
	}
}

// Whoever goes away has gone for the service too: his session ends.
func TestCancellationReachesTheService(t *testing.T) {
	h := start(t, nil)
	conn := h.grpc(t)
	byREST := h.rest(t).open(t, http.MethodPost, "/v1/leases:openSession", `{"grace": "60s"}`)
	var first pb.OpenSessionResponse
	if err := byREST.recv(&first); err != nil {
		t.Fatal(err)
	}
	if !connected(t, pb.NewLeaseServiceClient(conn), first.GetLease().GetId()) {
		t.Fatal("the session is not connected while its stream is open")
	}
	byREST.body.Close()
	awaitDisconnect(t, pb.NewLeaseServiceClient(conn), first.GetLease().GetId())

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	byGRPC, err := pb.NewLeaseServiceClient(conn).OpenSession(ctx, &pb.OpenSessionRequest{ResumeToken: first.GetResumeToken()})
	if err != nil {
		t.Fatal(err)
	}
	again, err := byGRPC.Recv()
	if err != nil || !again.GetResumed() || again.GetLease().GetId() != first.GetLease().GetId() {
		t.Fatalf("resumed by the other door: %v (%v)", again, err)
	}
	cancel()
	awaitDisconnect(t, pb.NewLeaseServiceClient(conn), first.GetLease().GetId())
}

func connected(t *testing.T, leases pb.LeaseServiceClient, id string) bool {
	t.Helper()
	resp, err := leases.GetLease(t.Context(), &pb.GetLeaseRequest{LeaseId: id})
	if err != nil {
		t.Fatal(err)
	}
	return resp.GetLease().GetConnected()
}

func awaitDisconnect(t *testing.T, leases pb.LeaseServiceClient, id string) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); connected(t, leases, id); {
		if time.Now().After(deadline) {
			t.Fatal("the session is still connected")
		}
	}
}

func TestEndedSession(t *testing.T) {
	h := start(t, nil)
	leases := pb.NewLeaseServiceClient(h.grpc(t))
	byGRPC, err := leases.OpenSession(t.Context(), &pb.OpenSessionRequest{})
	if err != nil {
		t.Fatal(err)
	}
	first, err := byGRPC.Recv()
	if err != nil {
		t.Fatal(err)
	}
	byREST := h.rest(t).open(t, http.MethodPost, "/v1/leases:openSession", `{"resumeToken": "`+first.GetResumeToken()+`"}`)
	if err := byREST.recv(&pb.OpenSessionResponse{}); err != nil {
		t.Fatal(err)
	}
	if _, err := leases.EndLease(t.Context(), &pb.EndLeaseRequest{LeaseId: first.GetLease().GetId()}); err != nil {
		t.Fatal(err)
	}
	_, err = byGRPC.Recv()
	for door, err := range map[string]error{"gRPC": err, "REST": byREST.recv(&pb.OpenSessionResponse{})} {
		if status.Code(err) != codes.NotFound || !strings.Contains(err.Error(), "has ended") {
			t.Errorf("%s: %v", door, err)
		}
	}
}

// When portd stops, streams end at once and say why; nothing waits for a caller who has gone deaf.
func TestStop(t *testing.T) {
	h := start(t, nil)
	conn := h.grpc(t)
	byREST := h.rest(t).open(t, http.MethodGet, "/v1/reservations:watch", "")
	if err := byREST.recv(&pb.WatchReservationsResponse{}); err != nil {
		t.Fatal(err)
	}
	byGRPC, err := pb.NewReservationServiceClient(conn).WatchReservations(t.Context(), &pb.WatchReservationsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := byGRPC.Recv(); err != nil {
		t.Fatal(err)
	}
	deaf := h.connect(t) // has begun to speak gRPC and will not go on
	if _, err := io.WriteString(deaf, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"); err != nil {
		t.Fatal(err)
	}
	silent := h.connect(t)

	begin := time.Now()
	stopped := make(chan struct{})
	go func() {
		h.stop()
		close(stopped)
	}()
	_, err = byGRPC.Recv()
	for door, err := range map[string]error{"gRPC": err, "REST": byREST.recv(&pb.WatchReservationsResponse{})} {
		if status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "portd is stopping") {
			t.Errorf("%s: %v", door, err)
		}
	}
	if took := time.Since(begin); took > time.Second {
		t.Errorf("streams ended after %v", took)
	}
	<-stopped
	if took := time.Since(begin); took > 4*time.Second {
		t.Errorf("the doors were closed after %v", took)
	}
	for _, c := range []io.Reader{deaf, silent} {
		if _, err := io.Copy(io.Discard, c); err != nil && !isReset(err) {
			t.Error(err)
		}
	}
}
