package ianadb_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/portd/portd/internal/ianadb"
)

func TestDiff(t *testing.T) {
	for name, tt := range map[string]struct {
		old, new []string // records as name|port|protocol|description
		want     []string
	}{
		"nothing": {old: []string{"a|1|tcp|x", "b||"}, new: []string{"a|1|tcp|x", "b||"}},
		"another order": {
			old: []string{"a|1|tcp", "b|1|tcp", "c||", "d||"},
			new: []string{"b|1|tcp", "a|1|tcp", "d||", "c||"},
		},
		"a new name": {
			old: []string{"a|1|tcp"}, new: []string{"a|1|tcp", "a|1|udp"},
			want: []string{"added a|1|udp|"},
		},
		"a name gone": {
			old: []string{"a|1|tcp", "a|1|udp"}, new: []string{"a|1|tcp"},
			want: []string{"removed a|1|udp|"},
		},
		"other words": {
			old: []string{"a|1|tcp|x", "b||tcp|x"}, new: []string{"a|1|tcp|y", "b||tcp|y"},
			want: []string{"changed a|1|tcp|x -> a|1|tcp|y (Description)", "changed b||tcp|x -> b||tcp|y (Description)"},
		},
		"another spelling": {
			old: []string{"EtherNet|1|tcp"}, new: []string{"ethernet|1|tcp"},
			want: []string{"changed EtherNet|1|tcp| -> ethernet|1|tcp| (Service Name)"},
		},
		"another name": {
			old: []string{"a|1|tcp|x", "a|1|udp|x"}, new: []string{"b|1|tcp|x", "a|1|udp|x"},
			want: []string{"renamed a|1|tcp|x -> b|1|tcp|x (Service Name)"},
		},
		"another of two names": {
			old: []string{"a|1|tcp", "b|1|tcp"}, new: []string{"a|1|tcp", "c|1|tcp"},
			want: []string{"renamed b|1|tcp| -> c|1|tcp| (Service Name)"},
		},
		"one name by two": {
			old: []string{"a|1|tcp"}, new: []string{"b|1|tcp", "c|1|tcp"},
			want: []string{"removed a|1|tcp|", "added b|1|tcp|", "added c|1|tcp|"},
		},
		"an unassigned port": {
			old: []string{"|9||Unassigned"}, new: []string{"a|9|tcp", "a|9|udp"},
			want: []string{"added |9||Unassigned -> a|9|tcp|", "added |9||Unassigned -> a|9|udp|"},
		},
		"a port of one protocol, the other reserved": {
			old: []string{"|9||Unassigned"}, new: []string{"a|9|tcp", "|9|udp|Reserved"},
			want: []string{"added |9||Unassigned -> a|9|tcp|", "added |9|udp|Reserved"},
		},
		"a reserved port of each protocol": {
			old: []string{"|9|tcp|Reserved", "|9|udp|Reserved"}, new: []string{"|9|tcp|Reserved", "a|9|udp"},
			want: []string{"added |9|udp|Reserved -> a|9|udp|"},
		},
		"a port given back": {
			old: []string{"a|9|tcp", "a|9|udp"}, new: []string{"|9||Unassigned"},
			want: []string{"removed a|9|tcp| -> |9||Unassigned", "removed a|9|udp| -> |9||Unassigned"},
		},
		"a port within a range": {
			old: []string{"|10-20||Unassigned"}, new: []string{"|10-14||Unassigned", "a|15|tcp", "|15|udp|Reserved", "|16-20||Unassigned"},
			want: []string{
				"changed |10-20||Unassigned -> |10-14||Unassigned (Port Number)",
				"added a|15|tcp|", "added |15|udp|Reserved", "added |16-20||Unassigned",
			},
		},
		"a port back into its range": {
			old: []string{"|10-14||Unassigned", "a|15|tcp", "|16-20||Unassigned"}, new: []string{"|10-20||Unassigned"},
			want: []string{
				"changed |10-14||Unassigned -> |10-20||Unassigned (Port Number)",
				"removed a|15|tcp|", "removed |16-20||Unassigned",
			},
		},
		"another status": {
			old: []string{"|9|tcp|Unassigned"}, new: []string{"|9|tcp|Reserved"},
			want: []string{"changed |9|tcp|Unassigned -> |9|tcp|Reserved (Description)"},
		},
		"a service moves": {
			old: []string{"a|1|tcp", "b|2|tcp"}, new: []string{"b|2|tcp", "a|3|tcp"},
			want: []string{"removed a|1|tcp|", "added a|3|tcp|"},
		},
		"a name gets a port": {
			old: []string{"a||tcp"}, new: []string{"a|0|tcp"},
			want: []string{"added a|0|tcp|", "removed a||tcp|"},
		},
		"one of two alike": {
			old: []string{"rdp||||", "rdp|||x"}, new: []string{"rdp|||x", "rdp|||y"},
			want: []string{"changed rdp||| -> rdp|||y (Description)"},
		},
		"names without a port by the alphabet": {
			old: []string{"x|7|tcp", "c||", "A||"}, new: []string{"x|7|udp", "d||", "B||"},
			want: []string{"removed x|7|tcp|", "added x|7|udp|", "removed A|||", "added B|||", "removed c|||", "added d|||"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			old, new := compile(t, records(t, tt.old)), compile(t, records(t, tt.new))
			changes := ianadb.Diff(old, new)
			var got []string
			for _, c := range changes {
				got = append(got, sayChange(c))
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			checkDiff(t, old, new, changes)
			checkDiff(t, new, old, ianadb.Diff(new, old))
		})
	}
}

// records reads name|port|protocol|description.
func records(t testing.TB, lines []string) []ianadb.Entry {
	t.Helper()
	file := header
	for _, l := range lines {
		file += line(strings.Split(l, "|")...)
	}
	entries, err := ianadb.ParseCSV(strings.NewReader(file))
	if err != nil {
		t.Fatal(err)
	}
	return entries
}

func sayChange(c ianadb.Change) string {
	say := func(e ianadb.Entry) string { return strings.Join(row(e)[:4], "|") }
	said := []string{c.Kind.String()}
	if c.Old != (ianadb.Entry{}) {
		said = append(said, say(c.Old))
	}
	if c.Old != (ianadb.Entry{}) && c.New != (ianadb.Entry{}) {
		said = append(said, "->")
	}
	if c.New != (ianadb.Entry{}) {
		said = append(said, say(c.New))
	}
	if c.Columns != nil {
		said = append(said, fmt.Sprintf("(%s)", strings.Join(c.Columns, ", ")))
	}
	return strings.Join(said, " ")
}

// checkDiff makes sure that the changes lead from old to new and are in order.
func checkDiff(t testing.TB, old, new *ianadb.DB, changes []ianadb.Change) {
	t.Helper()
	had, has := map[ianadb.Entry]bool{}, map[ianadb.Entry]bool{}
	for _, e := range entriesOf(old) {
		had[e] = true
	}
	for _, e := range entriesOf(new) {
		has[e] = true
	}
	subject := func(c ianadb.Change) ianadb.Entry {
		if c.Kind == ianadb.Removed {
			return c.Old
		}
		return c.New
	}
	for i, c := range changes {
		hasOld, hasNew := c.Old != (ianadb.Entry{}), c.New != (ianadb.Entry{})
		switch {
		case hasOld && (!had[c.Old] || has[c.Old]), hasNew && (!has[c.New] || had[c.New]):
			t.Errorf("no such change: %s", sayChange(c))
		case !hasOld && c.Kind != ianadb.Added, !hasNew && c.Kind != ianadb.Removed:
			t.Errorf("a %v with one side: %s", c.Kind, sayChange(c))
		case (c.Kind == ianadb.Renamed || c.Kind == ianadb.Changed) != (len(c.Columns) > 0):
			t.Errorf("columns: %s", sayChange(c))
		}
		if i > 0 {
			a, b := subject(changes[i-1]), subject(c)
			if !a.HasPort() && b.HasPort() || a.HasPort() && b.HasPort() && a.First > b.First {
				t.Errorf("%s comes before %s", sayChange(changes[i-1]), sayChange(c))
			}
		}
	}
	for _, c := range changes {
		delete(had, c.Old)
		if c.New != (ianadb.Entry{}) {
			had[c.New] = true
		}
	}
	if !maps.Equal(has, had) {
		t.Errorf("the changes do not lead to the new edition (-want +got):\n%.3000s", cmp.Diff(has, had))
	}
}

// TestDiffRandom changes the registry at random, and finds that the difference is all that was done to it.
func TestDiffRandom(t *testing.T) {
	all := entriesOf(ianadb.Embedded())
	for range long(6, 2) {
		seed := rand.Uint64()
		rng := rand.New(rand.NewPCG(seed, 0))
		var next []ianadb.Entry
		edits := 0
		for i, e := range all {
			if rng.IntN(50) > 0 {
				next = append(next, e)
				continue
			}
			edits++
			switch rng.IntN(5) {
			case 0: // gone
			case 1:
				e.Notes += fmt.Sprint("changed ", i)
				next = append(next, e)
			case 2:
				e.Name = fmt.Sprint("renamed", i)
				next = append(next, e)
			case 3:
				next = append(next, e, ianadb.Entry{Name: fmt.Sprint("new", i), Port: e.Port, First: e.First, Last: e.Last, Protocol: e.Protocol})
			case 4:
				if !e.HasPort() {
					edits--
					next = append(next, e)
					continue
				}
				e.First /= 2
				e.Port = fmt.Sprintf("%d-%d", e.First, e.Last)
				next = append(next, e)
			}
		}
		rng.Shuffle(len(next), func(i, j int) { next[i], next[j] = next[j], next[i] })
		old, new := ianadb.Embedded(), compile(t, next)
		changes := ianadb.Diff(old, new)
		checkDiff(t, old, new, changes)
		if len(changes) < edits || len(changes) > 2*edits {
			t.Errorf("seed %d: %d changes after %d edits", seed, len(changes), edits)
		}
		if again := ianadb.Diff(old, new); !slices.EqualFunc(changes, again, func(a, b ianadb.Change) bool { return sayChange(a) == sayChange(b) }) {
			t.Errorf("seed %d: another order the second time", seed)
		}
	}
}
