package binder_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/binder"
	"github.com/portd/portd/internal/ianadb"
	"github.com/portd/portd/internal/registry"
	"github.com/portd/portd/internal/registry/boltstore"
)

// envSeed repeats a history that failed.
const envSeed = "PORTD_HISTORY_SEED"

// TestHistories has a registry on the real kernel live through random histories: it reserves, listens and releases endpoints of
// every kind on a handful of ports, among strangers' sockets of every kind that come, listen, connect and go. Whatever it is
// asked, its verdict is the kernel's:
//
//   - A bind without options is refused if, and only if, the endpoint overlaps one that a socket has.
//   - portd refuses just that, but for TCP where all that is in the way are connections, old or not, with SO_REUSEADDR.
//   - No stranger gets in where its place overlaps what portd holds, and none is refused without anybody in its way.
func TestHistories(t *testing.T) {
	b := &visited{}
	w := newWorld(t, b)
	histories, steps := 30, 120
	if os.Getenv("PORTD_LONG") != "" {
		histories *= 20
	}
	seed := rand.Uint64()
	one := os.Getenv(envSeed)
	if one != "" {
		var err error
		if seed, err = strconv.ParseUint(one, 10, 64); err != nil {
			t.Fatal(err)
		}
		histories = 1
	}
	for range histories {
		w.live(t, seed, steps)
		if t.Failed() {
			t.Fatalf("%s=%d, on ports %d:\n%s", envSeed, seed, w.ports, strings.Join(w.log, "\n"))
		}
		seed++
	}
	t.Logf("up to seed %d, strangers of uids %d: %+v", seed-1, w.uids, w.count)
	for what, n := range map[string]int{
		"reserved": w.count.reserved, "refused": w.count.refused, "held over leftovers": w.count.overLeftovers,
		"strangers that got in": w.count.in, "strangers kept out": w.count.out, "binds of the kernel's": w.count.asked,
	} {
		if n == 0 && one == "" {
			t.Errorf("%s: never in %d histories, so that nothing was tested", what, histories)
		}
	}
}

// A world is a registry and strangers on the same ports, and what the test knows of them.
type world struct {
	r      *registry.Registry
	seen   *visited
	places []registry.Endpoint // without protocol and port; each can be bound here
	server netip.AddrPort      // who strangers connect to
	listen int                 // its descriptor
	uids   []int               // whose sockets strangers can have
	mptcp  bool
	lite   bool

	rng       *rand.Rand
	ports     []uint16
	strangers []*squatter
	held      []*registry.Reservation
	log       []string
	count     struct{ reserved, refused, overLeftovers, listened, released, in, out, past, asked int }
}

// A squatter is a socket of a stranger, or what is left of one.
type squatter struct {
	stranger
	fd    int // -1: a closed connection
	peer  int // the other end of a connection; -1: none
	uid   int
	at    registry.Endpoint // where it is to the kernel
	dual  bool              // it was on all addresses of both families once
	state registry.SocketState
}

// visited knows the sockets of portd that listen, so that the test can accept on them.
type visited struct {
	listening map[registry.SocketKey][]registry.Socket
}

func (v *visited) Listening(key registry.SocketKey, socks []registry.Socket, _ registry.ListenOptions) {
	v.listening[key] = socks
}
func (v *visited) Closing(key registry.SocketKey) { delete(v.listening, key) }

