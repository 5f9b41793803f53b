package binder_test

import (
	"errors"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/binder"
	"github.com/portd/portd/internal/registry"
)

// leftover leaves a closed connection behind on ep's address and port that the kernel remembers for a minute, made by a
// listener with or without SO_REUSEADDR that is gone. It does nothing where somebody else listens.
func leftover(t testing.TB, ep registry.Endpoint, ra bool) {
	t.Helper()
	server, client := connected(t, ep, ra)
	if server < 0 {
		return
	}
	// Who closes first keeps the TIME_WAIT.
	_ = unix.Close(server)
	var one [1]byte
	_, _ = client.Read(one[:])
	_ = client.Close()
}

// connected makes a connection to ep, whose listener is gone again; both ends are the caller's. The server's is -1 where
// somebody else has the port.
func connected(t testing.TB, ep registry.Endpoint, ra bool) (server int, client net.Conn) {
	t.Helper()
	to := netip.AddrPortFrom(ep.Addr, ep.First)
	fd, err := stranger{Type: unix.SOCK_STREAM, At: to, RA: ra, Listen: true}.try()
	if isInUse(err) {
		return -1, nil
	} else if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	client, err = net.Dial("tcp", to.String())
	if err != nil {
		t.Fatal(err)
	}
	server, _, err = unix.Accept4(fd, unix.SOCK_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	return server, client
}

func TestHoldOverLeftovers(t *testing.T) {
	b := open(t, binder.Config{})
	needFeature(t, b, "hold-over-leftovers")
	for _, c := range []struct {
		name  string
		leave func(t *testing.T, ep registry.Endpoint)
	}{
		{"TIME_WAIT", func(t *testing.T, ep registry.Endpoint) { leftover(t, ep, true) }},
		{"established", func(t *testing.T, ep registry.Endpoint) {
			server, client := connected(t, ep, true)
			t.Cleanup(func() {
				_ = unix.Close(server)
				_ = client.Close()
			})
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			place := at(t, "tcp/127.0.0.1:1", port())
			c.leave(t, place)
			for _, text := range []string{"tcp/127.0.0.1:1", "tcp4/1", "tcp/1"} {
				ep := at(t, text, place.First)
				if err := b.Bind(t.Context(), registry.Bind{Key: key(ep), Endpoint: ep, Fresh: true}); !errors.Is(err, registry.ErrTaken) {
					t.Errorf("%v: a fresh bind over leftovers: %v, want ErrTaken", ep, err)
				}
				hold(t, b, ep)
				for _, thief := range thieves(unix.SOCK_STREAM, ep.First) {
					tryThief(t, ep, thief)
				}
				listen(t, b, ep)
				for _, thief := range thieves(unix.SOCK_STREAM, ep.First) {
					tryThief(t, ep, thief)
				}
				if err := b.Unlisten(key(ep)); err != nil {
					t.Fatal(err)
				}
				for _, thief := range thieves(unix.SOCK_STREAM, ep.First) {
					tryThief(t, ep, thief)
				}
				listen(t, b, ep)
				release(t, b, ep)
			}
		})
	}
}

// Leftovers of a listener that had no SO_REUSEADDR stand in everybody's way.
func TestLeftoversThatBlock(t *testing.T) {
	b := open(t, binder.Config{})
	ep := at(t, "tcp/127.0.0.1:1", port())
	leftover(t, ep, false)
	err := b.Bind(t.Context(), registry.Bind{Key: key(ep), Endpoint: ep})
	if !errors.Is(err, registry.ErrTaken) {
		t.Fatalf("bind: %v, want ErrTaken", err)
	}
	want := []registry.Holder{{Endpoint: ep, State: registry.SocketLeftover}}
	if diff := cmp.Diff(want, holders(t, b, ep), placesOnly); diff != "" {
		t.Errorf("holders (-want +got):\n%s", diff)
	}
}

// A bound socket with SO_REUSEADDR would let us in beside it, and both would think that they hold the port.
func TestNotBesideABoundSocket(t *testing.T) {
	b := open(t, binder.Config{})
	for _, text := range []string{"127.0.0.1", "0.0.0.0", "::", "::ffff:127.0.0.1"} {
		ep := at(t, "tcp/127.0.0.1:1", port())
		leftover(t, ep, true) // so that there is a reason to fall back
		other := stranger{Type: unix.SOCK_STREAM, At: netip.AddrPortFrom(netip.MustParseAddr(text), ep.First), RA: true}
		other.open(t)
		err := b.Bind(t.Context(), registry.Bind{Key: key(ep), Endpoint: ep})
		if !errors.Is(err, registry.ErrTaken) {
			t.Errorf("bind beside %v: %v, want ErrTaken", other, err)
			release(t, b, ep)
		}
	}
}

// TestConnectionsCarryReuse: a connection without SO_REUSEADDR would keep portd itself from binding the port after a restart, for as
// long as it lasts and a minute more. None may be made without, not even in the instant in which the socket begins to listen.
func TestConnectionsCarryReuse(t *testing.T) {
	seen := new(observer)
	b := open(t, binder.Config{Observer: seen})
	var target atomic.Uint32
	stop := make(chan struct{})
	var clients sync.WaitGroup
	clients.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				t.Error(err)
				return
			}
			_ = unix.Connect(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}, Port: int(target.Load())})
			_ = unix.Close(fd)
		}
	})
	defer clients.Wait()
	defer close(stop)
	accepted := 0
	for range 1000 {
		ep := at(t, "tcp/127.0.0.1:1", port())
		hold(t, b, ep)
		target.Store(uint32(ep.First))
		listen(t, b, ep)
		for range 5 {
			fd, _, err := unix.Accept4(seen.last[0].FD, unix.SOCK_CLOEXEC)
			if err != nil {
				continue
			}
			accepted++
			if ra, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR); ra != 1 {
				t.Errorf("connection %d has SO_REUSEADDR %d (%v)", accepted, ra, err)
			}
			// Reset, for a thousand ports with a TIME_WAIT would be no use to other tests.
			_ = unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
			_ = unix.Close(fd)
		}
		release(t, b, ep)
	}
	if accepted == 0 {
		t.Error("nobody connected: nothing was tested")
	}
}
