package daemon_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/client"
	"github.com/portd/portd/internal/nstest"
	"github.com/portd/portd/internal/portdtest"
	pb "github.com/portd/portd/proto/portd/v1"
)

// A succession is a portd with its keeper, which dies or is upgraded in the middle of what scenes do.
type succession struct {
	*testing.T
	k   *kept
	c   *client.Client
	how string // killed or upgraded
}

// A scene sets something up, of which during is what goes on while one portd takes the place of another, and after what is to be seen then. A nil
// during is nothing.
type scene struct {
	name string
	set  func(s *succession) (during func(), after func(t *testing.T))
}

// Whatever portd is in the middle of, for whomever: its successor goes on with that.
func TestSuccession(t *testing.T) {
	nstest.Need(t)
	k := startKept(t, portdtest.New(t), self(t), envAct+"=daemon", envVersion+"=new")
	s := &succession{T: t, k: k, c: k.d.Client(t)}
	rounds := 1
	if os.Getenv("PORTD_LONG") != "" {
		rounds = 10
	}
	for range rounds {
		for _, how := range []string{"killed", "upgraded"} {
			type act struct {
				name   string
				during func()
				after  func(t *testing.T)
			}
			var acts []act
			s.how = how
			for _, sc := range slices.Concat(handoffScenes, callerScenes, []scene{parkingScene}) {
				during, after := sc.set(s)
				acts = append(acts, act{sc.name, during, after})
			}
			var going sync.WaitGroup
			begin := func() {
				for _, a := range acts {
					if a.during != nil {
						going.Go(a.during)
					}
				}
			}
			pid := k.pid(t, 0)
			if how == "killed" {
				if err := unix.Kill(pid, unix.SIGKILL); err != nil {
					t.Fatal(err)
				}
				begin()
				k.pid(t, pid)
			} else {
				begin()
				if _, err := upgrade(t, s.c, ""); err != nil {
					t.Fatal(err)
				}
			}
			going.Wait()
			for _, a := range acts {
				t.Run(how+"/"+a.name, a.after)
			}
			if st := k.status(); st.GetHandoff().GetLost() > 0 {
				t.Errorf("%s: %d connections are counted as lost", how, st.GetHandoff().GetLost())
			}
			for line := range strings.Lines(k.log.String()) {
				if strings.Contains(line, `"level":"ERROR"`) && !strings.Contains(line, `"part":"keeper"`) {
					t.Errorf("%s: %s", how, line)
				}
			}
		}
	}
}

// has makes a reservation where there is none of this name yet, and lets it listen where o is not nil.
func (s *succession) has(name string, req *pb.ReserveRequest, o *pb.HandoffOptions) {
	s.Helper()
	_, err := s.c.Reservations.GetReservation(s.Context(), &pb.GetReservationRequest{Reservation: name})
	if err == nil {
		return
	}
	req.Name = name
	if _, err = s.c.Reservations.Reserve(s.Context(), req); err == nil && o != nil {
		_, err = s.c.Reservations.Listen(s.Context(), &pb.ListenRequest{Reservation: name, Options: &pb.ListenOptions{Handoff: o}})
	}
	if err != nil {
		s.Fatalf("%s: %v", name, err)
	}
}

// listens is has of a port.
func (s *succession) listens(name, endpoint string, o *pb.HandoffOptions) {
	s.Helper()
	s.has(name, &pb.ReserveRequest{Spec: spec(s, endpoint)}, o)
}

func (s *succession) attach(w client.Wish) *client.Attachment {
	s.Helper()
	a, err := client.Attach(s.Context(), client.AttachConfig{Socket: s.k.d.Handoff(), Wishes: []client.Wish{w}})
	if err != nil {
		s.Fatalf("attach to %s: %v", w.Reference, err)
	}
	return a
}

func (s *succession) join(w client.Wish) *client.Listener {
	s.Helper()
	l, err := client.Join(s.Context(), client.AttachConfig{Socket: s.k.d.Handoff(), Wishes: []client.Wish{w}}, nil)
	if err != nil {
		s.Fatalf("join %s: %v", w.Reference, err)
	}
	return l
}

// answers lets a worker say its word to each client, until the Listener ends.
func answers(l net.Listener, word string) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		_, _ = io.WriteString(conn, word)
		conn.Close()
	}
}

