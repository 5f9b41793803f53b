package main

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/portd/portd/internal/ianadb"
	pb "github.com/portd/portd/proto/portd/v1"
)

// A line of whois is what the registry says of some ports for some protocols.
type line struct {
	ports  *pb.PortRange // nil: a name without a port
	name   string        // empty: nobody's
	own    bool          // this host's own
	protos []string
	texts  []string
}

func (l *line) cells() []string {
	ports := ""
	if l.ports != nil {
		ports = portsText(l.ports)
	}
	text := strings.Join(slices.DeleteFunc(slices.Clone(l.texts), func(s string) bool { return s == "" }), "; ")
	if l.own {
		text = strings.TrimSpace(text + " (this host's own)")
	}
	return []string{ports, l.name, strings.Join(l.protos, " "), text}
}

// printLines prints a line per name, then one per status of the protocols that have none. A range is in order of its ports.
func (c *ctl) printLines(l *pb.ServiceLookup, q question) error {
	lines := append(named(l.GetEntries()), unnamed(l, q)...)
	if q.isRange() {
		slices.SortStableFunc(lines, func(a, b *line) int { return cmp.Compare(a.ports.GetFirst(), b.ports.GetFirst()) })
	}
	t := c.table()
	for _, line := range lines {
		t.row(line.cells()...)
	}
	return t.flush()
}

// named is the named entries, those that differ in the protocol alone in one line.
func named(entries []*pb.ServiceEntry) (lines []*line) {
	at := map[lineKey][]*line{}
	for _, e := range entries {
		if e.GetName() == "" {
			continue
		}
		k, text := keyOf(e), describe(e)
		i := slices.IndexFunc(at[k], func(l *line) bool { return l.says(text) })
		if i < 0 {
			i = len(at[k])
			at[k] = append(at[k], &line{ports: e.GetPorts(), name: e.GetName(), own: k.own, texts: []string{text}})
			lines = append(lines, at[k][i])
		}
		l := at[k][i]
		if isNameAlone(l.texts[0], l.name) && text != "" {
			l.texts[0] = text
		}
		if p := protoWord(e.GetProtocol()); !slices.Contains(l.protos, p) {
			l.protos = append(l.protos, p)
		}
	}
	return lines
}

// says tells whether a text is no news beside that of a line: "HTTPS" says nothing of https. What is of the past never stands
// for another protocol.
func (l *line) says(text string) bool {
	has := l.texts[0]
	return strings.EqualFold(has, text) ||
		(isNameAlone(has, l.name) && !isRetired(text)) || (isNameAlone(text, l.name) && !isRetired(has))
}

func isNameAlone(text, name string) bool { return text == "" || strings.EqualFold(text, name) }

func isRetired(description string) bool {
	return ianadb.Entry{Description: description}.Status() == ianadb.StatusRetired
}

// A lineKey is what entries on one line have in common.
type lineKey struct {
	first, last uint32
	noPort, own bool
	name        string
}

func keyOf(e *pb.ServiceEntry) lineKey {
	return lineKey{
		first: e.GetPorts().GetFirst(), last: e.GetPorts().GetLast(), noPort: e.GetPorts() == nil,
		own: isOwn(e), name: e.GetName(),
	}
}

func isOwn(e *pb.ServiceEntry) bool { return e.GetSource() == pb.EntrySource_ENTRY_SOURCE_HOST }

// describe is an entry's description on one line. The well-formed twin of an old name says so in many words, and the old
// name in a note; one of the two in few is enough.
func describe(e *pb.ServiceEntry) string {
	if of := e.GetAliasOf(); of != "" {
		return "alias of " + of
	}
	text, replaces, twin := strings.Cut(ianadb.Collapse(e.GetDescription()), "IANA assigned this well-formed service name")
	text = strings.TrimSpace(text)
	if _, old, ok := strings.Cut(replaces, `replacement for "`); twin && ok {
		old, _, _ = strings.Cut(old, `"`)
		text = strings.TrimSpace(strings.TrimSuffix(text, old) + " (replaces " + old + ")")
	}
	if e.GetPorts() == nil {
		return strings.TrimSpace(text + " (no port)")
	}
	return text
}

func contains(s, part string) bool {
	return strings.Contains(strings.ToLower(s), strings.ToLower(part))
}

// notes is what the registry's notes say beyond the description, in short. Those of DNS-SD's TXT keys are about no port.
func notes(l *pb.ServiceLookup, q question) (out []string) {
	add := func(e *pb.ServiceEntry, text string) {
		switch {
		case e.GetName() != "":
			text = e.GetName() + ": " + text
		case q.isRange():
			text = placeOf(e) + ": " + text
		}
		if text = shorten(text, 100); !slices.Contains(out, text) {
			out = append(out, text)
		}
	}
	for _, e := range l.GetEntries() {
		note := ianadb.Collapse(e.GetNotes())
		if note != "" && e.GetAliasOf() == "" && !strings.HasPrefix(note, "Defined TXT keys") {
			add(e, note)
		}
		if use := ianadb.Collapse(e.GetUnauthorizedUse()); use != "" {
			add(e, "unauthorized use: "+use)
		}
	}
	return out
}

func shorten(s string, most int) string {
	if utf8.RuneCountInString(s) <= most {
		return s
	}
	cut := string([]rune(s)[:most-1])
	if at := strings.LastIndexByte(cut, ' '); at > most/2 {
		cut = cut[:at]
	}
	return cut + "…"
}

// printBare prints the names of a port or the ports of a name, each once.
func (c *ctl) printBare(l *pb.ServiceLookup, q question) {
	seen := map[string]bool{}
	for _, line := range named(l.GetEntries()) {
		v := line.name
		switch {
		case q.isPorts():
		case line.ports == nil:
			continue
		default:
			v = portsText(line.ports)
		}
		if !seen[v] {
			seen[v] = true
			fmt.Fprintln(c.out, printable(v))
		}
	}
}
