package daemon_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/portd/portd/client"
	pb "github.com/portd/portd/proto/portd/v1"
)

func millis(n int) *durationpb.Duration { return durationpb.New(time.Duration(n) * time.Millisecond) }

// datagram reads what lies in a socket, "" where that is nothing for as long.
func datagram(conn net.PacketConn, patience time.Duration) string {
	_ = conn.SetReadDeadline(time.Now().Add(patience))
	buf := make([]byte, 100)
	n, _, err := conn.ReadFrom(buf)
	if err != nil {
		return ""
	}
	return string(buf[:n])
}

// socket is the one that an Attachment has of its only listener, which ends with the Attachment by let.
func (s *succession) socket(ref string) (conn net.PacketConn, let func()) {
	s.Helper()
	a := s.attach(client.Wish{Reference: ref, Socket: true})
	file := a.Listeners[0].Sockets[0]
	conn, err := net.FilePacketConn(file)
	if err != nil {
		s.Fatal(err)
	}
	file.Close()
	return conn, func() {
		before := len(s.workers(ref))
		conn.Close()
		a.Close()
		waitFor(s, "end of who had a socket", func() bool { return len(s.workers(ref)) < before })
	}
}

func (s *succession) sender(port int) net.Conn {
	s.Helper()
	conn, err := net.DialUDP("udp", nil, &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: port})
	if err != nil {
		s.Fatal(err)
	}
	return conn
}

