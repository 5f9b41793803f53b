package handoff_test

import (
	"context"
	"fmt"
	"io"
	"math"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/portd/portd/client"
	"github.com/portd/portd/internal/handoff"
	"github.com/portd/portd/internal/registry"
)

// set makes a listener hand over as o has it.
func (h *host) set(res *registry.Reservation, o registry.HandoffOptions) {
	h.mu.Lock()
	opt := registry.ListenOptions{Handoff: o}
	res.Assigned[0].Listen = &opt
	sockets := []registry.Socket{{Endpoint: res.Assigned[0].Endpoint, FD: h.fds[keyOf(res)]}}
	h.mu.Unlock()
	h.Listening(keyOf(res), sockets, opt)
}

// A teller is a worker that tells each client its name, and counts them.
type teller struct {
	*client.Listener
	name string
	told atomic.Int64
}

func (h *host) teller(res *registry.Reservation, name string, how client.Wish, each func(net.Conn)) *teller {
	h.t.Helper()
	how.Reference = res.ID
	l, err := client.Join(h.t.Context(), client.AttachConfig{Socket: h.socket, Wishes: []client.Wish{how}}, nil)
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { l.Close() })
	w := &teller{Listener: l, name: name}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			w.told.Add(1)
			each(c)
			_, _ = io.WriteString(c, name)
			c.Close()
		}
	}()
	return w
}

func atOnce(net.Conn) {}

// asked is who answers a client from an address of its own.
func asked(t testing.TB, from, to string) string {
	t.Helper()
	d := net.Dialer{Timeout: 10 * time.Second}
	if from != "" {
		d.LocalAddr = &net.TCPAddr{IP: net.ParseIP(from)}
	}
	c, err := d.DialContext(context.Background(), "tcp", to)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
	name, err := io.ReadAll(c)
	if err != nil {
		t.Fatal(err)
	}
	return string(name)
}

// One client after the other: who gets it is what the strategy and the weights say, exactly.
func TestShares(t *testing.T) {
	for _, strategy := range []registry.HandoffStrategy{registry.LeastActive, registry.RoundRobin} {
		t.Run(strategy.String(), func(t *testing.T) {
			h := newHost(t)
			res := h.listen("127.0.0.1")
			h.set(res, registry.HandoffOptions{Strategy: strategy})
			var all []*teller
			for i, weight := range []uint16{0, 2, 5} {
				all = append(all, h.teller(res, fmt.Sprint(i), client.Wish{Weight: weight}, atOnce))
			}
			const rounds = 25
			for range 8 * rounds {
				asked(t, "", addrOf(res))
				// Else the last one's worker may have no room yet, or one connection open.
				until(t, "all are done", func() bool {
					for _, w := range h.Workers() {
						if w.Done != w.Sent {
							return false
						}
					}
					return true
				})
			}
			for i, weight := range []int64{1, 2, 5} {
				if got, want := all[i].told.Load(), weight*rounds; math.Abs(float64(got-want)) > 2 {
					t.Errorf("weight %d got %d, want %d", weight, got, want)
				}
			}
		})
	}
}

// Workers of a lower priority get what those before them have no room for, and everything once those are gone.
func TestPriority(t *testing.T) {
	h := newHost(t)
	res := h.listen("127.0.0.1")
	busy := make(chan struct{})
	standby := h.teller(res, "standby", client.Wish{Priority: 7}, atOnce)
	first := h.teller(res, "first", client.Wish{}, atOnce)
	for range 20 {
		until(t, "all are done", func() bool {
			for _, w := range h.Workers() {
				if w.Done != w.Sent {
					return false
				}
			}
			return true
		})
		if got := asked(t, "", addrOf(res)); got != "first" {
			t.Errorf("%s got a connection that the first had room for", got)
		}
	}
	first.Close()
	until(t, "it is gone", func() bool { return len(h.Workers()) == 1 })
	if got := asked(t, "", addrOf(res)); got != "standby" {
		t.Errorf("%s got it", got)
	}
	// One that takes a connection and no more.
	h.teller(res, "full", client.Wish{Priority: 1}, func(net.Conn) { <-busy })
	defer close(busy)
	const n = 40
	before := standby.told.Load()
	var clients sync.WaitGroup
	for range n {
		clients.Go(func() {
			c, err := net.Dial("tcp", addrOf(res))
			if err != nil {
				t.Error(err)
				return
			}
			t.Cleanup(func() { c.Close() })
		})
	}
	clients.Wait()
	// What it has in hand and what lies in its queue is a few messages.
	until(t, "the standby has the rest", func() bool { return standby.told.Load()-before >= n-3*handoff.PerMessage })
}