// worker joins, and answers.
func (s *succession) worker(word string, w client.Wish) *client.Listener {
	s.Helper()
	l := s.join(w)
	go answers(l, word)
	return l
}

// word is what a client is told, from an address of its own if from is not 0.
func word(network, addr string, from byte) (string, error) {
	d := net.Dialer{Timeout: 20 * time.Second}
	if from != 0 {
		d.LocalAddr = &net.TCPAddr{IP: net.IPv4(127, 1, 1, from)}
	}
	conn, err := d.Dial(network, addr)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	_ = conn.SetReadDeadline(time.Now().Add(20 * time.Second))
	said, err := io.ReadAll(conn)
	return string(said), err
}

// words counts what clients are told who come one after the other.
func words(t *testing.T, addr string, n int) map[string]int {
	t.Helper()
	said := map[string]int{}
	for range n {
		w, err := word("tcp", addr, 0)
		if err != nil {
			t.Errorf("a client of %s: %v", addr, err)
		}
		said[w]++
	}
	return said
}

// listener is what portd says of one.
func (s *succession) listener(ref string) *pb.Listener {
	got, err := s.c.Handoff.ListListeners(s.Context(), &pb.ListListenersRequest{Reservation: ref})
	if err != nil || len(got.GetListeners()) != 1 {
		s.Fatalf("%s: %v, %v", ref, got, err)
	}
	return got.GetListeners()[0]
}

// workers are those of a reservation.
func (s *succession) workers(ref string) []*pb.Worker {
	got, err := s.c.Handoff.ListWorkers(s.Context(), &pb.ListWorkersRequest{Reservation: ref})
	if err != nil {
		s.Fatalf("%s: %v", ref, err)
	}
	return got.GetWorkers()
}

func (s *succession) awaitReception(ref string, want pb.Reception) {
	waitFor(s, fmt.Sprintf("%v of %s", want, ref), func() bool { return s.listener(ref).GetReception() == want })
}

// queued connects a client, and waits until its connection lies in a worker's queue.
func (s *succession) queued(ref, addr string) net.Conn {
	s.Helper()
	before := s.listener(ref).GetHandedOver()
	conn := dialed(s, addr)
	waitFor(s, "connection in the queue", func() bool { return s.listener(ref).GetHandedOver() > before })
	return conn
}

