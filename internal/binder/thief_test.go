package binder_test

import (
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/binder"
	"github.com/portd/portd/internal/nstest"
	"github.com/portd/portd/internal/registry"
)

// TestThieves sends sockets of every kind against holds and listeners: none may get what portd has.
func TestThieves(t *testing.T) {
	b := open(t, binder.Config{})
	for _, c := range []struct {
		proto string
		kind  int
	}{{"tcp", unix.SOCK_STREAM}, {"udp", unix.SOCK_DGRAM}} {
		for _, place := range places(t, c.proto) {
			for _, listens := range []bool{false, true} {
				if listens && c.kind == unix.SOCK_DGRAM {
					continue
				}
				p := port()
				ep := place.At(p)
				t.Run(fmt.Sprintf("%v listening %t", ep, listens), func(t *testing.T) {
					hold(t, b, ep)
					if listens {
						listen(t, b, ep)
					}
					for _, thief := range thieves(c.kind, p) {
						tryThief(t, ep, thief)
					}
					release(t, b, ep)
				})
			}
		}
	}
}

// tryThief fails t if the thief gets in where its place overlaps the hold, and if it is refused where it does not.
func tryThief(t *testing.T, ep registry.Endpoint, thief stranger) {
	t.Helper()
	fd, err := thief.try()
	if err == nil {
		_ = unix.Close(fd)
	} else if !isInUse(err) {
		t.Fatalf("%v: %v", thief, err)
	}
	if in, may := err == nil, !ep.Overlaps(thief.place(ep.Proto)); in != may {
		t.Errorf("%v: thief %v got in: %t, may: %t (%v)", ep, thief, in, may, err)
	}
}

// TestThievesOfAnotherUser: sharing a port with SO_REUSEPORT takes one uid, with SO_REUSEADDR it takes none.
func TestThievesOfAnotherUser(t *testing.T) {
	b := open(t, binder.Config{})
	other := startHost(t, nstest.As(t, 65534, 65534))
	for _, place := range []string{"tcp/1", "tcp/127.0.0.1:1", "udp/1"} {
		held, listening := at(t, place, port()), at(t, place, port())
		hold(t, b, held)
		hold(t, b, listening)
		kind := unix.SOCK_DGRAM
		if held.Proto.Streams() {
			kind = unix.SOCK_STREAM
			listen(t, b, listening)
		}
		for _, ep := range []registry.Endpoint{held, listening} {
			for _, thief := range thieves(kind, ep.First) {
				if !ep.Overlaps(thief.place(ep.Proto)) {
					continue
				}
				if err := other.try(t, thief); !isInUse(err) {
					t.Errorf("%v: thief %v of another user: %v", ep, thief, err)
				}
			}
		}
	}
}

// TestOnlyOneHoldsThePort lets a thief bind the port at some moment while it is held over leftovers. SO_REUSEADDR, which both
// need for that, would let both have it.
func TestOnlyOneHoldsThePort(t *testing.T) {
	b := open(t, binder.Config{})
	needFeature(t, b, "hold-over-leftovers")
	ep := at(t, "tcp/127.0.0.1:1", port())
	leftover(t, ep, true)
	thief := stranger{Type: unix.SOCK_STREAM, At: netip.AddrPortFrom(ep.Addr, ep.First), RA: true}
	ours, theirs := 0, 0
	for round := range 300 {
		delay := time.Duration(round) * 3 * time.Microsecond
		start, got := make(chan struct{}), make(chan int)
		go func() {
			<-start
			for began := time.Now(); time.Since(began) < delay; {
			}
			fd, err := thief.try()
			if err != nil {
				fd = -1
			}
			got <- fd
		}()
		close(start)
		err := b.Bind(t.Context(), registry.Bind{Key: key(ep), Endpoint: ep})
		if err != nil && !errors.Is(err, registry.ErrTaken) {
			t.Error(err)
		}
		fd := <-got
		switch {
		case err == nil && fd >= 0:
			t.Errorf("both have the port, with a delay of %v", delay)
		case err != nil && fd < 0:
			t.Errorf("neither has the port, with a delay of %v", delay)
		case err == nil:
			ours++
		default:
			theirs++
		}
		if fd >= 0 {
			_ = unix.Close(fd)
		}
		release(t, b, ep)
	}
	t.Logf("it was ours %d times, the thief's %d times", ours, theirs)
}

// TestThiefInTheWindow has thieves try all the time while a port is held over leftovers and made to listen over them, which
// takes SO_REUSEADDR for a moment. Either we have the port and they get nothing, or we say that we have not got it.
func TestThiefInTheWindow(t *testing.T) {
	b := open(t, binder.Config{})
	needFeature(t, b, "hold-over-leftovers")
	ep := at(t, "tcp/127.0.0.1:1", port())
	thief := stranger{Type: unix.SOCK_STREAM, At: netip.AddrPortFrom(ep.Addr, ep.First), RA: true, Listen: true}
	var turn atomic.Int64 // odd while the port is ours
	stop := make(chan struct{})
	var thieves sync.WaitGroup
	defer thieves.Wait()
	defer close(stop)
	for range 2 {
		thieves.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				before := turn.Load()
				fd, err := thief.try()
				if err != nil {
					continue
				}
				if before%2 == 1 && turn.Load() == before {
					t.Error("a thief got the port while it was ours")
				}
				_ = unix.Close(fd)
			}
		})
	}
	const rounds = 100
	held, listened := 0, 0
	for range rounds {
		leftover(t, ep, true)
		err := b.Bind(t.Context(), registry.Bind{Key: key(ep), Endpoint: ep})
		switch {
		case errors.Is(err, registry.ErrTaken):
			continue
		case err != nil:
			t.Fatal(err)
		}
		held++
		turn.Add(1)
		if fd, err := thief.try(); err == nil {
			_ = unix.Close(fd)
			t.Error("a thief got a port that is held")
		}
		turn.Add(1)
		err = b.Listen(t.Context(), key(ep), registry.ListenOptions{})
		switch {
		case err == nil:
			listened++
			turn.Add(1)
			if fd, err := thief.try(); err == nil {
				_ = unix.Close(fd)
				t.Error("a thief got a port that listens")
			}
			turn.Add(1)
		case !errors.Is(err, registry.ErrTaken):
			t.Fatal(err)
		}
		release(t, b, ep)
	}
	t.Logf("of %d times the port was held %d times, and listened %d times", rounds, held, listened)
	if listened == 0 {
		t.Error("never listened: nothing was tested")
	}
}
