package binder_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/binder"
	"github.com/portd/portd/internal/registry"
)

// limit sets the soft RLIMIT_NOFILE until the test ends.
func limit(t testing.TB, n uint64) {
	t.Helper()
	var was unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Setrlimit(unix.RLIMIT_NOFILE, &was) })
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: n, Max: was.Max}); err != nil {
		t.Fatal(err)
	}
}

// needMessages skips t where this user may have no more descriptors in messages than open (sendmsg(2), ETOOMANYREFS).
func needMessages(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs CAP_SYS_RESOURCE or CAP_SYS_ADMIN, to have more descriptors in messages than RLIMIT_NOFILE")
	}
}

// descriptors is how many this process has open.
func descriptors(t testing.TB) int {
	t.Helper()
	all, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(all) - 1 // that of the directory
}

// wantHeld fails t unless a stranger with SO_REUSEADDR is refused the ports of ep.
func wantHeld(t *testing.T, ep registry.Endpoint) {
	t.Helper()
	kind := unix.SOCK_STREAM
	if !ep.Proto.Streams() {
		kind = unix.SOCK_DGRAM
	}
	for p := int(ep.First); p <= int(ep.Last); p++ {
		fd, err := stranger{Type: kind, At: netip.AddrPortFrom(netip.IPv4Unspecified(), uint16(p)), RA: true}.try()
		if err == nil {
			_ = unix.Close(fd)
			t.Errorf("a stranger got %v", ep.At(uint16(p)))
		}
	}
}

// TestMoreThanDescriptors holds five times as many ports as there are descriptors for, and does with them all that can be done.
func TestMoreThanDescriptors(t *testing.T) {
	needMessages(t)
	b := open(t, binder.Config{Spare: 50})
	limit(t, 300)
	before := descriptors(t)
	var eps []registry.Endpoint
	for i := range 800 {
		eps = append(eps, at(t, "tcp/1", uint16(10000+i)), at(t, "udp/1", uint16(10000+i)))
		hold(t, b, eps[2*i])
		hold(t, b, eps[2*i+1])
	}
	if n := descriptors(t); n > 250 {
		t.Errorf("%d descriptors are open", n)
	}
	for _, ep := range eps {
		wantHeld(t, ep)
	}
	holders, err := b.Holders(t.Context(), eps...)
	if err != nil || len(holders) > 0 {
		t.Errorf("parked sockets are taken for others': %v, %v", holders, err)
	}

	// From the first, which are parked, and from the last, which are not.
	for _, ep := range []registry.Endpoint{eps[0], eps[400], eps[len(eps)-2]} {
		listen(t, b, ep)
		c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", ep.First))
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
	}
	lent, err := b.Lend(key(eps[1]))
	if err != nil {
		t.Fatal(err)
	}
	udp, err := net.Dial("udp", fmt.Sprintf("127.0.0.1:%d", eps[1].First))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := udp.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	if n, err := unix.Read(lent[0].FD, make([]byte, 9)); n != 5 || err != nil {
		t.Errorf("what was lent reads %d bytes, %v; want 5", n, err)
	}
	udp.Close()
	_ = unix.Close(lent[0].FD)
	b.Return(key(eps[1]))
	if err := b.Unlisten(key(eps[0])); err != nil {
		t.Fatal(err)
	}
	refused(t, fmt.Sprintf("127.0.0.1:%d", eps[0].First))

	// More than there are descriptors cannot listen, and all stay held.
	many := at(t, "tcp/1", ports(1000))
	many.Last = many.First + 999
	hold(t, b, many)
	if err := b.Listen(t.Context(), key(many), registry.ListenOptions{}); !errors.Is(err, registry.ErrExhausted) {
		t.Errorf("listen on 1000 ports: %v, want ErrExhausted", err)
	}
	wantHeld(t, many)
	release(t, b, many)
	wantAllFree(t, many)

	rand.Shuffle(len(eps), func(i, j int) { eps[i], eps[j] = eps[j], eps[i] })
	for i, ep := range eps {
		release(t, b, ep)
		wantAllFree(t, ep)
		if i%500 == 0 {
			wantHeld(t, eps[len(eps)-1])
		}
	}
	if n := descriptors(t); n > before {
		t.Errorf("%d descriptors are open, %d before", n, before)
	}
}

func wantAllFree(t *testing.T, ep registry.Endpoint) {
	t.Helper()
	kind := unix.SOCK_STREAM
	if !ep.Proto.Streams() {
		kind = unix.SOCK_DGRAM
	}
	for p := int(ep.First); p <= int(ep.Last); p++ {
		fd, err := stranger{Type: kind, At: netip.AddrPortFrom(netip.IPv4Unspecified(), uint16(p)), RA: true}.try()
		if err != nil {
			t.Errorf("%v is not free: %v", ep.At(uint16(p)), err)
			continue
		}
		_ = unix.Close(fd)
	}
}

// TestParkedByMany does all of it from many goroutines, each with keys of its own, where next to nothing has a descriptor.
func TestParkedByMany(t *testing.T) {
	needMessages(t)
	b := open(t, binder.Config{Spare: 50})
	limit(t, 400)
	var all sync.WaitGroup
	for g := range 8 {
		all.Go(func() {
			r := rand.New(rand.NewPCG(1, uint64(g)))
			state := map[uint16]bool{} // held, and whether it listens
			ctx := context.WithoutCancel(t.Context())
			for range 3000 {
				p := uint16(10000 + 200*g + r.IntN(120))
				ep := at(t, "tcp/1", p)
				listening, held := state[p]
				var err error
				switch what := r.IntN(12); {
				case !held:
					err = b.Bind(ctx, registry.Bind{Key: key(ep), Endpoint: ep})
					state[p] = false
				case what < 2:
					err = b.Release(key(ep))
					delete(state, p)
				case listening:
					err = b.Unlisten(key(ep))
					state[p] = false
				case what == 2:
					err = b.Listen(ctx, key(ep), registry.ListenOptions{})
					state[p] = true
				case what < 5:
					var lent []registry.Socket
					if lent, err = b.Lend(key(ep)); err == nil {
						_ = unix.Close(lent[0].FD)
						b.Return(key(ep))
					}
				}
				if err != nil {
					t.Errorf("port %d, held %t, listening %t: %v", p, held, listening, err)
					return
				}
			}
			for p, listening := range state {
				wantHeld(t, at(t, "tcp/1", p))
				if c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", p)); err == nil {
					c.Close()
				} else if listening {
					t.Errorf("port %d does not listen: %v", p, err)
				}
			}
		})
	}
	all.Wait()
}

// BenchmarkParked releases ports in random order, and binds them again, where nearly all sockets are parked.
func BenchmarkParked(b *testing.B) {
	needMessages(b)
	bind := open(b, binder.Config{})
	limit(b, 2000)
	ep := at(b, "tcp/1", 1)
	for p := range 20000 {
		hold(b, bind, ep.At(uint16(10000+p)))
	}
	for b.Loop() {
		at := ep.At(uint16(10000 + rand.IntN(20000)))
		release(b, bind, at)
		hold(b, bind, at)
	}
}
