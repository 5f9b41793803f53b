package daemon_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/portd/portd/client"
	"github.com/portd/portd/internal/nstest"
	"github.com/portd/portd/internal/portdtest"
	pb "github.com/portd/portd/proto/portd/v1"
)

// restful is a policy whose pool is so large that the same port twice is no chance, and whose ports rest for long.
const restful = "pools:\n  ci:\n    tcp: 10000-19999\n    quarantine: 1h\n"

// fromCI asks for a port of the pool of restful.
func fromCI(name string) *pb.ReserveRequest {
	return &pb.ReserveRequest{Name: name, Spec: &pb.ReservationSpec{Endpoints: []*pb.EndpointSpec{{
		Protocols: []pb.Protocol{pb.Protocol_PROTOCOL_TCP}, Choice: &pb.EndpointSpec_Any{Any: &pb.AnyPorts{Pool: "ci"}},
	}}}}
}

func portOf(res *pb.Reservation) uint32 {
	return res.GetAssigned()[0].GetEndpoint().GetPorts().GetFirst()
}

// named reserves a port of the pool and returns it, with what was passed over for it.
func named(t *testing.T, c *client.Client, name string) (uint32, []*pb.PassedOver) {
	t.Helper()
	got, err := c.Reservations.Reserve(t.Context(), fromCI(name))
	if err != nil {
		t.Fatalf("reserve %s: %v", name, err)
	}
	return portOf(got.GetReservation()), got.GetPassedOver()
}

func releaseRef(t *testing.T, c *client.Client, ref string) {
	t.Helper()
	if _, err := c.Reservations.Release(t.Context(), &pb.ReleaseRequest{Reservation: ref}); err != nil {
		t.Fatalf("release %s: %v", ref, err)
	}
}

// reserver reserves as whoever runs it, and prints what it was answered. Its arguments are portd's socket and an endpoint.
func reserver(args []string) error {
	ctx := context.Background()
	c, err := client.Dial(ctx, client.Options{Socket: args[0]})
	if err != nil {
		return err
	}
	defer c.Close()
	ep, err := client.ParseSpec(args[1])
	if err != nil {
		return err
	}
	_, err = c.Reservations.Reserve(ctx, &pb.ReserveRequest{Spec: &pb.ReservationSpec{Endpoints: []*pb.EndpointSpec{ep}}})
	fmt.Println(answer(err), err)
	return nil
}

// A name has its port again, and nobody else has it meanwhile, whatever becomes of portd and of the host.
func TestSticky(t *testing.T) {
	d, c := start(t)
	d.Reload(t, restful)
	first, _ := named(t, c, "web")
	for _, tt := range []struct {
		when string
		do   func()
	}{
		{"at once", func() {}},
		{"after a restart", func() { d.Restart(t) }},
		{"after a boot", func() {
			d.Stop(t)
			anotherBoot(t, d)
			d.Restart(t)
		}},
	} {
		releaseRef(t, c, "web")
		tt.do()
		wantFree(t, first)
		if os.Geteuid() == 0 { // else there is nobody else
			cmd := acting("reserver", d.Socket, fmt.Sprintf("tcp/%d", first))
			cmd.SysProcAttr = nstest.As(t, 65534, 65534)
			out, err := cmd.Output()
			if err != nil {
				t.Fatal(err)
			}
			// Without a date: when the hour is over.
			want := fmt.Sprintf("AlreadyExists QUARANTINED tcp/%d is taken: it is kept until 2", first)
			if got := string(out); !strings.HasPrefix(got, want) || !strings.Contains(got, `for who had it, "web"`) {
				t.Errorf("%s another user is answered %q, want %q", tt.when, got, want)
			}
		}
		if again, over := named(t, c, "web"); again != first || len(over) > 0 {
			t.Errorf("%s web gets %d, passing over %v; it had %d", tt.when, again, over, first)
		}
		wantHeld(t, first)
	}

	releaseRef(t, c, "web")
	reserve(t, c, "other", fmt.Sprintf("tcp/%d", first)) // who may do everything, by number
	again, over := named(t, c, "web")
	if again == first || len(over) != 1 || over[0].GetPreference() != pb.Preference_PREFERENCE_NAME ||
		over[0].GetPorts().GetFirst() != first || !strings.Contains(over[0].GetReason(), `"other"`) {
		t.Errorf("web gets %d, passing over %v; %d is other's", again, over, first)
	}
}

