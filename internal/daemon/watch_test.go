package daemon_test

import (
	"errors"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/portd/portd/client"
	pb "github.com/portd/portd/proto/portd/v1"
)

type watch struct {
	stream grpc.ServerStreamingClient[pb.WatchReservationsResponse]
}

func newWatch(t *testing.T, c *client.Client, from int64) watch {
	t.Helper()
	stream, err := c.Reservations.WatchReservations(t.Context(), &pb.WatchReservationsRequest{StartRevision: from})
	if err != nil {
		t.Fatal(err)
	}
	return watch{stream}
}

// next is the next change or progress mark; go test's timeout is the bound.
func (w watch) next(t *testing.T) *pb.WatchReservationsResponse {
	t.Helper()
	ch, err := w.stream.Recv()
	if err != nil {
		t.Fatal(err)
	}
	return ch
}

// head is the store's revision.
func head(t *testing.T, c *client.Client) int64 {
	t.Helper()
	st, err := c.Daemon.GetStatus(t.Context(), &pb.GetStatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	return st.GetRevision()
}

// changes are those with events from one revision to another.
func changes(t *testing.T, c *client.Client, from, to int64) (all []*pb.WatchReservationsResponse) {
	t.Helper()
	w := newWatch(t, c, from)
	if mark := w.next(t); len(mark.GetEvents()) != 0 || mark.GetRevision() != from-1 {
		t.Fatalf("watch from %d begins with %v", from, mark)
	}
	for last := from - 1; last < to; {
		ch := w.next(t)
		if ch.GetRevision() <= last {
			t.Fatalf("revision %d after %d", ch.GetRevision(), last)
		}
		last = ch.GetRevision()
		all = append(all, ch)
	}
	return all
}

func TestWatchReplays(t *testing.T) {
	d, c := start(t)
	first := head(t, c) + 1
	var live []*pb.WatchReservationsResponse
	w := newWatch(t, c, first)
	w.next(t) // the mark
	for i := range 5 {
		name := fmt.Sprintf("web%d", i)
		reserve(t, c, name, fmt.Sprintf("tcp/%d", 8080+i))
		for _, err := range []error{
			second(c.Reservations.Listen(t.Context(), &pb.ListenRequest{Reservation: name})),
			second(c.Reservations.Close(t.Context(), &pb.CloseRequest{Reservation: name})),
			second(c.Reservations.Release(t.Context(), &pb.ReleaseRequest{Reservation: name})),
		} {
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	last := head(t, c)
	for len(live) < 20 {
		live = append(live, w.next(t))
	}
	types := []pb.EventType{
		pb.EventType_EVENT_TYPE_RESERVED, pb.EventType_EVENT_TYPE_LISTENING, pb.EventType_EVENT_TYPE_CLOSED, pb.EventType_EVENT_TYPE_RELEASED,
	}
	for i, ch := range live {
		if len(ch.GetEvents()) != 1 || ch.GetEvents()[0].GetType() != types[i%4] || ch.GetRevision() != first+int64(i) {
			t.Errorf("change %d is %v", i, ch)
		}
	}
	for range 2 { // from memory, and after the restart from the store
		for _, from := range []int64{first, first + 7, last} {
			if diff := cmp.Diff(live[from-first:], changes(t, c, from, last), protocmp.Transform()); diff != "" {
				t.Errorf("from %d: %s", from, diff)
			}
		}
		d.Restart(t)
	}
}

func TestWatchRefused(t *testing.T) {
	_, c := start(t)
	for name, tt := range map[string]struct {
		req  *pb.WatchReservationsRequest
		want string
	}{
		"another store": {&pb.WatchReservationsRequest{StartRevision: 1, StoreId: "another"}, "FailedPrecondition STORE_CHANGED"},
		"the future":    {&pb.WatchReservationsRequest{StartRevision: 1 << 40}, "InvalidArgument INVALID_ARGUMENT"},
		"the past":      {&pb.WatchReservationsRequest{StartRevision: -1}, "InvalidArgument INVALID_ARGUMENT"},
	} {
		stream, err := c.Reservations.WatchReservations(t.Context(), tt.req)
		if err == nil {
			_, err = stream.Recv()
		}
		if got := answer(err); got != tt.want {
			t.Errorf("%s: %s (%v), want %s", name, got, err, tt.want)
		}
		if name == "another store" && !errors.Is(err, client.ErrStoreChanged) {
			t.Error(err)
		}
	}
}

func second[T any](_ T, err error) error { return err }
