package daemon_test

import (
	"context"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/portd/portd/client"
	pb "github.com/portd/portd/proto/portd/v1"
)

// session opens or resumes one; it lasts until end is called.
func session(t *testing.T, c *client.Client, req *pb.OpenSessionRequest) (s *pb.OpenSessionResponse, end func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	// A session is not opened twice by itself where portd goes away meanwhile, so this waits for portd on its own.
	for range 100 {
		stream, err := c.Leases.OpenSession(ctx, req)
		if err == nil {
			s, err = stream.Recv()
		}
		if err == nil {
			return s, cancel
		}
		if answer(err) != "Unavailable" {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("portd does not come back")
	return nil, nil
}

func leased(t *testing.T, c *client.Client, lease, name, endpoint string) {
	t.Helper()
	_, err := c.Reservations.Reserve(t.Context(), &pb.ReserveRequest{Name: name, Spec: spec(t, endpoint), LeaseId: lease})
	if err != nil {
		t.Fatal(err)
	}
}

// expired waits until the reservation of this name has ended by its lease.
func expired(t *testing.T, w watch, name string) {
	t.Helper()
	for {
		for _, ev := range w.next(t).GetEvents() {
			if ev.GetReservation().GetName() != name {
				continue
			}
			if ev.GetType() == pb.EventType_EVENT_TYPE_EXPIRED {
				return
			}
		}
	}
}

func TestSessionEnds(t *testing.T) {
	_, c := start(t)
	w := newWatch(t, c, head(t, c)+1)
	const grace = 300 * time.Millisecond
	s, end := session(t, c, &pb.OpenSessionRequest{Grace: durationpb.New(grace)})
	leased(t, c, s.GetLease().GetId(), "web", "tcp/8080")
	wantHeld(t, 8080)
	begin := time.Now()
	end()
	expired(t, w, "web")
	if took := time.Since(begin); took < grace {
		t.Errorf("it ended after %v, within its grace", took)
	}
	// The event tells of the record; the port is free at the latest when the same can be reserved.
	reserve(t, c, "web", "tcp/8080")
	if _, err := c.Leases.GetLease(t.Context(), &pb.GetLeaseRequest{LeaseId: s.GetLease().GetId()}); answer(err) != "NotFound NOT_FOUND" {
		t.Error(err)
	}
	_, err := c.Reservations.Reserve(t.Context(), &pb.ReserveRequest{Spec: spec(t, "tcp/8081"), LeaseId: s.GetLease().GetId()})
	if answer(err) != "NotFound NOT_FOUND" {
		t.Error(err)
	}
}

// Of two sessions with one grace the one that is resumed after portd's restart keeps what it has, and the other's end
// shows that the grace is over.
func TestSessionResumed(t *testing.T) {
	d, c := start(t)
	const grace = 2 * time.Second
	kept, _ := session(t, c, &pb.OpenSessionRequest{Grace: durationpb.New(grace)})
	dropped, _ := session(t, c, &pb.OpenSessionRequest{Grace: durationpb.New(grace)})
	leased(t, c, kept.GetLease().GetId(), "kept", "tcp/8080")
	leased(t, c, dropped.GetLease().GetId(), "dropped", "tcp/8081")
	d.Restart(t)
	wantHeld(t, 8080, 8081)
	again, _ := session(t, c, &pb.OpenSessionRequest{ResumeToken: kept.GetResumeToken()})
	if !again.GetResumed() || again.GetLease().GetId() != kept.GetLease().GetId() {
		t.Errorf("%v", again)
	}
	w := newWatch(t, c, head(t, c)+1)
	expired(t, w, "dropped")
	get(t, c, "kept")
	wantHeld(t, 8080)
	lease, err := c.Leases.GetLease(t.Context(), &pb.GetLeaseRequest{LeaseId: kept.GetLease().GetId()})
	if err != nil || !lease.GetLease().GetConnected() || lease.GetLease().GetExpireTime() != nil {
		t.Errorf("%v, %v", lease, err)
	}
	reserve(t, c, "", "tcp/8081")

	stream, err := c.Leases.OpenSession(t.Context(), &pb.OpenSessionRequest{ResumeToken: dropped.GetResumeToken()})
	if err == nil {
		_, err = stream.Recv()
	}
	if answer(err) != "NotFound NOT_FOUND" {
		t.Errorf("resume of a session that has ended: %v", err)
	}
}