func newWorld(t *testing.T, seen *visited) *world {
	seen.listening = map[registry.SocketKey][]registry.Socket{}
	b := open(t, binder.Config{Observer: seen})
	needFeature(t, b, "hold-over-leftovers")
	store, err := boltstore.Open(filepath.Join(t.TempDir(), "portd.db"), boltstore.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	})
	w := &world{seen: seen, r: registry.New(registry.Config{
		Store: store, Binder: b, Services: ianadb.Embedded(), BootID: "boot",
	})}
	if err := w.r.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- w.r.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})

	w.findPlaces(t)
	w.mptcp = can(stranger{Type: unix.SOCK_STREAM, Proto: unix.IPPROTO_MPTCP, At: netip.AddrPortFrom(netip.IPv4Unspecified(), port())})
	w.lite = can(stranger{Type: unix.SOCK_DGRAM, Proto: unix.IPPROTO_UDPLITE, At: netip.AddrPortFrom(netip.IPv4Unspecified(), port())})
	w.server = netip.AddrPortFrom(netip.IPv6Unspecified(), port())
	w.listen = stranger{Type: unix.SOCK_STREAM, At: w.server, RA: true, Listen: true}.open(t)
	if err := unix.SetNonblock(w.listen, true); err != nil {
		t.Fatal(err)
	}
	w.uids = []int{os.Geteuid()}
	if s := (&squatter{stranger: stranger{Type: unix.SOCK_DGRAM, At: netip.AddrPortFrom(netip.IPv4Unspecified(), 0)}, uid: 65534}); s.make() == nil {
		var st unix.Stat_t
		if unix.Fstat(s.fd, &st) == nil && st.Uid == 65534 {
			w.uids = append(w.uids, 65534)
		}
		_ = unix.Close(s.fd)
	}
	return w
}

// findPlaces collects all addresses and devices that can be bound here.
func (w *world) findPlaces(t *testing.T) {
	device := "lo"
	t.Run("device", func(t *testing.T) { // which may be skipped
		addBridge(t, "br7")
		device = "br7"
		addAddresses(t, device, netip.MustParseAddr("10.7.7.1"), netip.MustParseAddr("2001:db8:7::1"), netip.MustParseAddr("fe80::7"))
	})
	p := port()
	for _, addr := range []string{
		"::", "0.0.0.0", "127.0.0.1", "127.0.0.2", "10.7.7.1", "::1", "2001:db8:7::1", "fe80::7%" + device,
	} {
		for _, dev := range []string{"", "lo", device} {
			for _, only := range []bool{false, true} {
				e := registry.Endpoint{Netns: registry.HostNetns, Proto: registry.TCP, Addr: netip.MustParseAddr(addr), Device: dev, V6Only: only, First: p, Last: p}
				if only && e.Addr != registry.AnyAddr || e.Addr.Zone() != "" && dev != "" && dev != e.Addr.Zone() || slices.Contains(w.places, e) {
					continue
				}
				if can(plain(e, false)) {
					w.places = append(w.places, e)
				}
			}
		}
	}
	var names []string
	for _, e := range w.places {
		names = append(names, e.String())
	}
	t.Logf("%d places: %s", len(names), strings.Join(names, ", "))
}

func can(s stranger) bool {
	fd, err := s.try()
	if err == nil {
		_ = unix.Close(fd)
	}
	return err == nil
}

// plain is the socket without options that shows what the kernel says of e.
func plain(e registry.Endpoint, mptcp bool) stranger {
	s := stranger{Type: unix.SOCK_STREAM, Proto: int(e.Proto), At: netip.AddrPortFrom(e.Addr, e.First), V6Only: e.V6Only, Device: e.Device}
	if !e.Proto.Streams() {
		s.Type = unix.SOCK_DGRAM
	}
	if mptcp {
		s.Proto = unix.IPPROTO_MPTCP
	}
	return s
}

// live is one history on ports that are its own, after which everybody goes.
func (w *world) live(t *testing.T, seed uint64, steps int) {
	w.rng = rand.New(rand.NewPCG(seed, 0))
	first := ports(4)
	w.ports = []uint16{first, first + 1, first + 2, first + 3}
	w.log, w.strangers = nil, nil
	deeds := []struct {
		weight int
		do     func(*testing.T)
	}{
		{8, w.comes}, {5, w.goes}, {3, w.begins}, {4, w.connects}, {10, w.reserves}, {4, w.listens}, {3, w.visits}, {6, w.releases},
	}
	sum := 0
	for _, d := range deeds {
		sum += d.weight
	}
	for range steps {
		n := w.rng.IntN(sum)
		for _, d := range deeds {
			if n -= d.weight; n < 0 {
				d.do(t)
				break
			}
		}
		if t.Failed() {
			break
		}
	}
	for _, s := range w.strangers {
		s.reset()
	}
	for len(w.held) > 0 {
		w.releases(t)
	}
}

