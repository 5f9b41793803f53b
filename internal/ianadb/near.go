package ianadb

import (
	"bytes"
	"cmp"
	"iter"
	"math/bits"
	"slices"
)

const (
	maxNear     = 5
	maxNearName = 32 // a longer name has none near it
	maxTypos    = 2
)

// Near returns the names that someone may have meant by this one, best first, as the registries spell them and at most
// five: the name itself, with other hyphens, with a typo or two, longer, shorter. A name that has little in common with
// any gets none.
func (d Directory) Near(name string) []string {
	if len(name) > maxNearName {
		return nil
	}
	wanted := lowered(nil, name)
	var found []nearName
	for _, db := range d.both() {
		for r := range db.bearers() {
			var buffer [maxNearName]byte
			have := lowered(buffer[:0], r.Name())
			cost, ok := nearness(wanted, have)
			if !ok {
				continue
			}
			found = append(found, nearName{cost, db == d.IANA, commonPrefix(wanted, have), r})
		}
	}
	slices.SortFunc(found, nearName.compare)
	var names []string
	for _, n := range found {
		name := n.record.Name()
		if len(names) < maxNear && !slices.ContainsFunc(names, func(s string) bool { return sameName(s, name) }) {
			names = append(names, name)
		}
	}
	return names
}

func lowered(b []byte, name string) []byte {
	for i := range len(name) {
		b = append(b, lower(name[i]))
	}
	return b
}

// bearers yields one record for each name.
func (db *DB) bearers() iter.Seq[Record] {
	return func(yield func(Record) bool) {
		for i := range uint32(len(db.slots) / 4) {
			if list := word(db.slots, i); list != 0 && !yield(Record{db, word(db.lists, list) &^ endOfList}) {
				return
			}
		}
	}
}

// A nearName is a name and what decides its place among others.
type nearName struct {
	cost   int
	isIANA bool
	common int // letters at the beginning
	record Record
}

func (n nearName) compare(m nearName) int {
	return cmp.Or(n.cost-m.cost, compareBool(n.isIANA, m.isIANA), m.common-n.common, cmp.Compare(n.record.n, m.record.n))
}

// The costs of what may have happened to a name on its way here.
const (
	costNone     = iota
	costHyphens  // sun_rpc, sunrpc
	costSwap     // smpt
	costTypo     // htpps
	costCutShort // postgres, etcd for etcd-client
	costTypos    // two of them, or one in a name of three letters
	costPart     // much is missing, or there is too much: ssh-server
)

// nearness returns the least cost that turns one name into the other; both are in lower case.
func nearness(wanted, have []byte) (cost int, ok bool) {
	switch {
	case bytes.Equal(wanted, have):
		return costNone, true
	case sameAlnum(wanted, have):
		return costHyphens, true
	}
	cost = costPart + 1
	switch longer := len(have) - len(wanted); {
	case len(wanted) >= 3 && bytes.HasPrefix(have, wanted):
		if cost = costPart; longer <= 3 || !isAlnum(have[len(wanted)]) {
			cost = costCutShort
		}
	case len(have) >= 3 && bytes.HasPrefix(wanted, have) && (2*len(have) > len(wanted) || !isAlnum(wanted[len(have)])):
		cost = costPart
	}
	cost = min(cost, typoCost(wanted, have))
	return cost, cost <= costPart
}

// typoCost allows the fewer typos the shorter the name, for any three letters are near any others.
func typoCost(wanted, have []byte) int {
	allowed := 0
	switch n := len(wanted); {
	case n >= 7:
		allowed = maxTypos
	case n >= 3:
		allowed = 1
	}
	longer := len(have) - len(wanted)
	if allowed == 0 || max(longer, -longer) > allowed || apart(wanted, have) > allowed {
		return costPart + 1
	}
	d := distance(wanted, have)
	switch {
	case d > allowed:
		return costPart + 1
	case d == 1 && longer == 0 && apart(wanted, have) == 0:
		return costSwap
	case wanted[0] != have[0]: // even who errs begins right
		return costPart + 1
	case len(wanted) > 3 && d == 1:
		return costTypo
	case len(wanted) > 3 || longer != 0:
		return costTypos
	}
	return costPart + 1
}

// apart returns how many letters one of two names has and the other has not: the distance is no less.
func apart(a, b []byte) int {
	var inA, inB uint64
	for _, c := range a {
		inA |= byteBits[c]
	}
	for _, c := range b {
		inB |= byteBits[c]
	}
	return max(bits.OnesCount64(inA&^inB), bits.OnesCount64(inB&^inA))
}

// distance is how many letters to insert, delete, replace or swap with their neighbours: optimal string alignment.
func distance(a, b []byte) int {
	var rows [3][maxNearName + maxTypos + 1]int // of the names read so far: two and one letters of a ago, and now
	before, last, now := &rows[0], &rows[1], &rows[2]
	for j := range len(b) + 1 {
		last[j] = j
	}
	for i := range len(a) {
		now[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			now[j+1] = min(last[j+1]+1, now[j]+1, last[j]+cost)
			if i > 0 && j > 0 && a[i] == b[j-1] && a[i-1] == b[j] {
				now[j+1] = min(now[j+1], before[j-1]+1)
			}
		}
		before, last, now = last, now, before
	}
	return last[len(b)]
}

// sameAlnum compares what is left of two names without hyphens and the like, which must be something.
func sameAlnum(a, b []byte) bool {
	some := false
	for i, j := 0, 0; ; i, j, some = i+1, j+1, true {
		for i < len(a) && !isAlnum(a[i]) {
			i++
		}
		for j < len(b) && !isAlnum(b[j]) {
			j++
		}
		if i == len(a) || j == len(b) {
			return some && i == len(a) && j == len(b)
		}
		if a[i] != b[j] {
			return false
		}
	}
}

func commonPrefix(a, b []byte) int {
	n := 0
	for n < len(a) && n < len(b) && a[n] == b[n] {
		n++
	}
	return n
}
