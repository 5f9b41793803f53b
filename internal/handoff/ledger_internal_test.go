package handoff

import (
	"encoding/json"
	"math/rand/v2"
	"os"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/registry"
	"github.com/portd/portd/internal/wire"
)

// The sizes are part of what a version of the ledger says.
func TestLedgerLayout(t *testing.T) {
	for what, sizes := range map[string][2]uintptr{
		"a listener": {unsafe.Sizeof(listenerPlace{}), 120},
		"a hand":     {unsafe.Sizeof(hand{}), 64},
		"a worker":   {unsafe.Sizeof(workerPlace{}), 48},
		"a serving":  {unsafe.Sizeof(servingPlace{}), 32},
	} {
		if sizes[0] != sizes[1] {
			t.Errorf("%s takes %d bytes, want %d; others are another version", what, sizes[0], sizes[1])
		}
	}
	if unsafe.Sizeof(ledgerHead{}) > listenersAt || unitsAt%unitSize != 0 {
		t.Errorf("the head has %d bytes of %d, and units begin at %d", unsafe.Sizeof(ledgerHead{}), listenersAt, unitsAt)
	}
}

func testLedger(t *testing.T) *ledger {
	l, err := newLedger()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.close)
	l.own(0)
	return l
}

// again is the same ledger as a successor has it.
func again(t *testing.T, l *ledger) *ledger {
	fd, err := unix.FcntlInt(uintptr(l.fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	next, err := openLedger(fd)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(next.close)
	return next
}

// Workers come and go, with few listeners and many, and portds too: no place is two workers', and each finds its own again.
func TestLedgerPlaces(t *testing.T) {
	l := testLedger(t)
	type tenant struct {
		at, n int
		place *workerPlace
	}
	there := map[uint64]tenant{}
	repeats := 5_000
	if os.Getenv("PORTD_LONG") != "" {
		repeats = 50_000
	}
	for i := range repeats {
		id := uint64(i + 1)
		if rand.IntN(100) < 60 || len(there) == 0 {
			n := 1 + rand.IntN(12)
			if rand.IntN(50) == 0 {
				n = 1000
			}
			at, place, serves := l.worker(n)
			if at == 0 || len(serves) != n || place.tenant != 0 || serves[n-1] != (servingPlace{}) {
				t.Fatalf("a worker of %d got place %d with %+v", n, at, *place)
			}
			place.tenant, place.sent = id, id
			serves[0].sent, serves[n-1].drainSeq = id, id
			there[id] = tenant{at, n, place}
		} else {
			for id, w := range there {
				l.free(w.at, w.n)
				if place, _ := again(t, l).claim(w.at, w.n, id); place != nil {
					t.Fatal("a place that was given back can be claimed")
				}
				delete(there, id)
				break
			}
		}
		if i%1000 != 0 {
			continue
		}
		next := again(t, l)
		for id, w := range there {
			place, serves := next.claim(w.at, w.n, id)
			if place == nil || place.sent != id || serves[0].sent != id || serves[w.n-1].drainSeq != id {
				t.Fatalf("worker %d has %+v", id, place)
			}
			if twice, _ := next.claim(w.at, w.n, id); twice != nil {
				t.Fatal("a place can be claimed twice")
			}
		}
		next.own(0)
		l = next
	}
	for _, at := range []int{-1, 0, unitsAt - 256, unitsAt + 1, ledgerSize, ledgerSize - 1} {
		if place, _ := l.claim(at, 1, 0); place != nil {
			t.Errorf("%d is a place", at)
		}
	}
	if place, _ := l.claim(ledgerSize-unitSize, 1000, 0); place != nil {
		t.Error("a place ends behind the ledger")
	}
}

func TestLedgerHands(t *testing.T) {
	l := testLedger(t)
	of := &listener{key: registry.SocketKey{Reservation: "rsv_1"}, counts: &counts{}}
	place, at := l.listener(of.key, nil)
	of.counts, of.place = &place.counts, at+1
	c := wire.Connection{Accepted: 42, Flags: wire.Redelivered, Peer: wire.Addr{Family: wire.FamilyIPv6, Port: 7, Scope: 3, IP: [16]byte{1, 15: 2}}}
	var held [5]uint32
	for i := range held {
		held[i] = l.hold(100+i, of, &c)
	}
	l.let(held[1])
	next := again(t, l)
	grips := next.inHand()
	if len(grips) != 4 {
		t.Fatalf("%d are in hand, want 4", len(grips))
	}
	for _, g := range grips {
		if g.fd != 100+int(g.at-held[0]) || g.incarnation != l.incarnation || g.at == held[1] {
			t.Errorf("place %d has %d of %d", g.at, g.fd, g.incarnation)
		}
		if got := g.connection(); got.Accepted != c.Accepted || got.Flags != c.Flags || got.Peer.AddrPort() != c.Peer.AddrPort() || got.Peer.Scope != 3 {
			t.Errorf("%+v, want %+v", got, c)
		}
	}
	next.own(0)
	if at := next.hold(7, of, &c); at != held[1] {
		t.Errorf("the free place is %d, and %d was taken", held[1], at)
	}
	// There is an end of places.
	for range mostHands {
		next.hold(8, of, &c)
	}
	if at := next.hold(9, of, &c); at != 0 {
		t.Errorf("place %d", at)
	}
}

func FuzzFacts(f *testing.F) {
	w := &worker{id: "wrk_1", token: []byte{1}, allowed: 1, at: unitsAt, workerPlace: &workerPlace{tenant: 5}}
	good, err := json.Marshal(factsOf(w, []part{
		{key: registry.SocketKey{Reservation: "rsv_a", Index: 2}, weight: 3},
		{key: registry.SocketKey{Reservation: "rsv_b"}, weight: 1, priority: 7, socket: true, sockets: []registry.Socket{{Member: 2, Loan: 9, Endpoint: registry.Endpoint{First: 53}}}},
	}))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte(`{"v":1,"id":"w","tenant":1,"allowed":1,"res":[],"serves":[{"r":-1,"w":1}]}`))
	f.Add([]byte(`{"v":2}`))
	f.Fuzz(func(t *testing.T, payload []byte) {
		facts, err := parseFacts(payload)
		if err != nil {
			return
		}
		for i := range facts.Serves {
			if s := &facts.Serves[i]; facts.key(s).Reservation != facts.Reservations[s.Reservation] || s.Weight == 0 {
				t.Errorf("%+v", s)
			}
		}
		if w := facts.worker(); w.id == "" || w.allowed < 1 {
			t.Errorf("%+v", w)
		}
	})
}