var callerScenes = []scene{
	{"datagrams", func(s *succession) (func(), func(*testing.T)) {
		s.has("datagrams", &pb.ReserveRequest{Spec: spec(s, "udp/5301")}, nil)
		old, let := s.socket("datagrams")
		from := s.sender(5301)
		say := func(text string) {
			if _, err := io.WriteString(from, text); err != nil {
				s.Errorf("datagram %s: %v", text, err)
			}
		}
		say("1")
		say("2")
		return func() { say("3") }, func(t *testing.T) {
			say("4")
			if got := datagram(old, 5*time.Second); got != "1" {
				t.Errorf("who had the socket before reads %q first", got)
			}
			let() // what it leaves is for the next one
			say("5")
			next, let := s.socket("datagrams")
			for _, want := range []string{"2", "3", "4", "5"} {
				if got := datagram(next, 5*time.Second); got != want {
					t.Errorf("the next one reads %q, want %s", got, want)
				}
			}
			if got := datagram(next, time.Millisecond); got != "" {
				t.Errorf("there is %q, too", got)
			}
			let()
			from.Close()
		}
	}},

	{"a group of sockets", func(s *succession) (func(), func(*testing.T)) {
		group := spec(s, "udp/5302")
		s.has("group", &pb.ReserveRequest{Spec: &pb.ReservationSpec{Endpoints: group.GetEndpoints(), BindOptions: &pb.BindOptions{Group: 3}}}, nil)
		const clients = 24
		var conns [3]net.PacketConn
		var lets [3]func()
		for i := range conns {
			conns[i], lets[i] = s.socket("group")
		}
		var from [clients]net.Conn
		for i := range from {
			from[i] = s.sender(5302)
		}
		say := func() {
			for i, c := range from {
				if _, err := fmt.Fprint(c, i); err != nil {
					s.Errorf("client %d: %v", i, err)
				}
			}
		}
		// read says who of the three has had how much of each client.
		read := func(each int) (had [clients][3]int) {
			left := each * clients
			for deadline := time.Now().Add(10 * time.Second); left > 0 && time.Now().Before(deadline); {
				for i, conn := range conns {
					for text := datagram(conn, time.Millisecond); text != ""; text = datagram(conn, time.Millisecond) {
						n := 0
						_, _ = fmt.Sscan(text, &n)
						had[n][i]++
						left--
					}
				}
			}
			return had
		}
		say()
		before := read(1)
		say()
		return say, func(t *testing.T) {
			say()
			after := read(3)
			for i := range after {
				for j := range conns {
					if after[i][j] != 3*before[i][j] {
						t.Errorf("client %d had %v before, and %v of three after that", i, before[i], after[i])
						break
					}
				}
			}
			for i := range lets {
				lets[i]()
			}
			for _, c := range from {
				c.Close()
			}
		}
	}},

	{"workers that attach", func(s *succession) (func(), func(*testing.T)) {
		s.listens("attach", "tcp/8089", &pb.HandoffOptions{})
		config := client.AttachConfig{Socket: s.k.d.Handoff(), Wishes: []client.Wish{{Reference: "attach", NotReady: true}}}
		return func() {
				var all sync.WaitGroup
				for i := range 20 {
					all.Go(func() {
						time.Sleep(time.Duration(i) * 3 * time.Millisecond) // over all of the succession
						a, err := client.Attach(s.Context(), config)
						if s.how == "killed" && (errors.Is(err, unix.ECONNRESET) || errors.Is(err, unix.EPIPE) || errors.Is(err, io.EOF)) {
							return // it was at the door of the one that was killed
						}
						if err != nil {
							s.Errorf("a worker that attaches: %v", err)
							return
						}
						a.Close()
					})
				}
				all.Wait()
			}, func(t *testing.T) {
				waitFor(t, "end of all of them", func() bool { return len(s.workers("attach")) == 0 })
			}
	}},

	{"a session that is followed", func(s *succession) (func(), func(*testing.T)) {
		session, err := s.c.OpenSession(s.Context())
		if err != nil {
			s.Fatal(err)
		}
		s.has("followed", &pb.ReserveRequest{Spec: spec(s, "tcp/8090"), LeaseId: session.LeaseID()}, nil)
		return nil, func(t *testing.T) {
			waitFor(t, "session that is followed again", func() bool {
				l, err := s.c.Leases.GetLease(t.Context(), &pb.GetLeaseRequest{LeaseId: session.LeaseID()})
				return err == nil && l.GetLease().GetConnected()
			})
			get(t, s.c, "followed")
			if err := session.End(); err != nil {
				t.Error(err)
			}
			wantFree(t, 8090)
		}
	}},

	{"a session within its grace", func(s *succession) (func(), func(*testing.T)) {
		first, leave := session(s.T, s.c, &pb.OpenSessionRequest{Grace: millis(20_000)})
		s.has("graced", &pb.ReserveRequest{Spec: spec(s, "tcp/8091"), LeaseId: first.GetLease().GetId()}, nil)
		leave()
		return nil, func(t *testing.T) {
			again, leave := session(t, s.c, &pb.OpenSessionRequest{ResumeToken: first.GetResumeToken()})
			defer leave()
			if !again.GetResumed() || again.GetLease().GetId() != first.GetLease().GetId() {
				t.Errorf("it is resumed as %v", again)
			}
			get(t, s.c, "graced")
			wantHeld(t, 8091)
			if _, err := s.c.Leases.EndLease(t.Context(), &pb.EndLeaseRequest{LeaseId: first.GetLease().GetId()}); err != nil {
				t.Error(err)
			}
			wantFree(t, 8091)
		}
	}},

	{"a watch", func(s *succession) (func(), func(*testing.T)) {
		w := newWatch(s.T, s.c, head(s.T, s.c)+1)
		mark := w.next(s.T)
		s.has("watched", &pb.ReserveRequest{Spec: spec(s, "tcp/8092")}, nil)
		ch := w.next(s.T)
		for ; len(ch.GetEvents()) == 0 || ch.GetEvents()[0].GetReservation().GetName() != "watched"; ch = w.next(s.T) {
		}
		return nil, func(t *testing.T) {
			for err := error(nil); err == nil; _, err = w.stream.Recv() { // to its end, which says that it can be resumed
				if err != nil && !errors.Is(err, client.ErrUnavailable) {
					t.Errorf("the watch ends with %v", err)
				}
			}
			releaseRef(t, s.c, "watched")
			w, err := s.c.Reservations.WatchReservations(t.Context(), &pb.WatchReservationsRequest{StartRevision: ch.GetRevision() + 1, StoreId: mark.GetStoreId()})
			if err != nil {
				t.Fatal(err)
			}
			for {
				ch, err := w.Recv()
				if err != nil {
					t.Fatal(err)
				}
				for _, ev := range ch.GetEvents() {
					if ev.GetReservation().GetName() != "watched" {
						continue
					}
					if ev.GetType() != pb.EventType_EVENT_TYPE_RELEASED {
						t.Errorf("the watch goes on with %v", ev)
					}
					return
				}
			}
		}
	}},

	{"calls", func(s *succession) (func(), func(*testing.T)) {
		s.has("called", &pb.ReserveRequest{Spec: spec(s, "tcp/8093")}, nil)
		ctx, cancel := context.WithCancel(s.Context())
		failed, done := make(chan error, 1), make(chan int, 2)
		calling := func(call func() error) {
			n := 0
			for ; ctx.Err() == nil; n++ {
				if err := call(); err != nil && ctx.Err() == nil {
					select {
					case failed <- err:
					default:
					}
				}
			}
			done <- n
		}
		rest := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", s.k.d.Socket)
		}}}
		go calling(func() error {
			resp, err := rest.Get("http://portd/v1/reservations/called")
			// What an HTTP client asks just when portd is killed it asks again, and where it is told to.
			for i := 0; i < 3; i++ {
				switch {
				case errors.Is(err, io.EOF), errors.Is(err, unix.ECONNRESET), errors.Is(err, unix.EPIPE):
				case err == nil && resp.StatusCode == http.StatusServiceUnavailable && resp.Header.Get("Retry-After") == "0":
					resp.Body.Close()
				default:
					i = 3
					continue
				}
				resp, err = rest.Get("http://portd/v1/reservations/called")
			}
			if err != nil {
				return fmt.Errorf("by REST: %w", err)
			}
			defer resp.Body.Close()
			var got struct{ Reservation struct{ Name string } }
			if err := json.NewDecoder(resp.Body).Decode(&got); err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
				return fmt.Errorf("by REST: %w", err)
			}
			if resp.StatusCode != http.StatusOK || got.Reservation.Name != "called" {
				return fmt.Errorf("by REST: %s, %+v", resp.Status, got)
			}
			return nil
		})
		go calling(func() error {
			_, err := s.c.Reservations.GetReservation(ctx, &pb.GetReservationRequest{Reservation: "called"})
			return err
		})
		return nil, func(t *testing.T) {
			cancel()
			for range 2 {
				if n := <-done; n < 2 {
					t.Errorf("%d calls", n)
				}
			}
			select {
			case err := <-failed:
				t.Errorf("a call failed: %v", err)
			default:
			}
			rest.CloseIdleConnections()
		}
	}},
}
