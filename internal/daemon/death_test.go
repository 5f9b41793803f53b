package daemon_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/client"
	"github.com/portd/portd/internal/nstest"
	"github.com/portd/portd/internal/portdtest"
	pb "github.com/portd/portd/proto/portd/v1"
)

// The daemon is killed again and again, at random moments, while clients connect and others reserve and release. No client of the port is
// refused, and what was answered is so.
func TestKilledUnderLoad(t *testing.T) {
	nstest.Need(t)
	rounds, reservations := 8, 100
	if os.Getenv("PORTD_LONG") != "" {
		rounds, reservations = 300, 1000
	}
	d := portdtest.New(t)
	k := startKept(t, d, binary(t))
	c := d.Client(t)
	reserve(t, c, "web", "tcp/8080")
	many(t, c, 20_000, reservations)
	l := startStorm(t, d, "web", "127.0.0.1:8080", 64)

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	h := newHistory()
	var changing sync.WaitGroup
	for side := range 4 {
		changing.Go(func() { h.make(ctx, t, d, 22_000+side*1000) })
	}
	pid := k.pid(t, 0)
	for range rounds {
		time.Sleep(time.Duration(50_000+rand.IntN(100_000)) * time.Microsecond) // the random moment
		if err := unix.Kill(pid, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		pid = k.pid(t, pid)
	}
	cancel()
	changing.Wait()
	l.end()
	st := k.status()
	if st == nil {
		t.Fatal("no portd answers at the end")
	}
	t.Logf("%d kills with %d reservations: %v; %d changes answered; lost in hand %d", rounds, reservations, l, h.answered, st.GetHandoff().GetLost())
	if l.refused.Load() > 0 || l.other.Load() > 0 {
		t.Errorf("%d clients were refused, %d failed otherwise: %v", l.refused.Load(), l.other.Load(), l.odd)
	}
	if n := l.reset.Load(); n > 0 || st.GetHandoff().GetLost() > 0 {
		t.Errorf("%d connections were reset in %d kills, %d are counted as lost", n, rounds, st.GetHandoff().GetLost())
	}
	h.check(t, c)
}

// A port that was answered as released is free, also where portd is killed at once; and what nobody has reserved is closed at the start.
func TestReleasedThenKilled(t *testing.T) {
	nstest.Need(t)
	d := portdtest.New(t)
	k := startKept(t, d, binary(t))
	c := d.Client(t)
	pid := k.pid(t, 0)
	for i := range 5 {
		reserve(t, c, "web", "tcp/8080")
		reserve(t, c, "other", "tcp/8081")
		if _, err := c.Reservations.Listen(t.Context(), &pb.ListenRequest{Reservation: "web"}); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Reservations.Release(t.Context(), &pb.ReleaseRequest{Reservation: "web"}); err != nil {
			t.Fatal(err)
		}
		if i%2 == 0 {
			wantFree(t, 8080)
		}
		if err := unix.Kill(pid, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		wantFree(t, 8080)
		wantHeld(t, 8081)
		pid = k.pid(t, pid)
		wantFree(t, 8080)
		wantHeld(t, 8081)
		if _, err := c.Reservations.Release(t.Context(), &pb.ReleaseRequest{Reservation: "other"}); err != nil {
			t.Fatal(err)
		}
	}
}

// The keeper is killed: the daemon starts another one, which brings back what there is when the daemon dies next.
func TestKeeperKilled(t *testing.T) {
	nstest.Need(t)
	d := portdtest.New(t)
	k := startKept(t, d, binary(t))
	c := d.Client(t)
	reserve(t, c, "web", "tcp/8080")
	l := startStorm(t, d, "web", "127.0.0.1:8080", 8)
	pid := k.pid(t, 0)
	before := inode(t, d.Socket)
	if err := k.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = k.Wait()
	t.Cleanup(func() {
		if st := k.status(); st != nil {
			_ = unix.Kill(int(st.GetPid()), unix.SIGTERM)
		}
		for k.status() != nil {
			time.Sleep(5 * time.Millisecond)
		}
	})
	wantHeld(t, 8080)
	// It may take a moment until there is a keeper again; when there is, the daemon can die.
	waitFor(t, "a keeper", func() bool { return keeperOf(pid) != 0 })
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	k.pid(t, pid)
	wantHeld(t, 8080)
	if after := inode(t, d.Socket); after != before {
		t.Error("the control socket is another one")
	}
	l.end()
	t.Logf("%v", l)
	if l.refused.Load() > 0 || l.other.Load() > 0 {
		t.Errorf("refused %d, others %d", l.refused.Load(), l.other.Load())
	}
}

// A history is reservations that are made and released all the time, and what became of them.
type history struct {
	mu       sync.Mutex
	answered int
	there    map[string]uint32 // answered as reserved, by id
	gone     map[string]bool   // answered as released
	failed   int
	err      error // the last
}

func newHistory() *history { return &history{there: map[string]uint32{}, gone: map[string]bool{}} }

func (h *history) make(ctx context.Context, t *testing.T, d *portdtest.Daemon, from int) {
	var c *client.Client
	for c == nil && ctx.Err() == nil { // a killed one is away for a moment
		c, _ = client.Dial(ctx, client.Options{Socket: d.Socket})
	}
	if c == nil {
		return
	}
	defer c.Close()
	var last string
	for i := 0; ctx.Err() == nil; i++ {
		port := uint32(from + i%1000)
		res, err := c.Reservations.Reserve(ctx, &pb.ReserveRequest{Spec: spec(t, fmt.Sprintf("tcp/%d", port))})
		if err == nil {
			last = res.GetReservation().GetId()
			h.mu.Lock()
			h.answered++
			h.there[last] = port
			h.mu.Unlock()
		}
		h.note(ctx, err)
		if last == "" {
			continue
		}
		h.mu.Lock()
		delete(h.there, last) // from now on both outcomes are right
		h.mu.Unlock()
		_, err = c.Reservations.Release(ctx, &pb.ReleaseRequest{Reservation: last})
		if err == nil {
			h.mu.Lock()
			h.answered++
			h.gone[last] = true
			h.mu.Unlock()
		}
		h.note(ctx, err)
		last = ""
	}
}

func (h *history) note(ctx context.Context, err error) {
	if err == nil || ctx.Err() != nil {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.failed++
	h.err = err
}

// check fails t where an answered change is not so.
func (h *history) check(t *testing.T, c *client.Client) {
	t.Helper()
	now := map[string]bool{}
	for token := ""; ; {
		list, err := c.Reservations.ListReservations(t.Context(), &pb.ListReservationsRequest{PageSize: 1000, PageToken: token})
		if err != nil {
			t.Fatal(err)
		}
		for _, res := range list.GetReservations() {
			now[res.GetId()] = true
			for _, a := range res.GetAssigned() {
				if s := a.GetState(); s != pb.EndpointState_ENDPOINT_STATE_HELD && s != pb.EndpointState_ENDPOINT_STATE_LISTENING {
					t.Errorf("%s is %v", a.GetEndpoint().GetText(), s)
				}
			}
		}
		if token = list.GetNextPageToken(); token == "" {
			break
		}
	}
	for id, port := range h.there {
		if !now[id] {
			t.Errorf("tcp/%d was answered as reserved and is not there", port)
		}
	}
	for id := range h.gone {
		if now[id] {
			t.Errorf("%s was answered as released and is there", id)
		}
	}
	if h.answered == 0 {
		t.Error("nothing was answered: it proves nothing")
	}
}
