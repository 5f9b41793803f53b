package model

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/client"
	"github.com/portd/portd/internal/nstest"
	pb "github.com/portd/portd/proto/portd/v1"
)

// TestPlay has the real programs play what the model goes through: daemons stop where the model says, one of them or the keeper is killed,
// and what the model promises is looked for from outside. One run plays some of the scripts; PORTD_LONG=1 all.
func TestPlay(t *testing.T) {
	nstest.Need(t)
	all := scripts(2)
	n := 6
	if long() {
		n = len(all)
	}
	seed := rand.Uint64()
	t.Logf("%d of %d scripts, seed %d", n, len(all), seed)
	for _, i := range rand.New(rand.NewPCG(seed, 0)).Perm(len(all))[:n] {
		t.Run(all[i].String(), func(t *testing.T) { play(t, all[i]) })
	}
}

func play(t *testing.T, script script) {
	s := openTheatre(t)
	c := s.d.Client(t)
	if _, err := c.Reservations.Reserve(t.Context(), &pb.ReserveRequest{Name: "held", Spec: spec("tcp/127.0.0.1:7001")}); err != nil {
		t.Fatal(err)
	}
	a := admit(t, s)
	upgraded := false
	for i := range script {
		b := &script[i]
		if b.older == serving && b.newer == off && i > 0 && script[i-1].victim == "keeper" {
			s.wait(t, "daemon that serves alone", s.alone)
			s.await(t, "there is a keeper again")
		}
		s.mu.Lock()
		s.blow = b
		s.changed.Broadcast()
		s.mu.Unlock()
		if b.newer != off && !upgraded {
			upgraded = true
			s.wait(t, "daemon that serves alone", s.alone)
			_ = unix.Kill(s.actors[0].pid, unix.SIGUSR2)
		}
		s.wait(t, "scene "+b.String(), s.set)
		if t.Failed() {
			return
		}
		strike(t, s, b)
	}
	s.mu.Lock()
	s.blow = nil
	s.changed.Broadcast()
	s.mu.Unlock()
	s.wait(t, "daemon that serves alone", s.alone)
	a.changed(t)
	a.leave(t)
}

// strike kills who is to be. When he is dead the others go on.
func strike(t *testing.T, s *theatre, b *blow) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.still = true
	kill := func(p *player) {
		_ = unix.Kill(p.pid, unix.SIGKILL)
		p.ends = true
	}
	switch b.victim {
	case "older":
		dying := s.actors[:1:1]
		kill(s.actors[0])
		if b.newer >= waiting && b.newer < relieving { // the kernel kills it, too
			s.actors[1].ends = true
			dying = s.actors[:2:2]
		}
		s.gone(slices.Clone(dying)...)
	case "newer":
		kill(s.actors[1])
		s.actors[0].ends = b.newer == relieving || b.newer == serving // it was the daemon, and the keeper ends what is left
		s.gone(s.actors[1])
	default:
		pid := s.cmd.Process.Pid
		for _, p := range s.actors {
			if k := keeperOf(p.pid); k != 0 {
				pid = k
			}
		}
		pidfd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			t.Errorf("the keeper: %v", err)
			break
		}
		_ = unix.Kill(pid, unix.SIGKILL)
		dead(pidfd)
		_ = unix.Close(pidfd)
	}
	s.still, s.blow = false, nil
	s.changed.Broadcast()
}

// An audience is clients of a port that a worker serves, and one that reserves and releases another port all the time.
type audience struct {
	c *client.Client

	stop   context.CancelFunc
	others sync.WaitGroup

	served, refused, reset atomic.Int64
	answers                atomic.Int64
	odd                    chan error

	mu          sync.Mutex
	kept, freed []uint32 // ports that were answered as reserved, and as released
}

func admit(t *testing.T, s *theatre) *audience {
	t.Helper()
	a := &audience{c: s.d.Client(t), odd: make(chan error, 100)}
	ln, err := client.ListenConfig{Portd: client.Options{Socket: s.d.Socket}}.Listen(t.Context(), "tcp/127.0.0.1:7000")
	if err != nil {
		t.Fatal(err)
	}
	var ctx context.Context
	ctx, a.stop = context.WithCancel(context.Background())
	var worker sync.WaitGroup
	worker.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			worker.Go(func() {
				defer conn.Close()
				_, _ = io.Copy(conn, conn)
			})
		}
	})
	for range 4 {
		a.others.Go(func() {
			for ctx.Err() == nil {
				a.count(echo("127.0.0.1:7000"))
			}
		})
	}
	a.others.Go(func() { a.change(ctx) })
	t.Cleanup(func() { a.stop(); a.others.Wait(); ln.Close(); worker.Wait() })
	return a
}

