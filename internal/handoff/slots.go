package handoff

import (
	"encoding/binary"
	"hash/fnv"
	"math"
	"slices"

	"github.com/portd/portd/internal/wire"
)

// The same client address goes to the same worker by weighted rendezvous hashing (Thaler and Ravishankar, 1998): each address
// belongs to the worker with which it has the least number of all, so that one that comes takes only what is to be its own, and what one
// leaves goes to all others alike. Addresses are put into slots first, whose owners are kept in a table: to find one costs the same
// with thousands of workers.

// slotBits are how many bits of the hash of an address count. With 8 workers shares are off by 2 %, with 64 by 6 %.
const slotBits = 14

type slots struct {
	owners  [1 << slotBits]*serving
	least   [1 << slotBits]float64 // their distances; vacant where there is to be a new one
	members []*serving
	seeds   map[uint64]bool // theirs
}

// vacant is less than any distance, so that nobody bids for the slot before all do. Who leaves costs its slots' next clients a look at all
// workers each, and nobody at once.
const vacant = -1

func newSlots() *slots {
	t := &slots{seeds: make(map[uint64]bool)}
	for i := range t.least {
		t.least[i] = math.Inf(1)
	}
	return t
}

// bid makes s a slot's owner where it has the least distance. That is exponentially distributed with the weight as its rate, so that each
// worker's is the least by its share of all weight.
func (t *slots) bid(s *serving, slot int) {
	// u is 2^-53 to 1. Since -ln u ≥ 1-u, the logarithm is mostly not needed.
	u := float64(mix(s.seed, uint64(slot))>>11+1) * (1.0 / (1 << 53))
	if weight := float64(s.weight); 1-u < t.least[slot]*weight {
		if d := -math.Log(u) / weight; d < t.least[slot] {
			t.owners[slot], t.least[slot] = s, d
		}
	}
}

// mix is number n of a sequence that seed names (SplitMix64; Steele, Lea and Flood, 2014).
func mix(seed, n uint64) uint64 {
	z := seed + n*0x9e3779b97f4a7c15
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}

func (t *slots) add(s *serving) {
	if s.placed {
		return
	}
	s.placed = true
	for nth := 0; s.seed == 0 || t.seeds[s.seed]; nth++ {
		s.seed = s.worker.seed(nth)
	}
	t.seeds[s.seed] = true
	t.members = append(t.members, s)
	for slot := range t.least {
		t.bid(s, slot)
	}
}

func (t *slots) remove(s *serving) {
	if !s.placed {
		return
	}
	s.placed = false
	delete(t.seeds, s.seed)
	i := slices.Index(t.members, s)
	t.members = slices.Delete(t.members, i, i+1)
	for slot, o := range t.owners {
		if o == s {
			t.owners[slot], t.least[slot] = nil, vacant
		}
	}
}

// of is whose an address is; nil where there is nobody.
func (t *slots) of(a *wire.Addr) *serving {
	for slot := slotOf(a); ; {
		if t.least[slot] == vacant {
			t.least[slot] = math.Inf(1)
			for _, m := range t.members {
				t.bid(m, slot)
			}
		}
		s := t.owners[slot]
		if s == nil || s.ready() {
			return s
		}
		t.remove(s)
	}
}

func slotOf(a *wire.Addr) int {
	hi, lo := binary.BigEndian.Uint64(a.IP[:8]), binary.BigEndian.Uint64(a.IP[8:])
	return int(mix(mix(hi, uint64(a.Scope)), lo) >> (64 - slotBits))
}

// clear undoes all adds.
func (t *slots) clear() {
	for _, s := range t.members {
		s.placed = false
	}
}

// seed tells workers apart, and is the same for a program that attaches again, as after a restart of portd: for its nth attachment to
// the listener.
func (w *worker) seed(nth int) uint64 {
	h := fnv.New64a()
	if w.caller.PID == 0 { // it is in a pid namespace that portd does not see
		_, _ = h.Write([]byte(w.id))
	} else {
		_, _ = h.Write(binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint32(nil, uint32(w.caller.PID)), w.caller.UID))
	}
	return mix(h.Sum64(), uint64(nth))
}
