package etcservices_test

import (
	"bytes"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/portd/portd/internal/etcservices"
	"github.com/portd/portd/internal/ianadb"
)

// FuzzWrite lays out hostile records whose names and ports meet often, and compares what the file answers, read by the
// rules of the C library, with a plain walk over the records.
func FuzzWrite(f *testing.F) {
	f.Add("web\x00Web\x00www", "World Wide Web\n  HTTP", []byte{0, 0, 1, 0, 1, 8, 1, 1, 0, 1, 8, 2, 2, 1, 0})
	f.Add("my web\x00c#\x00naïve\x00\x7f\x00a\nb 9/tcp", "# \x1b[2J\x85\xff\u202e\x00", []byte{0, 0, 1, 0, 1, 0, 1, 1, 3, 0, 8, 2, 9, 1, 3, 8, 3, 3, 4, 4})
	f.Add("a\x00b", "", []byte{0, 0, 1, 0, 1, 0, 1, 2, 0, 1, 0, 1, 1, 0, 1, 8, 0, 1, 0, 2, 8, 1, 1, 0, 1}) // b on 2, then on 1
	f.Add(long(114)+"\x00"+long(115)+"\x00a/b\x00+x", long(300), []byte{0, 0, 15, 1, 0, 8, 1, 15, 0, 0, 0, 2, 3, 3, 0, 8, 3, 3, 3, 0})
	f.Add("a\x00A\x00aA", "De-Registered", []byte{8, 0, 1, 0, 0, 8, 1, 1, 0, 0, 0, 1, 2, 0, 2, 0, 0, 3, 0, 1, 0, 1, 3, 1, 2})
	f.Add("a\x00A", strings.Repeat("é", 100), []byte{0, 1, 1, 0, 1, 0, 0, 2, 0, 1, 8, 0, 3, 0, 1})       // both spellings are own
	f.Add(long(60)+"\x00y"+long(53), "x"+strings.Repeat("é", 100), []byte{0, 0, 1, 0, 1, 0, 1, 1, 0, 1}) // a byte more than a line
	f.Fuzz(func(t *testing.T, names, description string, shape []byte) {
		if len(shape) > 200 {
			return // the walk is slow, and forty records have met in every way
		}
		own, iana := records(names, description, shape)
		var b bytes.Buffer
		r, err := etcservices.Write(&b, slices.Values(own), slices.Values(iana), etcservices.Head{Date: description})
		if err != nil {
			t.Fatal(err)
		}
		lines := parse(t, b.Bytes())
		if r.Own.Records() != len(own) || r.IANA.Records() != len(iana) || r.Own.Lines+r.IANA.Lines != len(lines) {
			t.Fatalf("%d own records, %d of IANA's, %d lines; the report: %+v", len(own), len(iana), len(lines), r)
		}
		for _, n := range r.Notes {
			if s := n.String(); strings.ContainsAny(s, "\n\x1b\x00") {
				t.Errorf("note %q", s)
			}
		}

		ours, theirs := triples(own, true), triples(iana, false)
		all := slices.Concat(ours, respelled(ours, theirs), theirs)
		var got []triple
		for _, l := range lines {
			for _, name := range l.Names {
				got = append(got, triple{name, l.Port, l.Proto})
			}
		}
		for _, x := range all {
			for _, proto := range []string{"", x.proto} {
				byName := func(y triple) bool { return y.name == x.name && (proto == "" || y.proto == proto) }
				byPort := func(y triple) bool { return y.port == x.port && (proto == "" || y.proto == proto) }
				for question, match := range map[string]func(triple) bool{"name": byName, "port": byPort} {
					if g, w := first(got, match), first(all, match); g != w {
						t.Fatalf("the %s of %v, protocol %q: %v, want %v\n%s", question, x, proto, g, w, &b)
					}
				}
			}
		}
		slices.SortFunc(got, compare)
		slices.SortFunc(all, compare)
		if want := slices.Compact(all); !slices.Equal(got, want) {
			t.Errorf("the file has\n%v, want\n%v", got, want)
		}
	})
}

// records makes five bytes of shape into one: whose, which name, first port, further ports, protocol.
func records(names, description string, shape []byte) (own, iana []ianadb.Entry) {
	list := strings.Split(names, "\x00")
	for c := range slices.Chunk(shape, 5) {
		if len(c) < 5 {
			break
		}
		e := ianadb.Entry{
			Name: list[int(c[1])%len(list)], Port: "n", Description: description,
			First: uint16(c[2] % 16), Protocol: ianadb.Protocol(c[4] % 6), // one more than there are
		}
		if c[2]%16 == 15 {
			e.First = 65534
		}
		switch e.Last = e.First + uint16(c[3]%4); { // may run over the end
		case c[3]%16 == 15:
			e.First, e.Last, e.Port = 0, 0, ""
		case c[0]&8 == 0:
			own = append(own, e)
			continue
		}
		iana = append(iana, e)
	}
	return own, iana
}

// A triple is one name for one port and protocol.
type triple struct {
	name  string
	port  uint16
	proto string
}

func compare(a, b triple) int { return strings.Compare(a.String(), b.String()) }

func (x triple) String() string { return servent{[]string{x.name}, x.port, x.proto}.String() }

func first(all []triple, match func(triple) bool) triple {
	if i := slices.IndexFunc(all, match); i >= 0 {
		return all[i]
	}
	return triple{}
}

var holdable = regexp.MustCompile(`^[!-"$-~]{1,114}$`)

// triples are what records say, in their order.
func triples(records []ianadb.Entry, own bool) []triple {
	var all []triple
	for _, e := range records {
		if !holdable.MatchString(e.Name) || e.Port == "" || e.Protocol > ianadb.DCCP || e.First > e.Last ||
			!own && strings.HasPrefix(strings.ToLower(e.Description), "de-registered") {
			continue
		}
		for port := uint32(e.First); port <= uint32(e.Last); port++ {
			protos := []string{e.Protocol.String()}
			if e.Protocol == ianadb.AnyProtocol {
				protos = []string{"tcp", "udp"}
			}
			for _, proto := range protos {
				all = append(all, triple{e.Name, uint16(port), proto})
			}
		}
	}
	return all
}

// respelled are the own ones, once more in IANA's spelling where an own name differs from it by case alone.
func respelled(own, iana []triple) []triple {
	var all []triple
	for _, i := range iana {
		for _, o := range own {
			exact := func(y triple) bool { return y.name == i.name && y.proto == o.proto }
			if strings.EqualFold(o.name, i.name) && !slices.ContainsFunc(own, exact) {
				all = append(all, triple{i.name, o.port, o.proto})
			}
		}
	}
	return all
}