// The same address has the same worker, and those of others keep theirs when one comes or goes.
func TestClientAddress(t *testing.T) {
	h := newHost(t)
	res := h.listen("127.0.0.1")
	h.set(res, registry.HandoffOptions{Strategy: registry.ClientAddress})
	var all []*teller
	for i := range 4 {
		all = append(all, h.teller(res, fmt.Sprint(i), client.Wish{}, atOnce))
	}
	const clients = 100
	from := func(i int) string { return fmt.Sprintf("127.1.%d.1", i) }
	had := make(map[string]string)
	shares := make(map[string]int)
	for round := range 3 {
		for i := range clients {
			got := asked(t, from(i), addrOf(res))
			if round > 0 && had[from(i)] != got {
				t.Errorf("%s had %s and gets %s", from(i), had[from(i)], got)
			}
			had[from(i)] = got
			shares[got]++
		}
	}
	if len(shares) != 4 {
		t.Errorf("of 4 workers these are had: %v", shares)
	}
	all[0].Close()
	until(t, "it is gone", func() bool { return len(h.Workers()) == 3 })
	for i := range clients {
		got := asked(t, from(i), addrOf(res))
		if had[from(i)] != "0" && got != had[from(i)] {
			t.Errorf("%s had %s, which is there, and gets %s", from(i), had[from(i)], got)
		}
		had[from(i)] = got
	}
	h.teller(res, "new", client.Wish{}, atOnce)
	taken := 0
	for i := range clients {
		switch got := asked(t, from(i), addrOf(res)); got {
		case "new":
			taken++
		case had[from(i)]:
		default:
			t.Errorf("%s had %s and gets %s", from(i), had[from(i)], got)
		}
	}
	if taken == 0 || taken > clients/2 {
		t.Errorf("the new one of 4 has %d of %d clients", taken, clients)
	}
}

// Clients of a worker that takes nothing wait in portd's hands, so many and no more; what waits there goes to others when it leaves, and
// when the strategy changes.
func TestClientAddressIsBounded(t *testing.T) {
	for _, how := range []string{"it leaves", "the strategy changes"} {
		t.Run(how, func(t *testing.T) {
			h := newHost(t)
			res := h.listen("127.0.0.1")
			h.set(res, registry.HandoffOptions{Strategy: registry.ClientAddress})
			full, err := client.Attach(t.Context(), client.AttachConfig{Socket: h.socket, Wishes: []client.Wish{{Reference: res.ID}}})
			if err != nil {
				t.Fatal(err)
			}
			defer full.Close()
			const n = 200
			answers := make(chan error, n)
			for range n {
				go func() { answers <- ask(addrOf(res), 1) }()
			}
			until(t, "all wait that there are", func() bool { return h.Totals(keyOf(res)).HandedOver > 0 })
			// Another address's worker has room, and may be had all the time.
			l := h.join(res)
			go func() { _ = echo(l) }()
			until(t, "portd's hands are full, or the other is the address's", func() bool {
				return h.Totals(keyOf(res)).Held == handoff.MostStaged || len(answers) > n/2
			})
			if held := h.Totals(keyOf(res)).Held; held > handoff.MostStaged {
				t.Errorf("%d are held, more than %d", held, handoff.MostStaged)
			}
			if how == "it leaves" {
				full.Close()
			} else {
				h.set(res, registry.HandoffOptions{Strategy: registry.RoundRobin})
				until(t, "all but what lies in its queue is answered", func() bool { return len(answers) >= n-handoff.PerMessage })
				full.Close()
			}
			for range n {
				if err := <-answers; err != nil {
					t.Error(err)
				}
			}
		})
	}
}
