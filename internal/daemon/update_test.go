package daemon_test

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	"github.com/portd/portd/client"
	"github.com/portd/portd/internal/nstest"
	"github.com/portd/portd/internal/portdtest"
	pb "github.com/portd/portd/proto/portd/v1"
)

// portd is killed while a reservation's name, label and lease are changed together, again and again: the last change that was answered
// is there, or the one that was on its way, whole; and a watch tells of each once.
func TestUpdatedAndKilled(t *testing.T) {
	nstest.Need(t)
	clean(t)
	const rounds = 5
	d := portdtest.New(t)
	p := portd(t, d, "")
	p.begin(t)
	dial := func() *client.Client {
		c, err := client.Dial(t.Context(), client.Options{Socket: d.Socket})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	c := dial()
	id := reserve(t, c, "n0", "tcp/8080").GetId()
	created, err := c.Leases.CreateLease(t.Context(), &pb.CreateLeaseRequest{Spec: &pb.LeaseSpec{Kind: &pb.LeaseSpec_Ttl{Ttl: durationpb.New(time.Hour)}}})
	if err != nil {
		t.Fatal(err)
	}
	lease := func(n int) string {
		if n%2 == 1 {
			return created.GetLease().GetId()
		}
		return ""
	}

	n := 0 // the last that was answered
	for round := range rounds {
		killed := make(chan struct{})
		go func() {
			defer close(killed)
			time.Sleep(time.Duration(rand.IntN(50_000)) * time.Microsecond) // the random moment
			_ = p.Process.Kill()
		}()
		for ; ; n++ {
			_, err := c.Reservations.UpdateReservation(t.Context(), &pb.UpdateReservationRequest{
				Reservation: id, Name: fmt.Sprint("n", n+1), Labels: map[string]string{"n": fmt.Sprint(n + 1)}, LeaseId: lease(n + 1),
				UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"name", "labels", "lease_id"}},
			})
			if err != nil {
				break
			}
		}
		<-killed
		p.ends(t)
		p = portd(t, d, "")
		p.begin(t)
		c = dial()
		res := get(t, c, id)
		if res.GetName() == fmt.Sprint("n", n+1) {
			n++
		}
		if want := fmt.Sprint(n); res.GetName() != "n"+want || n > 0 && res.GetLabels()["n"] != want || res.GetLeaseId() != lease(n) {
			t.Fatalf("round %d: after update %d it is %v", round, n, res)
		}
		if res.GetAssigned()[0].GetState() != pb.EndpointState_ENDPOINT_STATE_HELD {
			t.Errorf("round %d: it is %v", round, res.GetAssigned()[0].GetState())
		}
		if n > 0 {
			old := reserve(t, c, fmt.Sprint("n", n-1), fmt.Sprint("tcp/", 9000+round)) // that name is free
			if _, err := c.Reservations.Release(t.Context(), &pb.ReleaseRequest{Reservation: old.GetId()}); err != nil {
				t.Fatal(err)
			}
		}
	}
	t.Logf("%d kills, %d updates", rounds, n)
	if n < rounds {
		t.Errorf("%d updates were answered in %d rounds: it proves nothing", n, rounds)
	}
	told := 0
	for _, ch := range changes(t, c, 1, head(t, c)) {
		for _, ev := range ch.GetEvents() {
			if ev.GetType() != pb.EventType_EVENT_TYPE_UPDATED {
				continue
			}
			if told++; ev.GetReservation().GetName() != fmt.Sprint("n", told) {
				t.Fatalf("update %d is told as %v", told, ev)
			}
		}
	}
	if told != n {
		t.Errorf("%d updates are told of, %d were done", told, n)
	}
}
