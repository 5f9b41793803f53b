package handoff

import (
	"sync/atomic"
	"testing"
	"unsafe"

	"github.com/portd/portd/internal/registry"
	"github.com/portd/portd/internal/wire"
)

// Where the first engine's seat is, a portd that knows of one engine looks for it.
func TestFirstSeat(t *testing.T) {
	var h ledgerHead
	for what, at := range map[string][2]uintptr{
		"accepting":     {unsafe.Offsetof(h.accepting), 28},
		"journal":       {unsafe.Offsetof(h.journal), 32},
		"past":          {unsafe.Offsetof(h.past), 120},
		"acceptingFrom": {unsafe.Offsetof(h.acceptingFrom), 160},
		"holders":       {unsafe.Offsetof(h.holders), 168},
		"retakingFrom":  {unsafe.Offsetof(h.retakingFrom), 240},
	} {
		if at[0] != at[1] {
			t.Errorf("%s stands at %d, want %d", what, at[0], at[1])
		}
	}
}

// Several engines' messages to workers of one listener were in flight, and one was just being counted. All are counted once, wherever
// portd died, and its successor.
func TestSeveralInFlight(t *testing.T) {
	for _, counted := range []uint64{0, 4} { // how far that had come
		for deaths := range 3 {
			l := testLedger(t)
			of := &listener{key: registry.SocketKey{Reservation: "rsv_1"}, counts: &counts{}}
			place, at := l.listener(of.key, nil)
			of.counts, of.place = &place.counts, at+1
			of.handedOver = 100
			var workers []*worker
			for i, n := range []int{3, 4, 2} {
				w := &worker{}
				var serves []servingPlace
				w.at, w.workerPlace, serves = l.worker(1)
				w.tenant = uint64(i + 1)
				s := &serving{worker: w, servingPlace: &serves[0]}
				w.serves = []*serving{s}
				workers = append(workers, w)
				seat := l.seat(i, 3)
				var hands [perMessage]uint32
				l.reserve(hands[:n])
				for k, hand := range hands[:n] {
					l.note(hand, 100+10*i+k, of.place, &wire.Connection{}, doubt{})
				}
				seat.intend(of, s, n, &hands)
				w.sequence++ // so that it counts as sent
				if i == 1 {
					seat.landed(of)
				}
			}
			of.handedOver += counted
			p := &Pool{ledger: l, past: &counts{}}
			who := func(tenant uint64) *worker { return workers[tenant-1] }
			for range deaths { // in the middle of settling
				seats := l.seats()
				p.settleMessage(&seats[1], who, nil)
				atomic.StoreUint64(&seats[1].journal.sequence, 1)
			}
			p.settleMessages(who, nil)
			if of.handedOver != 109 {
				t.Errorf("%d, %d deaths: %d are counted, want 109", counted, deaths, of.handedOver)
			}
			for i, want := range []uint64{3, 4, 2} {
				if w := workers[i]; w.sent != want || w.serves[0].sent != want {
					t.Errorf("worker %d was sent %d and %d, want %d", i, w.sent, w.serves[0].sent, want)
				}
			}
			if in := l.inHand(); len(in) > 0 {
				t.Errorf("%d are in hand", len(in))
			}
		}
	}
}
