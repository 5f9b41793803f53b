package handoff_test

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/fdpass"
	"github.com/portd/portd/internal/handoff"
	"github.com/portd/portd/internal/nstest"
	"github.com/portd/portd/internal/registry"
	"github.com/portd/portd/internal/wire"
)

// A scribe is a worker that answers each connection with its number, by the bytes of the protocol, and holds the sequences to be
// as they should.
type scribe struct {
	*rawWorker
	number int

	mu       sync.Mutex
	last     uint64
	served   int
	gaps     int
	repeated int
	again    int // connections that were sent again
	stop     chan struct{}
	done     chan struct{}
}

func (d *dynasty) scribe(number int, w wire.Wish) *scribe {
	raw := d.host.attach(wire.Attach{Wishes: []wire.Wish{w}})
	d.reign.ask(d.t) // it has noted that the worker is told: one of which it does not know would be let go
	return d.run(raw, number)
}

func (d *dynasty) run(w *rawWorker, number int) *scribe {
	s := &scribe{rawWorker: w, number: number, stop: make(chan struct{}), done: make(chan struct{})}
	_ = s.SetDeadline(time.Time{})
	go s.serve()
	d.t.Cleanup(s.end)
	return s
}

// count is how many connections it has had, how many messages were not the next ones, and how many connections had been another's before.
func (s *scribe) count() (served, wrong, again int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.served, s.repeated + s.gaps, s.again
}

func (s *scribe) end() {
	select {
	case <-s.stop:
	default:
		close(s.stop)
	}
	<-s.done
}

func (s *scribe) serve() {
	defer close(s.done)
	var in fdpass.Receiver
	for {
		select {
		case <-s.stop:
			return
		default:
		}
		poll := []unix.PollFd{{Fd: int32(s.queue), Events: unix.POLLIN}}
		if n, _ := unix.Poll(poll, 20); n == 0 {
			continue
		}
		s.page.BeginTake()
		sequence, conns, fds, err := s.takeNow(&in)
		s.page.EndTake(sequence, len(conns))
		if errors.Is(err, unix.EAGAIN) {
			continue
		}
		if err != nil {
			return
		}
		s.mu.Lock()
		switch {
		case sequence <= s.last:
			s.repeated++
		case sequence != s.last+1:
			s.gaps++
		}
		s.last = sequence
		s.served += len(conns)
		for _, c := range conns {
			if c.Flags&wire.Redelivered != 0 {
				s.again++
			}
		}
		s.mu.Unlock()
		for _, fd := range fds {
			go func() {
				defer unix.Close(fd)
				defer s.page.AddDone(1)
				var b [16]byte
				_, err := unix.Read(fd, b[:])
				for ; err == unix.EAGAIN; _, err = unix.Read(fd, b[:]) {
					_, _ = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 20_000)
				}
				if err == nil {
					_, _ = unix.Write(fd, fmt.Append(nil, s.number))
				}
			}()
		}
	}
}

// load asks all the time, so many at a time, until stop is called.
func (d *dynasty) load(atATime int) (a *account, stop func()) {
	a = &account{by: map[int]int{}, received: map[int]int{}}
	ended := make(chan struct{})
	var asking sync.WaitGroup
	for range atATime {
		asking.Go(func() {
			for {
				select {
				case <-ended:
					return
				default:
					a.ask(d.addr)
				}
			}
		})
	}
	return a, sync.OnceFunc(func() {
		close(ended)
		asking.Wait()
	})
}

// portd is killed under load again and again, at any moment. Each time its successor goes on: workers notice nothing, no client is refused, each
// is answered by one worker, and those that portd had in hand are counted.
func TestKilledUnderLoad(t *testing.T) {
	for _, test := range []struct {
		name    string
		options registry.HandoffOptions
		holders bool
	}{
		{"least active", registry.HandoffOptions{}, false},
		{"by address", registry.HandoffOptions{Strategy: registry.ClientAddress}, false},
		{"least active, with a holder", registry.HandoffOptions{}, true},
		{"by address, with a holder", registry.HandoffOptions{Strategy: registry.ClientAddress}, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			nstest.Descriptors(t)
			d := begun(t, &dynasty{options: test.options, holders: test.holders})
			var scribes []*scribe
			for i := range 3 {
				scribes = append(scribes, d.scribe(i, connections(dynastyID)))
			}
			a, stop := d.load(16)
			defer stop()
			kills := repeat(4, 300)
			for range kills {
				time.Sleep(time.Duration(rand.IntN(20_000)) * time.Microsecond)
				d.kill()
				d.begin()
			}
			stop()
			got := d.reign.ask(t)
			d.settled(t, a, scribes, got.Totals, kills)
			if len(got.Workers) != len(scribes) {
				t.Errorf("%d workers are left of %d", len(got.Workers), len(scribes))
			}
			for _, w := range got.Workers {
				if w.Sent != w.Received {
					t.Errorf("%s was sent %d, and received %d", w.ID, w.Sent, w.Received)
				}
			}
		})
	}
}