// portd is killed while names come and go, again and again: each is there with its port or has it again.
func TestStickyKilled(t *testing.T) {
	nstest.Need(t)
	clean(t)
	d := portdtest.New(t)
	if err := os.WriteFile(d.Policy, []byte(restful), 0o644); err != nil {
		t.Fatal(err)
	}
	known := map[string]uint32{} // as it was first answered
	ended := 0
	for round := range 8 {
		p := portd(t, d, "")
		p.begin(t)
		ctx, cancel := context.WithCancel(t.Context())
		var mu sync.Mutex
		var asking sync.WaitGroup
		for side := range 8 {
			c, err := client.Dial(ctx, client.Options{Socket: d.Socket})
			if err != nil {
				t.Fatal(err)
			}
			name := fmt.Sprint("n", side)
			asking.Go(func() {
				defer c.Close()
				for {
					got, err := c.Reservations.Reserve(ctx, fromCI(name))
					if err != nil {
						return
					}
					mu.Lock()
					if at, ok := known[name]; ok && at != portOf(got.GetReservation()) {
						t.Errorf("round %d: %s had %d and gets %d", round, name, at, portOf(got.GetReservation()))
					}
					known[name] = portOf(got.GetReservation())
					mu.Unlock()
					if _, err := c.Reservations.Release(ctx, &pb.ReleaseRequest{Reservation: name}); err != nil {
						return
					}
					mu.Lock()
					ended++
					mu.Unlock()
				}
			})
		}
		time.Sleep(time.Duration(20_000+rand.IntN(60_000)) * time.Microsecond) // the random moment
		if err := p.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		p.ends(t)
		cancel()
		asking.Wait()
	}
	if ended < 8 || len(known) == 0 {
		t.Errorf("%d releases of %d names: it proves nothing", ended, len(known))
	}
	t.Logf("%d names were released %d times", len(known), ended)
}

// portd is killed before each system call of a release: the reservation is there, or its name has the port again and others have
// not. What ends and what is remembered of it are one commit.
func TestStickyKilledAtEveryStep(t *testing.T) {
	nstest.Need(t)
	clean(t)
	d := portdtest.New(t)
	if err := os.WriteFile(d.Policy, []byte(restful), 0o644); err != nil {
		t.Fatal(err)
	}
	var first uint32
	var there, gone, step int
	for killed := true; killed && !t.Failed(); {
		step++
		p, calls := stepped(t, d)
		c, err := client.Dial(t.Context(), client.Options{Socket: d.Socket})
		if err != nil {
			t.Fatal(err)
		}
		got, err := c.Reservations.Reserve(t.Context(), fromCI("web"))
		if err != nil {
			t.Fatal(err)
		}
		// What was killed in a release is answered here: the same reservation, or a new one with its port.
		port := portOf(got.GetReservation())
		switch {
		case first == 0:
			first = port
		case port != first || len(got.GetPassedOver()) > 0:
			t.Errorf("step %d: web gets %d, passing over %v; it had %d", step-1, port, got.GetPassedOver(), first)
		case got.GetExisted():
			there++
		default:
			gone++
		}
		ctx, cancel := context.WithCancel(t.Context())
		calls.killed = cancel
		calls.killAt(step)
		_, err = c.Reservations.Release(ctx, &pb.ReleaseRequest{Reservation: "web"})
		killed = calls.killAt(0)
		cancel()
		if !killed {
			if err != nil {
				t.Error(err)
			}
			_ = p.Process.Kill()
		}
		p.ends(t)
		c.Close()
	}
	t.Logf("killed at %d steps; then it was there %d times, and gone %d times", step-1, there, gone)
	if there < 1 || gone < 1 {
		t.Error("that proves nothing")
	}
}