func (a *audience) count(err error) {
	switch {
	case err == nil:
		a.served.Add(1)
	case errors.Is(err, unix.ECONNREFUSED):
		a.refused.Add(1)
	case errors.Is(err, unix.ECONNRESET), errors.Is(err, unix.EPIPE), errors.Is(err, io.EOF):
		a.reset.Add(1)
	default:
		a.note(err)
	}
}

func echo(address string) error {
	conn, err := net.DialTimeout("tcp", address, 20*time.Second)
	if err != nil {
		return err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := conn.Write([]byte("hello\n")); err != nil {
		return err
	}
	_, err = io.ReadFull(conn, make([]byte, 6))
	return err
}

// change reserves a port, releases it, and so on; each tenth it keeps. Each request is repeated until it is answered.
func (a *audience) change(ctx context.Context) {
	for i := uint32(0); ctx.Err() == nil; i++ {
		port := 8000 + i
		var id string
		if !a.ask(ctx, func(request string) error {
			res, err := a.c.Reservations.Reserve(ctx, &pb.ReserveRequest{RequestId: request, Spec: spec(fmt.Sprintf("tcp/127.0.0.1:%d", port))})
			id = res.GetReservation().GetId()
			return err
		}) {
			return
		}
		if i%10 == 0 {
			a.mu.Lock()
			a.kept = append(a.kept, port)
			a.mu.Unlock()
			continue
		}
		if !a.ask(ctx, func(request string) error {
			_, err := a.c.Reservations.Release(ctx, &pb.ReleaseRequest{RequestId: request, Reservation: id})
			return err
		}) {
			return
		}
		a.mu.Lock()
		a.freed = append(a.freed, port)
		a.mu.Unlock()
	}
}

// ask repeats a request until it is answered, and says whether it was. A port that is taken can only be so by a portd.
func (a *audience) ask(ctx context.Context, request func(id string) error) bool {
	id := fmt.Sprint(rand.Uint64())
	for ctx.Err() == nil {
		err := request(id)
		switch {
		case err == nil:
			a.answers.Add(1)
			return true
		case ctx.Err() == nil && !errors.Is(err, client.ErrUnavailable):
			a.note(err)
		}
	}
	return false
}

func (a *audience) note(err error) {
	select {
	case a.odd <- err:
	default:
	}
}

// changed waits until changes are answered again.
func (a *audience) changed(t *testing.T) {
	t.Helper()
	want := a.answers.Load() + 3
	for until := time.Now().Add(30 * time.Second); a.answers.Load() < want; time.Sleep(time.Millisecond) {
		if time.Now().After(until) {
			t.Error("no changes are answered any more")
			return
		}
	}
}

// leave ends it, and says what it has seen.
func (a *audience) leave(t *testing.T) {
	t.Helper()
	a.stop()
	a.others.Wait()
	t.Logf("%d served, %d refused, %d reset, %d changes answered", a.served.Load(), a.refused.Load(), a.reset.Load(), a.answers.Load())
	if a.refused.Load() > 0 || a.reset.Load() > 0 || a.served.Load() == 0 {
		t.Errorf("%d refused, %d reset", a.refused.Load(), a.reset.Load())
	}
	select {
	case err := <-a.odd:
		t.Error(err)
	default:
	}
	list, err := a.c.Reservations.ListReservations(t.Context(), &pb.ListReservationsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if n := len(list.GetReservations()); n < 2+len(a.kept) {
		t.Errorf("there are %d reservations, and %d were answered", n, 2+len(a.kept))
	}
	for _, res := range list.GetReservations() {
		for _, got := range res.GetAssigned() {
			if got.GetState() == pb.EndpointState_ENDPOINT_STATE_LOST {
				t.Errorf("lost: %v", got)
			}
		}
	}
	wantBind(t, 7001, false)
	for _, port := range a.kept {
		wantBind(t, port, false)
	}
	for _, port := range a.freed {
		wantBind(t, port, true)
	}
}

func wantBind(t *testing.T, port uint32, want bool) {
	t.Helper()
	ln, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err == nil {
		ln.Close()
	}
	if (err == nil) != want {
		t.Errorf("bind %d: %v", port, err)
	}
}

func spec(text string) *pb.ReservationSpec {
	ep, err := client.ParseSpec(text)
	if err != nil {
		panic(err)
	}
	return &pb.ReservationSpec{Endpoints: []*pb.EndpointSpec{ep}}
}
