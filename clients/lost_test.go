package clients_test

import (
	"net"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// What is sent, received and closed is counted on both sides alike.
func TestCounted(t *testing.T) {
	each(t, func(h *host, l language) {
		w := h.start(l, 0, "--log", "--generation", "g1")
		const n = 50
		for range n {
			if _, err := h.ask(); err != nil {
				t.Fatal(err)
			}
		}
		h.wait("the counts", func() bool {
			s := h.seen(w)
			return s.GetSent() == n && s.GetReceived() == n && s.GetDone() == n
		})
		if s := h.seen(w); s.GetGeneration() != "g1" {
			h.Errorf("the worker is of generation %q", s.GetGeneration())
		}
	})
}

// A worker that is killed takes along what it had received, and no more.
func TestKilled(t *testing.T) {
	each(t, func(h *host, l language) {
		var killed []*worker
		workers := []*worker{h.start(l, 0, "--log"), h.start(l, 0, "--log")}
		load := h.load(16)
		for range 6 {
			load.more(50)
			w := workers[0]
			workers = append(workers[1:], h.start(l, 0, "--log"))
			w.kill()
			killed = append(killed, w)
		}
		load.more(50)
		load.account(workers, killed...)
	})
}

// What lies in the queue of a worker that is stopped, and then killed, was never received: no client notices.
func TestStoppedAndKilled(t *testing.T) {
	each(t, func(h *host, l language) {
		for range 3 {
			stopped := h.start(l, 0, "--log")
			stopped.signal(unix.SIGSTOP)
			var asking sync.WaitGroup
			for range 12 {
				asking.Go(func() {
					if _, err := h.ask(); err != nil {
						h.Error(err)
					}
				})
			}
			h.wait("connections to lie in its queue", func() bool { return h.seen(stopped).GetSent() > 0 })
			other := h.start(l, 0, "--log")
			stopped.kill()
			asking.Wait()
			other.kill()
			h.wait("both to be gone", func() bool { return len(h.workers()) == 0 })
		}
		if got := h.listener(); got.GetRedelivered() < 3 || got.GetLost() != 0 {
			h.Errorf("the listener redelivered %d and lost %d", got.GetRedelivered(), got.GetLost())
		}
	})
}

// A worker that is slow, here stopped nine tenths of the time, loses nothing and holds up nobody for long.
func TestSlow(t *testing.T) {
	each(t, func(h *host, l language) {
		slow, fast := h.start(l, 0, "--log"), h.start(l, 0, "--log")
		load := h.load(16)
		for range 15 {
			slow.signal(unix.SIGSTOP)
			load.more(40)
			slow.signal(unix.SIGCONT)
			load.more(5)
		}
		load.account([]*worker{slow, fast})
		count := map[string]int{}
		if s, f := slow.received(count), fast.received(count); s == 0 || s > f {
			h.Errorf("the slow one received %d, the fast one %d", s, f)
		}
	})
}

// Workers come and go, and each takes what is on its way to it before it leaves.
func TestDrained(t *testing.T) {
	each(t, func(h *host, l language) {
		all := []*worker{h.start(l, 0, "--log")}
		load := h.load(16)
		for range 6 {
			load.more(40)
			all = append(all, h.start(l, 0, "--log"))
			load.more(20)
			leaving := all[len(all)-2]
			leaving.signal(unix.SIGTERM)
			leaving.leave()
		}
		load.account(all)
		if len(load.failed) > 0 {
			h.Errorf("clients saw %v", load.failed)
		}
		if n := h.listener().GetRedelivered(); n != 0 {
			h.Errorf("%d connections had to be delivered again", n)
		}
	})
}

// With fewer descriptors than clients a worker takes what it can; the rest waits, and is served in turn.
func TestOutOfDescriptors(t *testing.T) {
	each(t, func(h *host, l language) {
		const limit, clients = 40, 120
		w := h.start(l, limit, "--log")
		// They keep their places, so that the next ones find none, until some had to be given back.
		full := make(chan struct{})
		go func() {
			defer close(full)
			for end := time.Now().Add(2 * time.Second); time.Now().Before(end); <-time.After(10 * time.Millisecond) {
				if got := h.listener(); got.GetHeld()+uint32(got.GetRedelivered()) > 0 {
					return
				}
			}
		}()
		var asking sync.WaitGroup
		for range clients {
			asking.Go(func() {
				c, err := net.DialTimeout("tcp", h.addr, 20*time.Second)
				if err != nil {
					h.Error(err)
					return
				}
				defer c.Close()
				if err := ask(c); err != nil {
					h.Error(err)
				}
				<-full
			})
		}
		asking.Wait()
		count := map[string]int{}
		if n := w.received(count); n != clients {
			h.Errorf("%d connections were received, of %d", n, clients)
		}
		for port, n := range count {
			if n != 1 {
				h.Errorf("the client at %s was received %d times", port, n)
			}
		}
		if got := h.listener(); got.GetRedelivered() == 0 || got.GetLost() != 0 {
			h.Errorf("%d connections were given back, %d lost", got.GetRedelivered(), got.GetLost())
		}
		h.wait("the worker to be done", func() bool { s := h.seen(w); return s.GetDone() == s.GetSent() })
	})
}

// When portd is killed a worker serves on what it has and what lay in its queue, and finds the next portd by itself.
func TestPortdKilled(t *testing.T) {
	each(t, func(h *host, l language) {
		w := h.start(l, 0, "--log")
		open, err := net.Dial("tcp", h.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer open.Close()
		if _, err := open.Write([]byte("one")); err != nil {
			t.Fatal(err)
		}
		h.wait("the first", func() bool { return h.seen(w).GetReceived() == 1 })
		for range 3 {
			sent := h.seen(w).GetSent()
			w.signal(unix.SIGSTOP)
			queued, err := net.Dial("tcp", h.addr)
			if err != nil {
				t.Fatal(err)
			}
			h.wait("a connection in the queue", func() bool { return h.seen(w).GetSent() == sent+1 })
			h.killPortd()
			w.signal(unix.SIGCONT)
			if err := ask(queued); err != nil {
				h.Errorf("what lay in the queue when portd was killed: %v", err)
			}
			queued.Close()
			h.startPortd()
			h.wait("the worker to attach again", func() bool { return h.seen(w) != nil })
			if _, err := h.ask(); err != nil {
				h.Error(err)
			}
		}
		got := make([]byte, 8)
		if n, err := open.Read(got); err != nil || string(got[:n]) != "one" {
			h.Errorf("%q, %v", got[:n], err)
		}
		w.signal(unix.SIGTERM)
		open.Close()
		w.leave()
	})
}
