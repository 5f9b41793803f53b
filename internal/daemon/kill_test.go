package daemon_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/portd/portd/client"
	"github.com/portd/portd/internal/nstest"
	"github.com/portd/portd/internal/portdtest"
	pb "github.com/portd/portd/proto/portd/v1"
)

// portd is killed while it is reserving, again and again; whatever it had answered is there and held when it is back.
func TestKilled(t *testing.T) {
	nstest.Need(t)
	rounds := 10
	if os.Getenv("PORTD_LONG") != "" {
		rounds = 300
	}
	clean(t)
	d := portdtest.New(t)
	answered := 0
	for round := range rounds {
		p := portd(t, d, "")
		p.begin(t)
		got := reserveUntilKilled(t, d, p)
		answered += len(got)

		p = portd(t, d, "")
		p.begin(t)
		check(t, d, got, round)
		if err := p.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		p.ends(t)
		if t.Failed() {
			break
		}
	}
	if answered < rounds {
		t.Errorf("%d reservations were answered in %d rounds: it proves nothing", answered, rounds)
	}
	t.Logf("%d kills, %d reservations answered", rounds, answered)
}

// reserveUntilKilled reserves from several sides, some of them releasing too, and kills portd at a random moment after some answer. It
// returns the reservations that were answered, by their ids, with their ports.
func reserveUntilKilled(t *testing.T, d *portdtest.Daemon, p *process) map[string]uint32 {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var mu sync.Mutex
	got := map[string]uint32{}
	left, enough := 1+rand.IntN(30), make(chan struct{})
	var asking sync.WaitGroup
	for side := range 8 {
		c, err := client.Dial(ctx, client.Options{Socket: d.Socket})
		if err != nil {
			t.Fatal(err)
		}
		asking.Go(func() {
			defer c.Close()
			for i := 0; ; i++ {
				port := uint32(20000 + side*500 + i%500)
				res, err := c.Reservations.Reserve(ctx, &pb.ReserveRequest{Spec: spec(t, fmt.Sprintf("tcp/%d", port))})
				if errors.Is(err, client.ErrTaken) { // since an earlier round
					continue
				}
				if err != nil {
					return
				}
				id := res.GetReservation().GetId()
				mu.Lock()
				got[id] = port
				if left--; left == 0 {
					close(enough)
				}
				mu.Unlock()
				if i%3 != 2 {
					continue
				}
				mu.Lock()
				delete(got, id) // from now on both outcomes are right
				mu.Unlock()
				if _, err := c.Reservations.Release(ctx, &pb.ReleaseRequest{Reservation: id}); err != nil {
					return
				}
			}
		})
	}
	select {
	case <-enough:
	case <-time.After(30 * time.Second):
		t.Error("nobody is answered")
	}
	time.Sleep(time.Duration(rand.IntN(5_000)) * time.Microsecond) // the random moment
	if err := p.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	p.ends(t)
	cancel()
	asking.Wait()
	return got
}

// check fails t unless all of these are there and everything that is there is held, and releases it all.
func check(t *testing.T, d *portdtest.Daemon, answered map[string]uint32, round int) {
	t.Helper()
	c, err := client.Dial(t.Context(), client.Options{Socket: d.Socket})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	list, err := c.Reservations.ListReservations(t.Context(), &pb.ListReservationsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	there := map[string]bool{}
	for _, res := range list.GetReservations() {
		there[res.GetId()] = true
		a := res.GetAssigned()[0]
		if a.GetState() != pb.EndpointState_ENDPOINT_STATE_HELD {
			t.Errorf("round %d: %s is %v", round, a.GetEndpoint().GetText(), a.GetState())
		}
		wantHeld(t, a.GetEndpoint().GetPorts().GetFirst())
		if port, ok := answered[res.GetId()]; ok && port != a.GetEndpoint().GetPorts().GetFirst() {
			t.Errorf("round %d: %s has another port than was answered, %d", round, a.GetEndpoint().GetText(), port)
		}
	}
	for id, port := range answered {
		if !there[id] {
			t.Errorf("round %d: %s with tcp/%d was answered and is gone", round, id, port)
		}
	}
	for id := range there {
		if _, err := c.Reservations.Release(t.Context(), &pb.ReleaseRequest{Reservation: id}); err != nil {
			t.Fatal(err)
		}
	}
}
