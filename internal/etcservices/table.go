package etcservices

import (
	"fmt"
	"slices"
	"strings"

	"github.com/portd/portd/internal/ianadb"
)

// A place is where a service is found.
type place struct {
	port  uint16
	proto ianadb.Protocol // never AnyProtocol
}

// String returns the place as services(5) writes it.
func (p place) String() string { return fmt.Sprintf("%d/%v", p.port, p.proto) }

// A service is one name at one place.
type service struct {
	name string
	at   place
}

// A question is what getservbyname is asked; AnyProtocol stands for its null pointer.
type question struct {
	name  string
	proto ianadb.Protocol
}

// questions are those that a service could answer.
func (s service) questions() [2]question {
	return [...]question{{s.name, s.at.proto}, {s.name, ianadb.AnyProtocol}}
}

// A table lays out lines such that a name, sought from the top, is found first where it was given first.
type table struct {
	lines   []*line
	open    map[place]*line    // of this block, which take more names of their places
	answers map[question]*line // from which questions are answered
	written map[service]bool
}

func newTable() *table {
	return &table{answers: make(map[question]*line), written: make(map[service]bool)}
}

// block lays out entries below what is there. A line above takes no name of theirs, lest it win where it should not.
func (t *table) block(entries []ianadb.Entry, c *Counts) {
	t.open = make(map[place]*line)
	for _, e := range entries {
		added := 0
		for port := int(e.First); port <= int(e.Last); port++ { // an int, for a uint16 is never above 65535
			for _, proto := range protocols(e.Protocol) {
				added += t.add(service{e.Name, place{uint16(port), proto}}, e.Description)
			}
		}
		if added > 0 {
			c.Written++
		} else {
			c.Duplicate++
		}
	}
}

// respell gives own services that differ from one of IANA's by case alone, and so take its name, IANA's spelling as an
// alias, unless the host has an own service spelled that way. It comes between the blocks, and adds to the first.
func (t *table) respell(own, iana []ianadb.Entry, r *Report) {
	byName := make(map[string][]ianadb.Entry)
	spelled := make(map[question]bool)
	for _, e := range own {
		name := strings.ToLower(e.Name)
		byName[name] = append(byName[name], e)
		for _, proto := range protocols(e.Protocol) {
			spelled[question{e.Name, proto}] = true
		}
	}
	for _, theirs := range iana {
		for _, e := range byName[strings.ToLower(theirs.Name)] {
			for _, proto := range protocols(e.Protocol) {
				if spelled[question{theirs.Name, proto}] {
					continue
				}
				added := 0
				for port := int(e.First); port <= int(e.Last); port++ {
					added += t.add(service{theirs.Name, place{uint16(port), proto}}, e.Description)
				}
				if added > 0 {
					r.note(true, e, fmt.Sprintf("written for %v as %s too, for services(5) heeds case and IANA spells it so",
						proto, theirs.Name))
				}
			}
		}
	}
}

// protocols are those that a record is written for. One without a protocol holds for every one, but sctp and dccp are
// in use only where the registry names them.
func protocols(p ianadb.Protocol) []ianadb.Protocol {
	if p == ianadb.AnyProtocol {
		return []ianadb.Protocol{ianadb.TCP, ianadb.UDP}
	}
	return []ianadb.Protocol{p}
}

// add lays out one service, as an alias if it may be, and returns how many that were: 0 for one that is there already.
func (t *table) add(s service, description string) int {
	if t.written[s] {
		return 0
	}
	t.written[s] = true
	l := t.open[s.at]
	if l == nil || !l.fits(s.name) || t.overtakes(s, l) {
		l = &line{n: len(t.lines), at: s.at, description: description}
		t.lines = append(t.lines, l)
		t.open[s.at] = l
	}
	l.names = append(l.names, s.name)
	for _, q := range s.questions() {
		if t.answers[q] == nil {
			t.answers[q] = l
		}
	}
	return 1
}

// overtakes reports whether s, as an alias on l, would answer what a service given earlier answers from a line below.
func (t *table) overtakes(s service, l *line) bool {
	qs := s.questions()
	return slices.ContainsFunc(qs[:], func(q question) bool {
		answer := t.answers[q]
		return answer != nil && l.n < answer.n
	})
}
