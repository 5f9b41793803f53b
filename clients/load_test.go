package clients_test

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// A load makes short connections, so many at a time: 64 bytes there, 64 bytes back. It begins at most one in each pace, for a worker
// that starts meanwhile needs the processor too.
type load struct {
	h    *host
	stop chan struct{}
	wg   sync.WaitGroup

	mu     sync.Mutex
	made   map[string]int // by the client's port
	failed map[string]error
	n      int
}

func (h *host) load(atATime int) *load {
	l := &load{h: h, stop: make(chan struct{}), made: map[string]int{}, failed: map[string]error{}}
	ticks := time.NewTicker(pace)
	h.Cleanup(ticks.Stop)
	for range atATime {
		l.wg.Go(func() {
			for {
				select {
				case <-l.stop:
					return
				case <-ticks.C:
				}
				port, err := h.ask()
				l.mu.Lock()
				l.n++
				l.made[port]++
				if err != nil {
					l.failed[port] = err
				}
				l.mu.Unlock()
			}
		})
	}
	h.Cleanup(l.end)
	return l
}

const pace = 2 * time.Millisecond

// ask makes one connection and returns its local port.
func (h *host) ask() (string, error) {
	c, err := net.DialTimeout("tcp", h.addr, 20*time.Second)
	if err != nil {
		return "", err
	}
	defer c.Close()
	return port(c.LocalAddr().String()), ask(c)
}

func ask(c net.Conn) error {
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	// A reset at the end leaves no TIME_WAIT, of which there would be more than there are ports.
	_ = c.(*net.TCPConn).SetLinger(0)
	question, answer := bytes.Repeat([]byte("?"), 64), make([]byte, 64)
	if _, err := c.Write(question); err != nil {
		return err
	}
	if n, err := io.ReadFull(c, answer); err != nil {
		return fmt.Errorf("after %d bytes of the answer: %w", n, err)
	}
	if !bytes.Equal(question, answer) {
		return fmt.Errorf("the answer is %q", answer)
	}
	return nil
}

// more waits until so many more connections have been served.
func (l *load) more(n int) {
	l.h.Helper()
	count := func() int { l.mu.Lock(); defer l.mu.Unlock(); return l.n }
	until := count() + n
	l.h.wait(fmt.Sprintf("%d more connections", n), func() bool { return count() >= until })
}

func (l *load) end() {
	select {
	case <-l.stop:
	default:
		close(l.stop)
	}
	l.wg.Wait()
}

// most is how many connections portd puts into a message, and so how many a worker can have received unawares when it is killed.
const most = 8

// account ends the load and holds it against what the workers received: each connection once, and what failed had been
// received by a worker that was killed. A worker that is killed between receiving and writing it down may take a message's
// worth with it.
func (l *load) account(workers []*worker, killed ...*worker) {
	l.h.Helper()
	l.end()
	received, dead, n := map[string]int{}, map[string]int{}, 0
	for _, w := range workers {
		n += w.received(received)
	}
	for _, w := range killed {
		n += w.received(received)
		w.received(dead)
	}
	unawares := 0
	for port, made := range l.made {
		switch err := l.failed[port]; {
		case received[port] > made:
			l.h.Errorf("a client's connection was received %d times", received[port]-made+1)
		case received[port] < made-1, received[port] < made && err == nil:
			l.h.Errorf("%d connections of a client's port, of which workers received %d, and it saw %v", made, received[port], err)
		case received[port] < made:
			unawares++
		case err != nil && dead[port] == 0:
			l.h.Errorf("received by a worker that lives, a client sees: %v", err)
		}
	}
	if unawares > most*len(killed) {
		l.h.Errorf("%d clients failed whom nobody received, e.g. %v", unawares, l.failed)
	}
	l.h.Logf("%d connections, %d received; %d failed by %d kills, of which %d were received unawares",
		l.n, n, len(l.failed), len(killed), unawares)
}
