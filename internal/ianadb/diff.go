package ianadb

import (
	"cmp"
	"slices"
	"strings"
)

// A Change is one difference between two editions of the registry, as an operator would tell it.
type Change struct {
	Kind    ChangeKind
	Old     Entry    // what was there; of an Added name the nameless record of its ports, if it had one
	New     Entry    // what is there; of a Removed name the nameless record now in its place, if there is one
	Columns []string // of Renamed and Changed: which differ, by their names in the CSV's header
}

// A ChangeKind says what happened to a record.
type ChangeKind uint8

const (
	Added   ChangeKind = iota // New came; Old, if any, said that its ports were unassigned or reserved
	Removed                   // Old went; New, if any, says what became of its ports
	Renamed                   // another name on the same ports and protocol, one for one
	Changed                   // same name, ports and protocol; or a nameless record of one status whose range grew or shrank
)

// String returns "added", "removed", "renamed" or "changed".
func (k ChangeKind) String() string {
	return [...]string{"added", "removed", "renamed", "changed"}[k]
}

// Diff returns what changed between two editions: ordered by port, then the names without a port in alphabetical order,
// and at one place what went before what came. The order of the records is no difference.
//
// A port assigned out of an unassigned range splits it. That is an Added name, the range Changed to the first piece that
// is left of it, and the other piece Added.
func Diff(old, new *DB) []Change {
	d := differ{was: undecided(old), is: undecided(new)}
	d.sameRecord()
	d.samePorts()
	d.sameStatus()
	for i := range d.was {
		if c := &d.was[i]; !c.decided {
			d.add(Change{Kind: Removed, Old: c.Entry}, i)
		}
	}
	for i := range d.is {
		if c := &d.is[i]; !c.decided {
			d.add(Change{Kind: Added, New: c.Entry}, i)
		}
	}
	return d.sorted()
}

// A differ pairs the records of two editions, the surest pairs first; a step looks at what those before left undecided.
// The steps are in pair.go.
type differ struct {
	was, is []candidate
	changes []placedChange
}

type candidate struct {
	Entry
	decided bool // paired, or told of in a change
}

// A placedChange knows its record's place in its file, to be sorted by.
type placedChange struct {
	Change
	place int
}

func undecided(db *DB) []candidate {
	all := make([]candidate, 0, db.Len())
	for r := range db.All() {
		all = append(all, candidate{Entry: r.Entry()})
	}
	return all
}

func (d *differ) add(c Change, place int) { d.changes = append(d.changes, placedChange{c, place}) }

// pair tells of two records as one, unless they are equal.
func (d *differ) pair(kind ChangeKind, old, new int) {
	was, is := &d.was[old], &d.is[new]
	was.decided, is.decided = true, true
	if was.Entry == is.Entry {
		return
	}
	c := Change{Kind: kind, Old: was.Entry, New: is.Entry}
	before, after := was.row(), is.row()
	for i, name := range columns {
		if before[i] != after[i] {
			c.Columns = append(c.Columns, name)
		}
	}
	d.add(c, new)
}

func (d *differ) sorted() []Change {
	slices.SortFunc(d.changes, func(a, b placedChange) int {
		x, y := a.subject(), b.subject()
		if byPort := cmp.Or(-compareBool(x.HasPort(), y.HasPort()), cmp.Compare(x.First, y.First)); byPort != 0 {
			return byPort
		}
		if !x.HasPort() {
			if byName := strings.Compare(lowerName(x.Name), lowerName(y.Name)); byName != 0 {
				return byName
			}
		}
		return cmp.Or(-compareBool(a.Kind == Removed, b.Kind == Removed), cmp.Compare(a.place, b.place))
	})
	changes := make([]Change, len(d.changes))
	for i, c := range d.changes {
		changes[i] = c.Change
	}
	return changes
}

// subject is the record that a change is about.
func (c *placedChange) subject() *Entry {
	if c.Kind == Removed {
		return &c.Old
	}
	return &c.New
}

// compareBool puts false before true.
func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}
