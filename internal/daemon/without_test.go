package daemon_test

import (
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/portd/portd/client"
	"github.com/portd/portd/internal/portdtest"
	pb "github.com/portd/portd/proto/portd/v1"
)

const target = "127.0.0.1:8080"

// listenWithout makes a port listen as o has it.
func listenWithout(t *testing.T, c *client.Client, o *pb.HandoffOptions) {
	t.Helper()
	if _, err := c.Reservations.Listen(t.Context(), &pb.ListenRequest{Reservation: "web", Options: &pb.ListenOptions{Handoff: o}}); err != nil {
		t.Fatal(err)
	}
}

// serve attaches a worker that says a word to each client.
func serve(t *testing.T, d *portdtest.Daemon, how client.Wish) *client.Listener {
	t.Helper()
	how.Reference = "web"
	l, err := client.Join(t.Context(), client.AttachConfig{Socket: d.Handoff(), Wishes: []client.Wish{how}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(conn, "hello")
			conn.Close()
		}
	}()
	return l
}

// hello asks a worker for its word.
func hello(timeout time.Duration) error {
	conn, err := net.DialTimeout("tcp", target, timeout)
	if err != nil {
		return err
	}
	defer conn.Close()
	_ = conn.SetReadDeadline(time.Now().Add(timeout))
	_, err = io.ReadFull(conn, make([]byte, 5))
	return err
}

func wantReception(t *testing.T, c *client.Client, want pb.Reception) (l *pb.Listener) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		got, err := c.Handoff.ListListeners(t.Context(), &pb.ListListenersRequest{Reservation: "web"})
		if err != nil {
			t.Fatal(err)
		}
		l := got.GetListeners()[0]
		if l.GetReception() == want {
			return l
		}
		if time.Now().After(deadline) {
			t.Fatalf("clients are %v, want %v", l.GetReception(), want)
		}
		time.Sleep(time.Millisecond)
	}
}

func wantRefused(t *testing.T) {
	t.Helper()
	if err := hello(5 * time.Second); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("a client without a worker: %v", err)
	}
}

func wantServed(t *testing.T) {
	t.Helper()
	if err := hello(20 * time.Second); err != nil {
		t.Errorf("a client: %v", err)
	}
}

// Whenever no worker is attached and ready clients are refused, and the first client after one has attached is not.
func TestRefuseWithoutWorker(t *testing.T) {
	d, c := start(t)
	reserve(t, c, "web", "tcp/8080")
	listenWithout(t, c, &pb.HandoffOptions{WithoutWorker: pb.WithoutWorker_WITHOUT_WORKER_REFUSE})
	wantRefused(t)
	for range 20 {
		l := serve(t, d, client.Wish{})
		wantServed(t)
		l.Close()
		wantReception(t, c, pb.Reception_RECEPTION_REFUSING)
		wantRefused(t)
	}
	late := serve(t, d, client.Wish{NotReady: true})
	wantRefused(t)
	late.Close()

	d.Restart(t)
	c = d.Client(t)
	wantReception(t, c, pb.Reception_RECEPTION_REFUSING)
	wantRefused(t)
	wantHeld(t, 8080)
	serve(t, d, client.Wish{})
	wantServed(t)
	wantReception(t, c, pb.Reception_RECEPTION_SERVED)
}

// A client in the queue of a worker that drains, and then leaves it there, is refused like the others.
func TestRefuseWhatIsTakenBack(t *testing.T) {
	d, c := start(t)
	reserve(t, c, "web", "tcp/8080")
	listenWithout(t, c, &pb.HandoffOptions{WithoutWorker: pb.WithoutWorker_WITHOUT_WORKER_REFUSE})
	a, err := client.Attach(t.Context(), client.AttachConfig{Socket: d.Handoff(), Wishes: []client.Wish{{Reference: "web"}}})
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("tcp", target)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for wantReception(t, c, pb.Reception_RECEPTION_SERVED).GetHandedOver() == 0 {
		time.Sleep(time.Millisecond)
	}
	if err := a.Drain(client.AllListeners); err != nil {
		t.Fatal(err)
	}
	wantReception(t, c, pb.Reception_RECEPTION_REFUSING)
	a.Close()
	_ = conn.SetReadDeadline(time.Now().Add(20 * time.Second))
	if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("the client is told %v", err)
	}
	if l := wantReception(t, c, pb.Reception_RECEPTION_REFUSING); l.GetRefused() != 1 || l.GetHeld() != 0 {
		t.Errorf("%v", l)
	}
}

