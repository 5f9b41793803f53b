package binder_test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/binder"
	"github.com/portd/portd/internal/registry"
)

// A record is what a registry would know of an endpoint, and what the programs know that have its socket.
type record struct {
	want      registry.Bind
	listening bool
	refusing  bool
	waiting   int // clients in the backlog
	queued    int // datagrams
	programs  []*borrower
}

// A saga is a random history with deaths in it.
type saga struct {
	*warden
	rng     *rand.Rand
	seen    *visited
	records []*record
	log     []string
	deaths  int
}

// TestKeptHistories lets a Binder live and die, and its successors, with ports in every state. After each step nobody else gets a port, the
// keeper has just the sockets that there are, and clients meet what they are to meet; who waited is served, by whatever Binder.
func TestKeptHistories(t *testing.T) {
	histories, steps := 10, 150
	if os.Getenv("PORTD_LONG") != "" {
		histories *= 20
	}
	seed := rand.Uint64()
	if one := os.Getenv(envSeed); one != "" {
		var err error
		if seed, err = strconv.ParseUint(one, 10, 64); err != nil {
			t.Fatal(err)
		}
		histories = 1
	}
	deaths := 0
	for range histories {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			seen := &visited{listening: map[registry.SocketKey][]registry.Socket{}}
			s := &saga{warden: keep(t, binder.Config{Observer: seen, Grace: time.Hour}), seen: seen, rng: rand.New(rand.NewPCG(seed, 0))}
			for range steps {
				s.step(t)
				s.check(t)
				if t.Failed() {
					t.Fatalf("%s=%d:\n%s", envSeed, seed, strings.Join(s.log, "\n"))
				}
			}
			for len(s.records) > 0 {
				s.release(t, 0)
			}
			if left := s.names(); len(left) > 0 {
				t.Errorf("the keeper has %v", left)
			}
			deaths += s.deaths
		})
		seed++
	}
	if deaths == 0 && histories > 1 {
		t.Error("nobody died")
	}
}

func (s *saga) say(format string, args ...any) { s.log = append(s.log, fmt.Sprintf(format, args...)) }

func (s *saga) step(t *testing.T) {
	var r *record
	at := -1
	if len(s.records) > 0 {
		at = s.rng.IntN(len(s.records))
		r = s.records[at]
	}
	switch n := s.rng.IntN(12); {
	case r == nil || n < 2 && len(s.records) < 12:
		s.bind(t)
	case n == 2:
		s.release(t, at)
	case n < 5:
		s.die()
		s.say("it dies")
		s.deaths++
		s.wantAllKept(t)
		s.comeBack(t)
	case !r.want.Endpoint.Proto.Streams():
		s.datagrams(t, r)
	case n < 8:
		s.listens(t, r)
	case r.listening && !r.refusing && n < 10:
		s.connect(t, r)
	case r.listening && !r.refusing:
		s.accept(t, r)
	}
}

func (s *saga) bind(t *testing.T) {
	kinds := []struct {
		text  string
		opt   registry.BindOptions
		ports int
	}{
		{"tcp/1", registry.BindOptions{}, 1},
		{"tcp/127.0.0.1:1", registry.BindOptions{}, 1},
		{"tcp/[::1]:1", registry.BindOptions{}, 1},
		{"tcp/1", registry.BindOptions{MPTCP: true}, 1},
		{"tcp4/1", registry.BindOptions{Freebind: true}, 1},
		{"tcp/1", registry.BindOptions{}, 5},
		{"udp/127.0.0.1:1", registry.BindOptions{}, 1},
		{"udp/127.0.0.1:1", registry.BindOptions{Group: 3}, 1},
	}
	kind := kinds[s.rng.IntN(len(kinds))]
	ep := at(t, kind.text, ports(kind.ports))
	ep.Last = ep.First + uint16(kind.ports) - 1
	r := &record{want: registry.Bind{Key: key(ep), Endpoint: ep, Options: kind.opt}}
	s.say("bind %v %+v", ep, kind.opt)
	if err := s.b.Bind(t.Context(), r.want); err != nil {
		t.Fatal(err)
	}
	s.records = append(s.records, r)
}

func (s *saga) release(t *testing.T, i int) {
	r := s.records[i]
	s.say("release %v", r.want.Endpoint)
	s.records = slices.Delete(s.records, i, i+1)
	for _, p := range r.programs {
		_ = unix.Close(p.lent[0].FD)
	}
	if err := s.b.Release(r.want.Key); err != nil {
		t.Fatal(err)
	}
	if !r.listening {
		wantAllFree(t, r.want.Endpoint)
	}
}