func (w *world) say(format string, args ...any) { w.log = append(w.log, fmt.Sprintf(format, args...)) }

func pick[T any](w *world, all []T) T { return all[w.rng.IntN(len(all))] }

func (w *world) odds(n int) bool { return w.rng.IntN(n) == 0 }

// inTheWay are the sockets that overlap e: strangers', and portd's.
func (w *world) inTheWay(e registry.Endpoint) (strangers []*squatter, own []registry.Endpoint) {
	for _, s := range w.strangers {
		if s.overlaps(e) {
			strangers = append(strangers, s)
		}
	}
	for _, r := range w.held {
		for _, a := range r.Assigned {
			if a.Endpoint.Overlaps(e) {
				own = append(own, a.Endpoint)
			}
		}
	}
	return strangers, own
}

// reserves asks for a reservation of one or more endpoints.
func (w *world) reserves(t *testing.T) {
	spec := registry.Spec{}
	spec.Options.MPTCP = w.mptcp && w.odds(4)
	var all []registry.Endpoint
	for more := true; more; more = w.odds(3) {
		place := pick(w, w.places)
		s := registry.EndpointSpec{Addrs: []netip.Addr{place.Addr}, V6Only: place.V6Only, Device: place.Device}
		s.Protos = pick(w, [][]registry.Protocol{{registry.TCP}, {registry.TCP}, {registry.UDP}, {registry.TCP, registry.UDP}, {registry.UDPLite}})
		switch {
		case spec.Options.MPTCP, s.Protos[0] == registry.UDPLite && !w.lite:
			s.Protos = []registry.Protocol{registry.TCP}
		}
		if place.Addr.Is4() && w.odds(4) { // as one may write it
			mapped, err := registry.ParseSpec(fmt.Sprintf("tcp/[::ffff:%v]:1", place.Addr))
			if err != nil {
				t.Fatal(err)
			}
			s.Addrs = mapped.Addrs
		}
		s.Exact.First = pick(w, w.ports)
		s.Exact.Last = min(s.Exact.First+uint16(w.rng.IntN(2)), w.ports[len(w.ports)-1])
		spec.Endpoints = append(spec.Endpoints, s)
		for _, p := range s.Protos {
			e := place
			e.Proto, e.First, e.Last = p, s.Exact.First, s.Exact.Last
			all = append(all, e)
		}
	}
	want := w.verdict(t, all, spec.Options.MPTCP)
	res, err := w.r.Reserve(t.Context(), root, registry.ReserveRequest{Spec: spec})
	w.say("reserve %v mptcp %t: %v", all, spec.Options.MPTCP, err)
	switch {
	case want == registry.ErrInvalid && errors.Is(err, registry.ErrTaken): // both are so
	case !errors.Is(err, want):
		t.Errorf("reserve %v: %v, want %v", all, err, want)
	case err != nil:
		w.count.refused++
		w.checkNamed(t, err)
	default:
		w.count.reserved++
		w.held = append(w.held, res.Reservation)
	}
}

var root = registry.Caller{Netns: registry.HostNetns}

