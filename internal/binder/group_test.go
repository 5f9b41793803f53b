package binder_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/binder"
	"github.com/portd/portd/internal/registry"
)

// A borrower is a program that has a datagram socket.
type borrower struct {
	t    testing.TB
	b    *binder.Binder
	ep   registry.Endpoint
	lent []registry.Socket
}

func borrow(t testing.TB, b *binder.Binder, ep registry.Endpoint) *borrower {
	t.Helper()
	lent, err := b.Lend(key(ep))
	if err != nil {
		t.Fatal(err)
	}
	if len(lent) != 1 {
		t.Fatalf("lent %d sockets, want one", len(lent))
	}
	return &borrower{t, b, ep, lent}
}

// leave is what becomes of a program's socket however it ends.
func (p *borrower) leave() {
	_ = unix.Close(p.lent[0].FD)
	p.b.Return(key(p.ep), p.lent...)
}

// all is what lies in the queue.
func (p *borrower) all() (texts []string) {
	for {
		text, err := receive(p.lent[0].FD)
		if err != nil {
			return texts
		}
		texts = append(texts, text)
	}
}

func holdGroup(t testing.TB, b *binder.Binder, ep registry.Endpoint, group int) {
	t.Helper()
	if err := b.Bind(t.Context(), registry.Bind{Key: key(ep), Endpoint: ep, Options: registry.BindOptions{Group: group}}); err != nil {
		t.Fatal(err)
	}
}

// What arrives between two programs waits for the second one, for a while.
func TestDatagramsWaitForASuccessor(t *testing.T) {
	b := open(t, binder.Config{Grace: time.Hour})
	for _, group := range []int{0, 3} {
		ep := at(t, "udp/127.0.0.1:1", port())
		holdGroup(t, b, ep, group)
		first := borrow(t, b, ep)
		send(t, ep, "before")
		first.leave()
		send(t, ep, "between")
		second := borrow(t, b, ep)
		if got := fmt.Sprint(second.all()); got != "[before between]" {
			t.Errorf("group of %d: the second program received %s", group, got)
		}
		second.leave()
		send(t, ep, "never seen")
		release(t, b, ep)
	}
}

// Afterwards what is queued is dropped, and so is what arrives.
func TestDatagramsWaitNoLonger(t *testing.T) {
	b := open(t, binder.Config{Grace: time.Millisecond})
	ep := at(t, "udp/127.0.0.1:1", port())
	hold(t, b, ep)
	first := borrow(t, b, ep)
	spy, err := unix.FcntlInt(uintptr(first.lent[0].FD), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(spy)
	send(t, ep, "before")
	first.leave()
	for deadline := time.Now().Add(5 * time.Second); ; {
		_, _, err := unix.Recvfrom(spy, make([]byte, 1), unix.MSG_PEEK|unix.MSG_DONTWAIT)
		if errors.Is(err, unix.EAGAIN) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("what nobody came for is still queued after 5 s")
		}
		send(t, ep, "late")
	}
	send(t, ep, "too late")
	if got, err := receive(spy); !errors.Is(err, unix.EAGAIN) {
		t.Errorf("received %q (%v)", got, err)
	}
}