// What has the socket itself serves, too.
func TestRefuseWithSocketLent(t *testing.T) {
	d, c := start(t)
	reserve(t, c, "web", "tcp/8080")
	listenWithout(t, c, &pb.HandoffOptions{WithoutWorker: pb.WithoutWorker_WITHOUT_WORKER_REFUSE})
	a, err := client.Attach(t.Context(), client.AttachConfig{Socket: d.Handoff(), Wishes: []client.Wish{{Reference: "web", Socket: true}}})
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.FileListener(a.Listeners[0].Sockets[0])
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(conn, "hello")
			conn.Close()
		}
	}()
	wantServed(t)
	wantReception(t, c, pb.Reception_RECEPTION_SERVED)
	a.Close()
	wantReception(t, c, pb.Reception_RECEPTION_REFUSING)
	wantRefused(t)
	ln.Close()
	a.Listeners[0].Sockets[0].Close()
	serve(t, d, client.Wish{})
	wantServed(t)
}

func TestParkWithoutWorker(t *testing.T) {
	d, c := start(t)
	reserve(t, c, "web", "tcp/8080")
	listenWithout(t, c, &pb.HandoffOptions{WithoutWorker: pb.WithoutWorker_WITHOUT_WORKER_PARK})
	for range 2 {
		wantReception(t, c, pb.Reception_RECEPTION_PARKING)
		if err := hello(100 * time.Millisecond); !isTimeout(err) {
			t.Errorf("a client who is parked: %v", err)
		}
		parked := make(chan error, 1)
		go func() { parked <- hello(20 * time.Second) }()
		l := serve(t, d, client.Wish{})
		wantServed(t)
		if err := <-parked; err != nil {
			t.Errorf("who was parked: %v", err)
		}
		l.Close()
	}
}

func isTimeout(err error) bool {
	var timeout net.Error
	return errors.As(err, &timeout) && timeout.Timeout()
}

// Waiting turns into refusing, which resets who waits, and back.
func TestRefuseAfter(t *testing.T) {
	for _, without := range []pb.WithoutWorker{pb.WithoutWorker_WITHOUT_WORKER_WAIT, pb.WithoutWorker_WITHOUT_WORKER_PARK} {
		t.Run(without.String(), func(t *testing.T) {
			d, c := start(t)
			reserve(t, c, "web", "tcp/8080")
			listenWithout(t, c, &pb.HandoffOptions{WithoutWorker: without})
			parks := without == pb.WithoutWorker_WITHOUT_WORKER_PARK
			var waiting net.Conn
			if !parks {
				var err error
				if waiting, err = net.Dial("tcp", target); err != nil {
					t.Fatal(err)
				}
				defer waiting.Close()
				wantReception(t, c, pb.Reception_RECEPTION_WAITING)
			}
			listenWithout(t, c, &pb.HandoffOptions{WithoutWorker: without, RefuseAfter: durationpb.New(200 * time.Millisecond)})
			l := wantReception(t, c, pb.Reception_RECEPTION_REFUSING)
			wantRefused(t)
			if !parks {
				_ = waiting.SetReadDeadline(time.Now().Add(10 * time.Second))
				if _, err := waiting.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
					t.Errorf("who waited: %v", err)
				}
				if l.GetRefused() != 1 {
					t.Errorf("%d are counted as refused, want 1", l.GetRefused())
				}
			}
			w := serve(t, d, client.Wish{})
			wantServed(t)
			w.Close()
			before := pb.Reception_RECEPTION_WAITING
			if parks {
				before = pb.Reception_RECEPTION_PARKING
			}
			wantReception(t, c, before)
			wantReception(t, c, pb.Reception_RECEPTION_REFUSING)
			// Waiting for ever again lets clients in without a worker.
			listenWithout(t, c, &pb.HandoffOptions{})
			conn, err := net.Dial("tcp", target)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
		})
	}
}