// verdict is what portd must say of a request for all of these: nil, ErrTaken, or ErrInvalid where it is in its own way. The
// kernel is asked about each port too, though not always, for to ask it may leave traces.
func (w *world) verdict(t *testing.T, all []registry.Endpoint, mptcp bool) error {
	t.Helper()
	for i, e := range all {
		if slices.ContainsFunc(all[:i], e.Overlaps) {
			return registry.ErrInvalid
		}
	}
	ask := w.odds(2)
	taken, over := false, false
	for _, whole := range all {
		for p := whole.First; p <= whole.Last; p++ {
			e := whole.At(p)
			strangers, own := w.inTheWay(e)
			refused := len(strangers)+len(own) > 0
			if ask {
				w.ask(t, plain(e, mptcp), refused)
			}
			if !refused {
				continue
			}
			// Connections stand back from SO_REUSEADDR where they have it too.
			leftovers := e.Proto == registry.TCP && len(own) == 0 && !slices.ContainsFunc(strangers, func(s *squatter) bool {
				return s.state < registry.SocketConnected
			})
			free := leftovers && !slices.ContainsFunc(strangers, func(s *squatter) bool { return !s.RA })
			if leftovers && ask {
				over := plain(e, mptcp)
				over.RA = true
				w.ask(t, over, !free)
			}
			taken, over = taken || !free, over || free
		}
	}
	if taken {
		return registry.ErrTaken
	}
	if over {
		w.count.overLeftovers++
	}
	return nil
}

// ask has the kernel say whether it refuses a socket.
func (w *world) ask(t *testing.T, s stranger, want bool) {
	t.Helper()
	w.count.asked++
	fd, err := s.try()
	if err == nil {
		_ = unix.Close(fd)
	} else if !isInUse(err) {
		t.Fatalf("%v: %v", s, err)
	}
	if refused := err != nil; refused != want {
		strangers, own := w.inTheWay(s.place(protoOf(s)))
		t.Errorf("%v %v: kernel refuses %t, want %t; in the way are %v, %v", protoOf(s), s, refused, want, strangers, own)
	}
}

// checkNamed: who is refused is told by whom.
func (w *world) checkNamed(t *testing.T, err error) {
	var taken *registry.TakenError
	if !errors.As(err, &taken) {
		return
	}
	if len(taken.By)+len(taken.Holders) == 0 {
		t.Errorf("nobody is named: %v", err)
	}
	for _, h := range taken.Holders {
		if !slices.ContainsFunc(w.strangers, func(s *squatter) bool {
			return s.overlaps(h.Endpoint) && s.state == h.State && (s.state == registry.SocketLeftover || int(h.UID) == s.uid)
		}) {
			t.Errorf("%v names %v in state %v of uid %d, which nobody is", err, h.Endpoint, h.State, h.UID)
		}
	}
}

// listens makes a reservation listen or not.
func (w *world) listens(t *testing.T) {
	if len(w.held) == 0 {
		return
	}
	i := w.rng.IntN(len(w.held))
	res := w.held[i]
	var err error
	var want error
	if !slices.ContainsFunc(res.Assigned, func(a registry.Assigned) bool { return a.Endpoint.Proto.Streams() }) {
		want = registry.ErrUnsupported
	}
	if slices.ContainsFunc(res.Assigned, func(a registry.Assigned) bool { return a.Listen != nil }) && w.odds(2) {
		res, err = w.r.Unlisten(t.Context(), root, res.ID, "")
		w.say("unlisten %s: %v", w.held[i].Endpoints(), err)
	} else {
		res, err = w.r.Listen(t.Context(), root, res.ID, registry.Listen{Options: registry.ListenOptions{Backlog: 1 + w.rng.IntN(9)}}, "")
		w.say("listen %s: %v", w.held[i].Endpoints(), err)
	}
	if !errors.Is(err, want) {
		t.Errorf("listen on %s: %v, want %v", w.held[i].Endpoints(), err, want)
	}
	if err == nil {
		w.count.listened++
		w.held[i] = res
	}
}

func (w *world) releases(t *testing.T) {
	if len(w.held) == 0 {
		return
	}
	i := w.rng.IntN(len(w.held))
	_, err := w.r.Release(t.Context(), root, w.held[i].ID, "")
	w.say("release %s: %v", w.held[i].Endpoints(), err)
	if err != nil {
		t.Errorf("release %v: %v", w.held[i].Endpoints(), err)
	}
	w.count.released++
	w.held = slices.Delete(w.held, i, i+1)
}