// A client is a UDP socket with a port of its own.
func client(t testing.TB, ep registry.Endpoint) *net.UDPConn {
	t.Helper()
	addr := ep.Addr
	if addr.IsUnspecified() {
		addr = netip.MustParseAddr("127.0.0.1")
	}
	c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(addr, ep.First)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// Each client stays with its program while others come and go; a program that comes takes its share, and no more moves.
func TestGroupSteersByClient(t *testing.T) {
	const clients = 400
	b := open(t, binder.Config{Grace: time.Hour})
	for _, text := range []string{"udp/127.0.0.1:1", "udp/[::1]:1", "udp/1", "udp4/1"} {
		ep := at(t, text, port())
		holdGroup(t, b, ep, 4)
		conns := make([]*net.UDPConn, clients)
		for i := range conns {
			conns[i] = client(t, ep)
		}
		who := func(programs ...*borrower) (at [clients]int) {
			for i := range at {
				at[i] = -1
			}
			for range 2 {
				for i, c := range conns {
					if _, err := c.Write([]byte(fmt.Sprint(i))); err != nil {
						t.Fatal(err)
					}
				}
				for n, p := range programs {
					for _, text := range p.all() {
						var i int
						_, _ = fmt.Sscan(text, &i)
						if at[i] >= 0 && at[i] != n {
							t.Fatalf("%v: client %d came to two programs", ep, i)
						}
						at[i] = n
					}
				}
			}
			shares := make([]int, len(programs))
			for i, n := range at {
				if n < 0 {
					t.Fatalf("%v: client %d came to nobody", ep, i)
				}
				shares[n]++
			}
			for n, share := range shares {
				if fair := clients / len(programs); share < fair/2 || share > fair*2 {
					t.Errorf("%v: program %d of %d has %d of %d clients", ep, n, len(programs), share, clients)
				}
			}
			return at
		}
		moved := func(x, y [clients]int) (n int) {
			for i := range x {
				if x[i] != y[i] {
					n++
				}
			}
			return n
		}
		p0, p1, p2 := borrow(t, b, ep), borrow(t, b, ep), borrow(t, b, ep)
		three := who(p0, p1, p2)
		p3 := borrow(t, b, ep)
		four := who(p0, p1, p2, p3)
		for i := range four {
			if four[i] != three[i] && four[i] != 3 {
				t.Fatalf("%v: client %d moved from program %d to %d, and neither came nor went", ep, i, three[i], four[i])
			}
		}
		p1.leave()
		left := who(p0, p3, p2) // p3 in the place of p1, for the share of p1 goes to the others
		for i := range left {
			now := map[int]int{0: 0, 1: 3, 2: 2}[left[i]]
			if four[i] != 1 && now != four[i] {
				t.Fatalf("%v: client %d moved from program %d to %d, which had been there all the time", ep, i, four[i], now)
			}
		}
		p1 = borrow(t, b, ep)
		if again := who(p0, p1, p2, p3); again != four {
			t.Errorf("%v: after a restart %d of %d clients have another program than before", ep, moved(again, four), clients)
		}
		// One that wants no more gets no more, and the others keep theirs; it reads what it has and leaves nothing behind.
		b.Drain(key(ep), true, p1.lent...)
		drained := who(p0, p3, p2)
		for i := range drained {
			if now := map[int]int{0: 0, 1: 3, 2: 2}[drained[i]]; four[i] != 1 && now != four[i] {
				t.Fatalf("%v: client %d moved from program %d to %d when another one drained", ep, i, four[i], now)
			}
		}
		if rest := p1.all(); len(rest) > 0 {
			t.Errorf("%v: a program that has drained received %q", ep, rest)
		}
		b.Drain(key(ep), false, p1.lent...)
		if again := who(p0, p1, p2, p3); again != four {
			t.Errorf("%v: %d of %d clients are elsewhere than before their program drained and came back", ep, moved(again, four), clients)
		}
		// More programs than sockets: one more shares.
		p4 := borrow(t, b, ep)
		if p4.lent[0].Member != p0.lent[0].Member {
			t.Errorf("%v: a fifth program shares with member %d, want that of the longest lent one, %d", ep, p4.lent[0].Member, p0.lent[0].Member)
		}
		b.Drain(key(ep), true, p0.lent...)
		who(p4, p1, p2, p3)
		p0.leave()
		who(p4, p1, p2, p3)
		for _, p := range []*borrower{p1, p2, p3, p4} {
			p.leave()
		}
		release(t, b, ep)
	}
}

// A group is held like any other port until it is bound; from then on portd's own user can join, and nobody else.
func TestGroupIsHeld(t *testing.T) {
	b := open(t, binder.Config{})
	ep := at(t, "udp/127.0.0.1:1", port())
	thief := stranger{Type: unix.SOCK_DGRAM, At: netip.AddrPortFrom(ep.Addr, ep.First), RP: true}
	fd := thief.open(t)
	err := b.Bind(t.Context(), registry.Bind{Key: key(ep), Endpoint: ep, Options: registry.BindOptions{Group: 2}})
	if !errors.Is(err, registry.ErrTaken) {
		t.Errorf("a group beside a stranger with SO_REUSEPORT: %v", err)
	}
	_ = unix.Close(fd)
	holdGroup(t, b, ep, 64)
	var programs []*borrower
	for member := range 64 { // the longest steering that there is
		p := borrow(t, b, ep)
		programs = append(programs, p)
		if p.lent[0].Member != member {
			t.Errorf("program %d has socket %d", member, p.lent[0].Member)
		}
	}
	for _, thief := range thieves(unix.SOCK_DGRAM, ep.First) {
		if thief.RP || !ep.Overlaps(thief.place(registry.UDP)) {
			continue
		}
		tryThief(t, ep, thief)
	}
	fd, err = thief.try()
	if err != nil {
		t.Logf("this kernel keeps portd's own user out of a group, too: %v", err)
	} else {
		_ = unix.Close(fd)
	}
	for _, p := range programs {
		p.leave()
	}
	release(t, b, ep)
	stranger{Type: unix.SOCK_DGRAM, At: netip.AddrPortFrom(ep.Addr, ep.First)}.open(t)
}

// Programs that follow one another read every datagram, at a rate at which a gap of a millisecond would lose twenty: whether the next comes
// before the last one has gone, or after it.
func TestRestartLosesNoDatagram(t *testing.T) {
	const rate, restarts = 20_000, 20
	b := open(t, binder.Config{Grace: time.Hour})
	for _, group := range []int{0, 2} {
		for _, order := range []string{"the next one first", "a gap between"} {
			t.Run(fmt.Sprintf("group of %d, %s", group, order), func(t *testing.T) {
				ep := at(t, "udp/127.0.0.1:1", port())
				holdGroup(t, b, ep, group)
				defer release(t, b, ep)
				to := client(t, ep)

				var mu sync.Mutex
				seen := map[uint64]int{}
				// read is a program until stop is closed.
				read := func(p *borrower, stop <-chan struct{}, done *sync.WaitGroup) {
					defer done.Done()
					buf := make([]byte, 16)
					poll := []unix.PollFd{{Fd: int32(p.lent[0].FD), Events: unix.POLLIN}}
					for {
						select {
						case <-stop: // at once, whatever is queued
							p.leave()
							return
						default:
						}
						if n, _ := unix.Poll(poll, 1); n == 0 {
							continue
						}
						if n, _, err := unix.Recvfrom(p.lent[0].FD, buf, unix.MSG_DONTWAIT); err == nil && n == 8 {
							mu.Lock()
							seen[binary.LittleEndian.Uint64(buf)]++
							mu.Unlock()
						}
					}
				}
				size := 0 // of the queue
				begin := func() (end func()) {
					p := borrow(t, b, ep)
					err := unix.SetsockoptInt(p.lent[0].FD, unix.SOL_SOCKET, unix.SO_RCVBUF, 4<<20)
					if err == nil {
						size, err = unix.GetsockoptInt(p.lent[0].FD, unix.SOL_SOCKET, unix.SO_RCVBUF)
					}
					if err != nil {
						t.Fatal(err)
					}
					stop := make(chan struct{})
					var done sync.WaitGroup
					done.Add(1)
					go read(p, stop, &done)
					return func() { close(stop); done.Wait() }
				}
				received := func() int { mu.Lock(); defer mu.Unlock(); return len(seen) }
				end := begin()
				most := uint64(size / 1024 / 2) // what no queue could hold is not sent: one datagram counts for less than 1 KB
				halt := make(chan struct{})
				sent := make(chan uint64)
				go func() {
					var n uint64
					defer func() { sent <- n }()
					start := time.Now()
					for {
						select {
						case <-halt:
							return
						default:
						}
						due := min(uint64(time.Since(start).Seconds()*rate), uint64(received())+most)
						for ; n < due; n++ {
							if _, err := to.Write(binary.LittleEndian.AppendUint64(nil, n)); err != nil {
								t.Errorf("datagram %d: %v", n, err)
							}
						}
						time.Sleep(time.Millisecond) // the rate, and not a wait for something
					}
				}()
				for range restarts {
					for before := received(); received() < before+200; {
						time.Sleep(time.Millisecond)
					}
					if order == "a gap between" {
						end()
						end = begin()
					} else {
						next := begin()
						end()
						end = next
					}
				}
				close(halt)
				total := <-sent
				endLast := begin() // who reads what the last but one has left in a group
				for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
					mu.Lock()
					n := len(seen)
					mu.Unlock()
					if uint64(n) == total {
						break
					}
				}
				end()
				endLast()
				lost, twice := 0, 0
				for n := range total {
					switch seen[n] {
					case 0:
						lost++
					case 1:
					default:
						twice++
					}
				}
				if lost+twice > 0 {
					t.Errorf("%d of %d datagrams were lost in %d restarts, %d were received twice", lost, total, restarts, twice)
				}
				t.Logf("%d datagrams, %d restarts", total, restarts)
			})
		}
	}
}

// A group that nobody has is parked as other sockets are, and its places stay what they were.
func TestGroupIsParked(t *testing.T) {
	needMessages(t)
	b := open(t, binder.Config{Spare: 50, Grace: -1})
	limit(t, 300)
	before := descriptors(t)
	ep := at(t, "udp/127.0.0.1:1", port())
	holdGroup(t, b, ep, 16)
	first := ports(400)
	for i := range 400 {
		hold(t, b, at(t, "tcp/1", first+uint16(i)))
	}
	if n := descriptors(t) - before; n > 200 {
		t.Errorf("%d descriptors are open for 416 sockets: nothing is parked", n)
	}
	programs := []*borrower{borrow(t, b, ep), borrow(t, b, ep), borrow(t, b, ep)}
	const clients = 60
	for range clients {
		if _, err := client(t, ep).Write([]byte("hello")); err != nil {
			t.Fatal(err)
		}
	}
	all := 0
	for i, p := range programs {
		n := len(p.all())
		if all += n; n == 0 {
			t.Errorf("program %d of %d received nothing", i, len(programs))
		}
		p.leave()
	}
	if all != clients {
		t.Errorf("%d of %d datagrams arrived", all, clients)
	}
}
