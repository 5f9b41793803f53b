package handoff_test

import (
	"net"
	"sync"
	"testing"
	"time"

	"github.com/portd/portd/internal/nstest"
	"github.com/portd/portd/internal/registry"
	"github.com/portd/portd/internal/wire"
	"golang.org/x/sys/unix"
)

// borrow attaches a worker that has the socket itself.
func (h *host) borrow(res *registry.Reservation) (w *rawWorker, fd int) {
	h.t.Helper()
	w = h.attach(wire.Attach{Wishes: []wire.Wish{{Reference: res.ID, Want: wire.WantSocket}}})
	return w, w.fds[0]
}

// serves fails the test if a request is not answered in good time; by way of fd it gets a stuck engine out, so that the test can end.
func (h *host) serves(addr string, fd int) {
	h.t.Helper()
	answered := make(chan error, 1)
	go func() { answered <- ask(addr, 0) }()
	select {
	case err := <-answered:
		if err != nil {
			h.t.Fatal(err)
		}
		return
	case <-time.After(5 * time.Second):
	}
	for {
		_ = unix.SetNonblock(fd, true)
		select {
		case <-answered:
			h.t.Fatal("the engine was stuck")
		case <-time.After(time.Millisecond):
		}
	}
}

// A program that has a listening socket itself may make it block, as many do without a thought: O_NONBLOCK is one for all duplicates.
// portd accepts from it all the same and waits for nobody.
func TestSharedSocketBlocks(t *testing.T) {
	for name, share := range map[string]func(*host, *registry.Reservation) (fd int){
		"lent": func(h *host, res *registry.Reservation) int {
			_, fd := h.borrow(res)
			return fd
		},
		"given back, and a duplicate kept": func(h *host, res *registry.Reservation) int {
			w, fd := h.borrow(res)
			w.Close()
			until(h.t, "it is given back", func() bool { return h.loans(keyOf(res)) == 0 })
			return fd
		},
		"listens anew while it is lent": func(h *host, res *registry.Reservation) int {
			_, fd := h.borrow(res)
			h.Closing(keyOf(res))
			h.Listening(keyOf(res), []registry.Socket{{Endpoint: res.Assigned[0].Endpoint, FD: h.fds[keyOf(res)]}}, registry.ListenOptions{})
			return fd
		},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			res := h.listen("127.0.0.1")
			fd := share(h, res)
			h.worker("serve", res.ID)
			for range 20 {
				if err := unix.SetNonblock(fd, false); err != nil {
					t.Fatal(err)
				}
				h.serves(addrOf(res), fd)
			}
		})
	}
}

// A program that does it all the time, so that it comes between portd's look and its accept, harms nobody but itself: its socket is
// left alone in the end, and is served again once it listens anew.
func TestSharedSocketBlocksAllTheTime(t *testing.T) {
	nstest.Descriptors(t)
	h := newHost(t)
	defer h.stop()
	res, neighbour := h.listen("127.0.0.1"), h.listen("127.0.0.1")
	for _, r := range []*registry.Reservation{res, neighbour} {
		l := h.join(r)
		defer l.Close()
		go func() { _ = echo(l) }()
	}
	_, fd := h.borrow(res)
	var toggling sync.WaitGroup
	end := make(chan struct{})
	toggling.Go(func() {
		for {
			select {
			case <-end:
				return
			default:
				_ = unix.SetNonblock(fd, false)
			}
		}
	})
	rest := sync.OnceFunc(func() { close(end); toggling.Wait() })
	defer rest()
	tries := 0
	for ; tries < 10_000 && backlog(t, fd) < 5; tries++ {
		c, err := net.Dial("tcp", addrOf(res))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		h.serves(addrOf(neighbour), fd)
	}
	t.Logf("left alone after %d connections", tries)
	rest()
	h.Closing(keyOf(res))
	h.Listening(keyOf(res), []registry.Socket{{Endpoint: res.Assigned[0].Endpoint, FD: h.fds[keyOf(res)]}}, registry.ListenOptions{})
	if err := ask(addrOf(res), 0); err != nil {
		t.Errorf("once it listens anew: %v", err)
	}
}
