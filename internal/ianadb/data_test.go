package ianadb_test

import (
	"bytes"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/portd/portd/internal/ianadb"
)

// TestEveryByte writes the CSV again from the compiled registry: no cell, no order, no garbled letter is lost.
func TestEveryByte(t *testing.T) {
	want, err := os.ReadFile(csvFile)
	if err != nil {
		t.Fatal(err)
	}
	got := writeCSV(t, entriesOf(ianadb.Embedded()))
	if bytes.Equal(got, want) {
		return
	}
	was, is := bytes.Split(want, []byte("\n")), bytes.Split(got, []byte("\n"))
	for i := range min(len(was), len(is)) {
		if !bytes.Equal(was[i], is[i]) {
			t.Fatalf("line %d is\n%q, want\n%q", i+1, is[i], was[i])
		}
	}
	t.Fatalf("%d lines, want %d", len(is), len(was))
}

// TestShape counts what readers of the file tend to lose: ranges, names without a port, records without a protocol,
// second names of a port.
func TestShape(t *testing.T) {
	type key struct {
		port     string
		protocol ianadb.Protocol
	}
	got := map[string]int{}
	withPort, portless, named := map[string]bool{}, map[string]bool{}, map[key]int{}
	lastPort := 0
	for r := range ianadb.Embedded().All() {
		e := r.Entry()
		got["protocol "+e.Protocol.String()]++
		switch {
		case !e.HasPort():
			got["without a port"]++
			portless[e.Name] = true
			lastPort = 1 << 16 // none with a port may follow
		case strings.Contains(e.Port, "-"):
			got["ranges"]++
			if e.First == e.Last {
				got["ranges of one port"]++
			}
		default:
			got["single ports"]++
		}
		if e.HasPort() {
			if int(e.First) < lastPort {
				t.Errorf("%s/%v comes after port %d", e.Port, e.Protocol, lastPort)
			}
			lastPort = int(e.First)
			if e.Name != "" {
				named[key{e.Port, e.Protocol}]++
				withPort[e.Name] = true
			}
		}
		if e.Name == "" {
			got["without a name"]++
		} else if e.HasPort() && e.Protocol == any_ {
			got["named ports of every protocol"]++
		}
	}
	for name := range portless {
		if withPort[name] {
			got["names with and without a port"]++
		}
	}
	for _, n := range named {
		if n > 1 {
			got["ports of several names"]++
			got["their names"] += n
		}
	}
	got["names with a port"], got["names without one"] = len(withPort), len(portless)
	want := map[string]int{
		"single ports": 12697, "ranges": 766, "ranges of one port": 6, "without a port": 1070, "without a name": 1724,
		"protocol tcp": 6606, "protocol udp": 6356, "protocol sctp": 93, "protocol dccp": 11, "protocol ": 1467,
		"names with a port": 6341, "names without one": 1002, "names with and without a port": 16,
		"named ports of every protocol": 16, "ports of several names": 226, "their names": 458,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestAliases: each of the names that RFC 6335 does not allow says which name took its place, and that one stands
// before it on the same port and says so too.
func TestAliases(t *testing.T) {
	db := ianadb.Embedded()
	aliases := 0
	for r := range db.All() {
		e := r.Entry()
		to := e.AliasOf()
		if to == "" {
			continue
		}
		aliases++
		says := `IANA assigned this well-formed service name as a replacement for "` + e.Name + `".`
		before := slices.ContainsFunc(slices.Collect(db.ByPort(e.First, e.Protocol)), func(r ianadb.Record) bool {
			return r.Name() == to && strings.Contains(r.Entry().Description, says)
		})
		names := slices.Collect(db.Names(e.First, e.Protocol))
		if !before || slices.Index(names, to) > slices.Index(names, e.Name) {
			t.Errorf("%s is an alias of %q, but its port has %q", e.Name, to, names)
		}
	}
	if aliases != 184 {
		t.Errorf("%d aliases, want 184", aliases)
	}
}

// TestCells looks at cells that a hasty reader breaks.
func TestCells(t *testing.T) {
	db := ianadb.Embedded()
	first := func(name string) ianadb.Entry {
		for r := range db.ByName(name, any_) {
			return r.Entry()
		}
		t.Fatalf("no %s", name)
		return ianadb.Entry{}
	}
	if got := first("dec-dlm"); ianadb.Collapse(got.Description) != `DEC DLM IANA assigned this well-formed service name as a replacement for "dec_dlm".` {
		t.Errorf("dec-dlm: %q", got.Description)
	}
	if got := strings.Count(first("www-http").Notes, "\n"); got != 20 {
		t.Errorf("www-http: %d line breaks in the notes, want 20", got)
	}
	if got := first("x11").UnauthorizedUse; got != "Known Unauthorized Use on port 6003" {
		t.Errorf("x11: unauthorized use %q", got)
	}
	if got := first("dccp-ping"); got.ServiceCode != "1885957735" || got.HasPort() {
		t.Errorf("dccp-ping: service code %q, port %q", got.ServiceCode, got.Port)
	}
	codes, multi, longest := 0, 0, 0
	for r := range db.All() {
		e := r.Entry()
		if e.ServiceCode != "" {
			codes++
		}
		cells := row(e)
		if strings.Contains(strings.Join(cells, ""), "\n") {
			multi++
		}
		for _, cell := range cells {
			longest = max(longest, len([]rune(cell)))
		}
		ports, ok := r.Ports()
		if r.Name() != e.Name || r.Protocol() != e.Protocol || r.Status() != e.Status() || ok != e.HasPort() || ports != (ianadb.Range{First: e.First, Last: e.Last}) {
			t.Errorf("the record and its entry differ: %+v", e)
		}
	}
	if codes != 4 || multi != 444 || longest != 1532 {
		t.Errorf("%d service codes, %d records of several lines, longest cell %d; want 4, 444, 1532", codes, multi, longest)
	}
}

func TestCollapse(t *testing.T) {
	if got := ianadb.Collapse("  one\n      two,\tthree \n"); got != "one two, three" {
		t.Errorf("%q", got)
	}
}
