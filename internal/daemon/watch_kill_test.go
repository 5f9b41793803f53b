package daemon_test

import (
	"context"
	"os"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/portd/portd/client"
	"github.com/portd/portd/internal/nstest"
	"github.com/portd/portd/internal/portdtest"
	pb "github.com/portd/portd/proto/portd/v1"
)

// A watch that is resumed after each kill of portd, from the revision after the last one seen, sees every change once and in
// order: just what a watch from the beginning sees in the end. So nothing was told before it was durable, either.
func TestWatchAcrossKills(t *testing.T) {
	nstest.Need(t)
	rounds := 8
	if os.Getenv("PORTD_LONG") != "" {
		rounds = 200
	}
	clean(t)
	d := portdtest.New(t)
	var seen []*pb.WatchReservationsResponse
	next, storeID := int64(1), ""
	answered := map[string]bool{} // ids of all reservations that were answered
	for range rounds {
		p := portd(t, d, "")
		p.begin(t)
		c, err := client.Dial(t.Context(), client.Options{Socket: d.Socket})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		stream, err := c.Reservations.WatchReservations(ctx, &pb.WatchReservationsRequest{StartRevision: next, StoreId: storeID})
		if err != nil {
			t.Fatal(err)
		}
		var watching sync.WaitGroup
		watching.Go(func() {
			for {
				ch, err := stream.Recv()
				if err != nil {
					return
				}
				storeID = ch.GetStoreId()
				if next = ch.GetRevision() + 1; len(ch.GetEvents()) > 0 {
					seen = append(seen, ch)
				}
			}
		})
		for id := range reserveUntilKilled(t, d, p) {
			answered[id] = true
		}
		cancel() // else the client would wait whether portd comes back
		watching.Wait()
		c.Close()
	}

	p := portd(t, d, "")
	p.begin(t)
	c, err := client.Dial(t.Context(), client.Options{Socket: d.Socket})
	if err != nil {
		t.Fatal(err)
	}
	last := head(t, c)
	if next <= last {
		seen = append(seen, withEvents(changes(t, c, next, last))...)
	}
	all := withEvents(changes(t, c, 1, last))
	if diff := cmp.Diff(all, seen, protocmp.Transform()); diff != "" {
		t.Errorf("seen is not what happened (-happened +seen):\n%s", diff)
	}
	there := map[string]bool{}
	for _, ch := range all {
		for _, ev := range ch.GetEvents() {
			if ev.GetType() == pb.EventType_EVENT_TYPE_RESERVED {
				there[ev.GetReservation().GetId()] = true
			}
		}
	}
	for id := range answered {
		if !there[id] {
			t.Errorf("%s was answered and no event tells of it", id)
		}
	}
	if len(answered) < rounds {
		t.Errorf("%d reservations were answered in %d rounds: it proves nothing", len(answered), rounds)
	}
	t.Logf("%d kills, %d changes, %d reservations", rounds, len(all), len(answered))
	c.Close()
	if err := p.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	p.ends(t)
}

func withEvents(all []*pb.WatchReservationsResponse) (some []*pb.WatchReservationsResponse) {
	for _, ch := range all {
		if len(ch.GetEvents()) > 0 {
			some = append(some, ch)
		}
	}
	return some
}