// settled compares what clients, workers and portd say of the connections.
func (d *dynasty) settled(t *testing.T, a *account, scribes []*scribe, got handoff.Totals, kills int) {
	t.Helper()
	served := 0
	for _, s := range scribes {
		s.mu.Lock()
		served += s.served
		if s.repeated > 0 || s.gaps > 0 {
			t.Errorf("worker %d: %d sequences came again, %d are missing", s.number, s.repeated, s.gaps)
		}
		s.mu.Unlock()
	}
	for by := range a.by {
		if by < 0 || by >= len(scribes) {
			t.Errorf("a client was answered by %d", by)
		}
	}
	for _, err := range a.failed {
		if errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("refused: %v", err)
		}
	}
	most := kills * handoff.PerMessage
	if d.options.Strategy == registry.ClientAddress {
		most = kills * (handoff.PerMessage + handoff.MostStaged)
	}
	if d.holders {
		most = 0
		if got.Lost > 0 {
			t.Errorf("%d connections are counted as lost", got.Lost)
		}
	}
	if len(a.failed) > most || len(a.failed) > int(got.Lost) {
		t.Errorf("%d clients were not answered after %d kills; portd says that %d may be lost", len(a.failed), kills, got.Lost)
		for i := range min(3, len(a.failed)) {
			t.Log(a.failed[i])
		}
	}
	if served != a.asked-len(a.failed) || uint64(served) != got.HandedOver-got.Redelivered {
		t.Errorf("%d asked, %d failed, %d served: %+v", a.asked, len(a.failed), served, got)
	}
	for i := range min(5, len(a.failed)) {
		t.Log(a.failed[i])
	}
	t.Logf("%d kills, %d connections, %d not answered, %d counted as lost, %d handed over again", kills, a.asked, len(a.failed), got.Lost, got.Redelivered)
}

// What lies in a worker's queue, and in the backlog, while portd is dead, is served.
func TestQueueAndBacklog(t *testing.T) {
	nstest.Descriptors(t)
	d := newDynasty(t, registry.HandoffOptions{})
	w := d.host.attach(wire.Attach{Wishes: []wire.Wish{connections(dynastyID)}})
	queued := d.clients(3)
	until(t, "a message is in the queue", func() bool { return d.reign.ask(t).Totals.HandedOver > 0 })
	d.kill()
	waiting := d.clients(5)
	d.begin()
	s := d.run(w, 7)
	for _, c := range append(queued, waiting...) {
		if answer, err := io.ReadAll(c); string(answer) != "7" || err != nil {
			t.Errorf("%q, %v", answer, err)
		}
	}
	if served, wrong, _ := s.count(); wrong > 0 || served != 8 {
		t.Errorf("%d served, %d sequences came again or are missing", served, wrong)
	}
}

// clients are n that have connected and asked.
func (d *dynasty) clients(n int) (all []net.Conn) {
	d.t.Helper()
	for range n {
		c, err := net.Dial("tcp", d.addr)
		if err != nil {
			d.t.Fatal(err)
		}
		d.t.Cleanup(func() { c.Close() })
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
		if _, err := io.WriteString(c, "who?"); err != nil {
			d.t.Fatal(err)
		}
		all = append(all, c)
	}
	return all
}

// take receives a message where there is one.
func (w *rawWorker) takeNow(in *fdpass.Receiver) (sequence uint64, conns []wire.Connection, fds []int, err error) {
	var buf [handoff.FrameSize]byte
	n, fds, err := in.Recv(w.queue, buf[:])
	if err != nil {
		return 0, nil, nil, err
	}
	m, err := wire.Parse(buf[:n])
	if err != nil || m.Type != wire.TypeConnections {
		return 0, nil, nil, err
	}
	f, err := wire.DecodeFrame(m)
	for c := (wire.Connection{}); err == nil && f.Next(&c); {
		conns = append(conns, c)
	}
	return f.Sequence, conns, slices.Clone(fds), err
}