func dialed(t testing.TB, addr string) net.Conn {
	t.Helper()
	conn, err := net.DialTimeout("tcp", addr, 20*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	_ = conn.SetReadDeadline(time.Now().Add(20 * time.Second))
	return conn
}

// wantWord fails t where a client who has connected is told another word.
func wantWord(t *testing.T, conn net.Conn, want string) {
	t.Helper()
	if said, err := io.ReadAll(conn); string(said) != want {
		t.Errorf("the client is told %q, %v; want %q", said, err, want)
	}
}

var handoffScenes = []scene{
	{"a path", func(s *succession) (func(), func(*testing.T)) {
		path := s.k.d.Dir + "/app.sock"
		s.listens("path", "unix"+path, &pb.HandoffOptions{})
		l := s.worker("path", client.Wish{Reference: "path"})
		before := inode(s.T, path)
		said := func() {
			for range 5 {
				if got, err := word("unix", path, 0); got != "path" {
					s.Errorf("a client of the path is told %q, %v", got, err)
				}
			}
		}
		return said, func(t *testing.T) {
			said()
			if inode(t, path) != before {
				t.Error("the socket's file is another one")
			}
			l.Close()
		}
	}},

	{"a standby", func(s *succession) (func(), func(*testing.T)) {
		const addr = "127.0.0.1:8081"
		s.listens("tiers", "tcp/8081", &pb.HandoffOptions{})
		first, busy, open := s.join(client.Wish{Reference: "tiers"}), make(chan struct{}), make(chan struct{})
		go func() {
			conn, err := first.Accept()
			close(busy)
			if err != nil {
				return
			}
			<-open
			_, _ = io.WriteString(conn, "first")
			conn.Close()
			answers(first, "first")
		}()
		second := s.worker("second", client.Wish{Reference: "tiers", Priority: 1})
		var all sync.WaitGroup
		spilled := make(chan struct{}, 20)
		for i := range cap(spilled) { // more than the first one has room for, which takes but one of them
			if i == 1 {
				<-busy
			}
			all.Go(func() {
				got, err := word("tcp", addr, 0)
				if err != nil {
					s.Errorf("a client of two tiers: %v", err)
				}
				if got == "second" {
					spilled <- struct{}{}
				}
			})
		}
		<-spilled
		during := func() {
			if got, err := word("tcp", addr, 0); got != "second" {
				s.Errorf("with the first tier full it is %q, %v", got, err)
			}
		}
		return during, func(t *testing.T) {
			during()
			close(open)
			all.Wait()
			waitFor(t, "first tier with room", func() bool { got, _ := word("tcp", addr, 0); return got == "first" })
			if got := words(t, addr, 20); got["first"] != 20 {
				t.Errorf("with room in the first tier: %v", got)
			}
			first.Close()
			waitFor(t, "end of the first", func() bool { return len(s.workers("tiers")) == 1 })
			if got := words(t, addr, 5); got["second"] != 5 {
				t.Errorf("without the first tier: %v", got)
			}
			second.Close()
		}
	}},

	{"by address", func(s *succession) (func(), func(*testing.T)) {
		s.listens("sticky", "tcp/8082", &pb.HandoffOptions{Strategy: pb.Strategy_STRATEGY_CLIENT_ADDRESS})
		var all []*client.Listener
		for i := range 3 {
			all = append(all, s.worker(fmt.Sprint(i), client.Wish{Reference: "sticky"}))
		}
		whose := func() (of [24]string) {
			for i := range of {
				var err error
				if of[i], err = word("tcp", "127.0.0.1:8082", byte(i+2)); err != nil {
					s.Errorf("a client with an address: %v", err)
				}
			}
			return of
		}
		before := whose()
		same := func() {
			if after := whose(); after != before {
				s.Errorf("clients had %v and have %v", before, after)
			}
		}
		return same, func(*testing.T) {
			same()
			for _, l := range all {
				l.Close()
			}
		}
	}},

	{"by weight", func(s *succession) (func(), func(*testing.T)) {
		s.listens("weights", "tcp/8083", &pb.HandoffOptions{Strategy: pb.Strategy_STRATEGY_ROUND_ROBIN})
		heavy, light := s.worker("3", client.Wish{Reference: "weights", Weight: 3}), s.worker("1", client.Wish{Reference: "weights"})
		return nil, func(t *testing.T) {
			if got := words(t, "127.0.0.1:8083", 40); got["1"] < 8 || got["1"] > 12 || got["3"] != 40-got["1"] {
				t.Errorf("of 40 clients by weights 3 and 1: %v", got)
			}
			heavy.Close()
			light.Close()
		}
	}},

	{"the socket itself", func(s *succession) (func(), func(*testing.T)) {
		const addr = "127.0.0.1:8084"
		s.listens("lent", "tcp/8084", &pb.HandoffOptions{WithoutWorker: pb.WithoutWorker_WITHOUT_WORKER_REFUSE})
		a := s.attach(client.Wish{Reference: "lent", Socket: true})
		ln, err := net.FileListener(a.Listeners[0].Sockets[0])
		if err != nil {
			s.Fatal(err)
		}
		go answers(ln, "itself")
		s.awaitReception("lent", pb.Reception_RECEPTION_SERVED)
		asked := func() {
			for range 10 {
				if got, err := word("tcp", addr, 0); got != "itself" {
					s.Errorf("a client of the one who has the socket: %q, %v", got, err)
				}
			}
		}
		return asked, func(t *testing.T) {
			asked()
			if got := s.listener("lent").GetReception(); got != pb.Reception_RECEPTION_SERVED {
				t.Errorf("with the socket lent its clients are %v", got)
			}
			_, _ = ln.Close(), a.Listeners[0].Sockets[0].Close()
			a.Close()
			s.awaitReception("lent", pb.Reception_RECEPTION_REFUSING)
			if _, err := word("tcp", addr, 0); !errors.Is(err, unix.ECONNREFUSED) {
				t.Errorf("when the socket was given back: %v", err)
			}
			wantHeld(t, 8084)
			l := s.worker("worker", client.Wish{Reference: "lent"})
			if got := words(t, addr, 3); got["worker"] != 3 {
				t.Errorf("a worker after that: %v", got)
			}
			l.Close()
			s.awaitReception("lent", pb.Reception_RECEPTION_REFUSING)
		}
	}},

	{"refusing", func(s *succession) (func(), func(*testing.T)) {
		const addr = "127.0.0.1:8085"
		s.listens("refuse", "tcp/8085", &pb.HandoffOptions{WithoutWorker: pb.WithoutWorker_WITHOUT_WORKER_REFUSE})
		s.awaitReception("refuse", pb.Reception_RECEPTION_REFUSING)
		refused := func() {
			for range 20 {
				if _, err := word("tcp", addr, 0); !errors.Is(err, unix.ECONNREFUSED) {
					s.Errorf("a client without a worker: %v", err)
				}
				time.Sleep(5 * time.Millisecond) // over all of the succession
			}
		}
		return refused, func(t *testing.T) {
			if got := s.listener("refuse").GetReception(); got != pb.Reception_RECEPTION_REFUSING {
				t.Errorf("clients are %v", got)
			}
			refused()
			wantHeld(t, 8085)
			l := s.worker("worker", client.Wish{Reference: "refuse"})
			if got := words(t, addr, 3); got["worker"] != 3 {
				t.Errorf("%v", got)
			}
			l.Close()
		}
	}},

	{"draining", func(s *succession) (func(), func(*testing.T)) {
		const addr = "127.0.0.1:8087"
		s.listens("drain", "tcp/8087", &pb.HandoffOptions{})
		old := s.join(client.Wish{Reference: "drain"})
		first := s.queued("drain", addr)
		drained := make(chan error, 1)
		go func() { drained <- old.Drain(context.Background()) }()
		draining := func() bool {
			all := s.workers("drain")
			return len(all) > 0 && all[0].GetListeners()[0].GetState() == pb.WorkerState_WORKER_STATE_DRAINING && !all[0].GetListeners()[0].GetDrained()
		}
		waitFor(s, "drain", draining)
		var second net.Conn
		return func() { second = dialed(s, addr) }, func(t *testing.T) {
			if !draining() {
				t.Errorf("the drain has become %v", s.workers("drain"))
			}
			next := s.worker("next", client.Wish{Reference: "drain"})
			wantWord(t, second, "next")
			select {
			case err := <-drained:
				t.Errorf("it has drained with one in its queue: %v", err)
			default:
			}
			answers(old, "old")
			wantWord(t, first, "old")
			if err := <-drained; err != nil {
				t.Errorf("the drain ends with %v", err)
			}
			old.Close()
			next.Close()
		}
	}},

	{"stuck", func(s *succession) (func(), func(*testing.T)) {
		const addr = "127.0.0.1:8088"
		s.listens("stuck", "tcp/8088", &pb.HandoffOptions{TakeBackAfter: millis(400)})
		stuck := s.attach(client.Wish{Reference: "stuck"})
		conn := s.queued("stuck", addr)
		return nil, func(t *testing.T) {
			other := s.worker("other", client.Wish{Reference: "stuck"})
			wantWord(t, conn, "other")
			if i := slices.IndexFunc(s.workers("stuck"), func(w *pb.Worker) bool { return w.GetStuck() && w.GetTakenBack() == 1 }); i < 0 {
				t.Errorf("who is stuck? %v", s.workers("stuck"))
			}
			other.Close()
			stuck.Close()
		}
	}},
}

// parking comes last, for it takes a second.
var parkingScene = scene{"parking", func(s *succession) (func(), func(*testing.T)) {
	const addr = "127.0.0.1:8086"
	s.listens("park", "tcp/8086", &pb.HandoffOptions{WithoutWorker: pb.WithoutWorker_WITHOUT_WORKER_PARK})
	s.awaitReception("park", pb.Reception_RECEPTION_PARKING)
	parked := make(chan string, 1)
	come := func() { // the kernel tries again after a second
		go func() {
			got, err := word("tcp", addr, 0)
			parked <- fmt.Sprint(got, err)
		}()
	}
	return come, func(t *testing.T) {
		if got := s.listener("park").GetReception(); got != pb.Reception_RECEPTION_PARKING {
			t.Errorf("clients are %v", got)
		}
		if conn, err := net.DialTimeout("tcp", addr, 20*time.Millisecond); !isTimeout(err) {
			t.Errorf("a client who is to be parked: %v, %v", conn, err)
		}
		l := s.worker("worker", client.Wish{Reference: "park"})
		if got := <-parked; got != "worker<nil>" {
			t.Errorf("who was parked is told %s", got)
		}
		l.Close()
	}
}}