// listens turns whatever there is to turn.
func (s *saga) listens(t *testing.T, r *record) {
	var err error
	switch n := s.rng.IntN(3); {
	case !r.listening:
		s.say("listen on %v", r.want.Endpoint)
		r.listening = true
		err = s.b.Listen(t.Context(), r.want.Key, registry.ListenOptions{})
	case n == 0:
		s.say("unlisten %v", r.want.Endpoint)
		r.listening, r.refusing, r.waiting = false, false, 0
		err = s.b.Unlisten(r.want.Key)
	case r.refusing:
		s.say("admit %v", r.want.Endpoint)
		r.refusing = false
		err = s.b.Admit(r.want.Key)
	case n == 1:
		s.say("refuse %v", r.want.Endpoint)
		r.refusing, r.waiting = true, 0
		_, err = s.b.Refuse(r.want.Key)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func (r *record) to() string {
	if r.want.Endpoint.Addr == netip.IPv6Loopback() {
		return fmt.Sprintf("[::1]:%d", r.want.Endpoint.First)
	}
	return fmt.Sprintf("127.0.0.1:%d", r.want.Endpoint.First)
}

func (s *saga) connect(t *testing.T, r *record) {
	s.say("connect to %v", r.want.Endpoint)
	c := dial(t, r.to())
	t.Cleanup(func() { c.Close() })
	r.waiting++
}

func (s *saga) accept(t *testing.T, r *record) {
	for ; r.waiting > 0; r.waiting-- {
		fd, _, err := unix.Accept4(s.seen.listening[r.want.Key][0].FD, unix.SOCK_CLOEXEC)
		if err != nil {
			t.Errorf("accept on %v of %d who wait: %v", r.want.Endpoint, r.waiting, err)
			return
		}
		_ = unix.Close(fd)
	}
}

// datagrams has programs take a socket, and leave it, and datagrams come. In a group they come to whoever has a socket.
func (s *saga) datagrams(t *testing.T, r *record) {
	ep := r.want.Endpoint
	switch n := s.rng.IntN(4); {
	case len(r.programs) == 0 || n == 0 && len(r.programs) < r.want.Options.Group:
		s.say("borrow %v", ep)
		r.programs = append(r.programs, borrow(t, s.b, ep))
	case n == 1:
		s.read(t, r)
		s.say("return %v", ep)
		p := r.programs[0]
		r.programs = r.programs[1:]
		p.b = s.b
		p.leave()
	case n == 2:
		s.read(t, r)
	default:
		s.say("send to %v", ep)
		send(t, ep, "x")
		r.queued++
	}
}

func (s *saga) read(t *testing.T, r *record) {
	n := 0
	for _, p := range r.programs {
		n += len(p.all())
	}
	if n != r.queued {
		t.Errorf("%v: %d datagrams, want %d", r.want.Endpoint, n, r.queued)
	}
	r.queued = 0
}

// comeBack is the start of a successor. What it does not know of is closed; a program that has ended meanwhile does not come back.
func (s *saga) comeBack(t *testing.T) {
	var forgotten []*record
	s.records = slices.DeleteFunc(s.records, func(r *record) bool {
		forget := s.rng.IntN(8) == 0 && len(r.programs) == 0 && !r.listening
		if forget {
			s.say("%v is forgotten", r.want.Endpoint)
			forgotten = append(forgotten, r)
		}
		return forget
	})
	clear(s.seen.listening)
	s.begin()
	s.rng.Shuffle(len(s.records), func(i, j int) { s.records[i], s.records[j] = s.records[j], s.records[i] })
	for _, r := range s.records {
		if err := s.b.Bind(t.Context(), r.want); err != nil {
			t.Fatal(err)
		}
		if !r.listening {
			continue
		}
		if err := s.b.Listen(t.Context(), r.want.Key, registry.ListenOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	for _, r := range s.records {
		r.programs = slices.DeleteFunc(r.programs, func(p *borrower) bool {
			if s.rng.IntN(4) == 0 && r.queued == 0 {
				s.say("a program with %v has ended", r.want.Endpoint)
				_ = unix.Close(p.lent[0].FD)
				return true
			}
			if err := s.b.Relend(r.want.Key, p.lent...); err != nil {
				t.Fatal(err)
			}
			p.b = s.b
			return false
		})
	}
	want := 0
	for _, r := range forgotten {
		want += r.want.Endpoint.Ports() * max(r.want.Options.Group, 1)
	}
	s.unclaimed(want)
	for _, r := range forgotten {
		wantAllFree(t, r.want.Endpoint)
	}
}

func (s *saga) wantAllKept(t *testing.T) {
	for _, r := range s.records {
		wantKept(t, r.want.Endpoint)
	}
}

// check asks the kernel.
func (s *saga) check(t *testing.T) {
	s.wantAllKept(t)
	n := 0
	for _, r := range s.records {
		n += r.want.Endpoint.Ports() * max(r.want.Options.Group, 1)
		if r.want.Endpoint.Proto.Streams() && (!r.listening || r.refusing) {
			refused(t, r.to())
		}
	}
	socks := s.sockets()
	if len(socks) != n || len(slices.Compact(socks)) != n {
		t.Errorf("the keeper has %d sockets, want %d", len(socks), n)
	}
}
