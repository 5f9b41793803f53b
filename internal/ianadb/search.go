package ianadb

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// A Match is a service that a search found, with its records for one protocol or several.
type Match struct {
	Records []Record // equal but for the protocol, in file order
	Kind    MatchKind
	Missing int // how many of the words it does not have: as few as any service
}

// A MatchKind says how well a word matches, the best first. That of several words is their worst.
type MatchKind uint8

const (
	ExactName  MatchKind = iota // is the name
	NamePrefix                  // begins the name
	WholeWord                   // is a word of the name, between hyphens, or of the text
	Substring                   // is anywhere in the name or the text
)

// String returns "exact", "prefix", "word" or "substring".
func (k MatchKind) String() string {
	return [...]string{"exact", "prefix", "word", "substring"}[k]
}

// The most that a search may ask for, so that none takes more than a few milliseconds.
const (
	maxSearchBytes = 256
	maxSearchWords = 8
)

// CheckSearch says what is wrong with the words of a search: there are none, or too many.
func CheckSearch(words string) error {
	if len(words) > maxSearchBytes {
		return fmt.Errorf("search of %d bytes, %d are the most", len(words), maxSearchBytes)
	}
	switch n := len(strings.Fields(words)); {
	case n == 0:
		return errors.New("search for nothing, want a word or more")
	case n > maxSearchWords:
		return fmt.Errorf("search for %d words, %d are the most", n, maxSearchWords)
	}
	return nil
}

// Search finds the services in whose names, descriptions, assignees, notes and reports of unauthorized use each of some
// words occurs, whatever its case, and returns a page of them and how many there are. A limit of 0 only counts. What
// CheckSearch refuses finds nothing.
//
// The kinds of a match decide the order. Among equals come the host's own services first, and what has a name before what
// has none; then those found by their names, shorter ones first, those found by their descriptions, and those found by the
// rest, lower ports first.
func (d Directory) Search(words string, p Protocol, skip, limit int) (matches []Match, total int) {
	if CheckSearch(words) != nil {
		return nil, 0
	}
	ws := strings.Fields(string(appendFolded(nil, words)))
	slices.SortFunc(ws, func(a, b string) int { // long words are rare, and most documents fail at the first
		return cmp.Or(len(b)-len(a), strings.Compare(a, b))
	})
	ws = slices.Compact(ws)
	var ranks []rank
	for _, db := range d.both() {
		ranks = db.search(ranks, ws, p, db == d.IANA)
	}
	missing := 0
	if len(ranks) == 0 {
		missing = len(ws)
		for _, db := range d.both() {
			ranks, missing = db.searchMost(ranks, ws, p, db == d.IANA, missing)
		}
	}
	slices.Sort(ranks)
	total = len(ranks)
	ranks = ranks[min(max(skip, 0), total):]
	ranks = ranks[:min(max(limit, 0), len(ranks))]
	for _, r := range ranks {
		db := d.IANA
		if !r.isIANA() {
			db = d.Own
		}
		matches = append(matches, Match{db.sameButProtocol(&db.text.documents[r.document()], p), r.kind(), missing})
	}
	return matches, total
}

// Prepare makes what Search needs, a few milliseconds' work, rather than leave it to the first search.
func (d Directory) Prepare() {
	for _, db := range d.both() {
		db.searchable()
	}
}

func (db *DB) searchable() *searchText {
	db.prepare.Do(func() { db.text = newSearchText(db) })
	return db.text
}

// search appends the ranks of the documents that have every word.
func (db *DB) search(ranks []rank, words []string, p Protocol, isIANA bool) []rank {
	s := db.searchable()
	var bytes uint64
	for _, word := range words {
		for i := range len(word) {
			bytes |= byteBits[word[i]]
		}
	}
documents:
	for i := range len(s.documents) - 1 {
		d, next := &s.documents[i], &s.documents[i+1]
		if bytes&^d.bytes != 0 || !d.meets(p) {
			continue
		}
		var sum hits
		for _, word := range words {
			h, ok := s.find(d, next, word)
			if !ok {
				continue documents
			}
			sum.add(h)
		}
		ranks = append(ranks, newRank(sum, Record{db, d.record}, isIANA, i))
	}
	return ranks
}

// searchMost is search for the documents that lack the fewest words, one at least less than all. Those in ranks lack
// missing ones; when a document lacks fewer they are dropped.
func (db *DB) searchMost(ranks []rank, words []string, p Protocol, isIANA bool, missing int) ([]rank, int) {
	s := db.searchable()
	for i := range len(s.documents) - 1 {
		d, next := &s.documents[i], &s.documents[i+1]
		if !d.meets(p) {
			continue
		}
		var sum hits
		lacks := 0
		for _, word := range words {
			if h, ok := s.find(d, next, word); ok {
				sum.add(h)
			} else if lacks++; lacks > missing {
				break
			}
		}
		if lacks == len(words) || lacks > missing {
			continue
		}
		if lacks < missing {
			ranks, missing = ranks[:0], lacks
		}
		ranks = append(ranks, newRank(sum, Record{db, d.record}, isIANA, i))
	}
	return ranks, missing
}

// sameButProtocol returns the records of a document that say something about a protocol.
func (db *DB) sameButProtocol(d *document, p Protocol) (all []Record) {
	first := Record{db, d.record}
	list := db.find(first.Name())
	if ports, ok := first.Ports(); ok {
		list = db.holders(ports.First)
	}
	db.walk(list, p, func(r Record) bool {
		if r.cells() == first.cells() {
			all = append(all, r)
		}
		return true
	})
	return all
}

// A hit is how well and where one word was found.
type hit struct {
	kind  MatchKind
	where uint8
}

const (
	inName = iota
	inDescription
	inNotes // or in another cell
)

// hits are those of all words: the worst kind, and sums to tell equals apart.
type hits struct {
	worst         MatchKind
	kinds, wheres rank
	named         bool // a word was found in the name
}

func (s *hits) add(h hit) {
	s.worst = max(s.worst, h.kind)
	s.kinds += rank(h.kind)
	s.wheres += rank(h.where)
	s.named = s.named || h.where == inName
}

// A rank is a document and its place among the others in one number, so that thousands are sorted in no time.
type rank uint64

// The fields of a rank, the one that decides first is the highest.
const (
	documentBits = 24
	portAt       = documentBits // 17 bits: names without a port come after all ports
	nameAt       = portAt + 17  // 8 bits: the length of the name, if that is where a word was found
	wheresAt     = nameAt + 8   // 5 bits
	unnamedAt    = wheresAt + 5
	ianaAt       = unnamedAt + 1
	kindsAt      = ianaAt + 1 // 5 bits
	worstAt      = kindsAt + 5
)

func newRank(s hits, r Record, isIANA bool, document int) rank {
	nameLen := len(r.Name())
	n := rank(s.worst)<<worstAt | s.kinds<<kindsAt | s.wheres<<wheresAt | rank(document)
	if isIANA {
		n |= 1 << ianaAt
	}
	if nameLen == 0 {
		n |= 1 << unnamedAt
	}
	if s.named {
		n |= rank(min(nameLen, 255)) << nameAt
	}
	if ports, ok := r.Ports(); ok {
		return n | rank(ports.First)<<portAt
	}
	return n | 1<<16<<portAt
}

func (r rank) isIANA() bool     { return r>>ianaAt&1 != 0 }
func (r rank) kind() MatchKind  { return MatchKind(r >> worstAt) }
func (r rank) document() uint32 { return uint32(r & (1<<documentBits - 1)) }
