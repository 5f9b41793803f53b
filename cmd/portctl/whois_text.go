package main

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/portd/portd/internal/ianadb"
	pb "github.com/portd/portd/proto/portd/v1"
)

// An assignment is a line of whois: what the registry says of some ports for some protocols.
type assignment struct {
	ports, name string
	protos      []string
	texts       []string
}

// printLookup prints the registry's answer: a line per name, then one per status of the protocols that have none.
func (c *ctl) printLookup(l *pb.ServiceLookup, q question) error {
	t := c.table()
	lines := append(assigned(l), unnamed(l, q)...)
	for _, a := range lines {
		t.row(a.ports, a.name, strings.Join(a.protos, " "), strings.Join(a.texts, "; "))
	}
	if err := t.flush(); err != nil {
		return err
	}
	for _, n := range notes(l) {
		fmt.Fprintln(c.out, "note:", n)
	}
	if q.name != "" {
		fmt.Fprintf(c.out, "iana: registry of %s\n", l.GetRegistryDate())
	} else {
		fmt.Fprintf(c.out, "iana: %s port, registry of %s\n", word(l.GetPortClass()), l.GetRegistryDate())
	}
	return nil
}

// assigned is the named records, those that differ in the protocol alone in one line.
func assigned(l *pb.ServiceLookup) (lines []*assignment) {
	for _, e := range l.GetEntries() {
		if e.GetName() == "" {
			continue
		}
		ports := "-"
		if e.GetPorts() != nil {
			ports = portsText(e.GetPorts())
		}
		i := slices.IndexFunc(lines, func(a *assignment) bool { return a.name == e.GetName() && a.ports == ports })
		if i < 0 {
			i = len(lines)
			lines = append(lines, &assignment{ports: ports, name: e.GetName()})
		}
		a := lines[i]
		if p := protoWord(e.GetProtocol()); !slices.Contains(a.protos, p) {
			a.protos = append(a.protos, p)
		}
		text := describe(e)
		if text != "" && !slices.ContainsFunc(a.texts, func(s string) bool { return contains(s, text) }) {
			a.texts = append(a.texts, text)
		}
	}
	for _, a := range lines {
		if len(a.texts) > 1 { // "HTTPS" says nothing of https
			a.texts = slices.DeleteFunc(a.texts, func(s string) bool { return strings.EqualFold(s, a.name) })
		}
	}
	return lines
}

// describe is a record's description on one line. The well-formed twin of an old name says so in many words, and the old
// name in a note; one of the two in few is enough.
func describe(e *pb.ServiceEntry) string {
	if of := e.GetAliasOf(); of != "" {
		return "alias of " + of
	}
	text, _, _ := strings.Cut(ianadb.Collapse(e.GetDescription()), "IANA assigned this well-formed service name")
	text = strings.TrimSpace(text)
	if e.GetPorts() == nil {
		return strings.TrimSpace(text + " (no port)")
	}
	return text
}

func contains(s, part string) bool {
	return strings.Contains(strings.ToLower(s), strings.ToLower(part))
}

// unnamed is how the registry stands to a port for the protocols under which it has no name. For SCTP and DCCP it
// seldom says anything; they are left out then.
func unnamed(l *pb.ServiceLookup, q question) (lines []*assignment) {
	for _, a := range l.GetAssignments() {
		if hasName(l, a.GetProtocol()) {
			continue
		}
		rare := a.GetProtocol() == pb.Protocol_PROTOCOL_SCTP || a.GetProtocol() == pb.Protocol_PROTOCOL_DCCP
		if a.GetStatus() == pb.AssignmentStatus_ASSIGNMENT_STATUS_NONE && rare && q.proto == 0 {
			continue
		}
		text := statusText(l, a)
		i := slices.IndexFunc(lines, func(a *assignment) bool { return a.texts[0] == text })
		if i < 0 {
			i = len(lines)
			lines = append(lines, &assignment{ports: strconv.Itoa(int(a.GetPort())), name: "-", texts: []string{text}})
		}
		lines[i].protos = append(lines[i].protos, protoWord(a.GetProtocol()))
	}
	return lines
}

// hasName says whether a named record holds for p.
func hasName(l *pb.ServiceLookup, p pb.Protocol) bool {
	return slices.ContainsFunc(l.GetEntries(), func(e *pb.ServiceEntry) bool { return e.GetName() != "" && holdsFor(e, p) })
}

func holdsFor(e *pb.ServiceEntry, p pb.Protocol) bool {
	return e.GetProtocol() == p || e.GetProtocol() == pb.Protocol_PROTOCOL_UNSPECIFIED
}

// statusText is a status in words, and in the registry's own where those say more.
func statusText(l *pb.ServiceLookup, a *pb.PortAssignment) string {
	switch a.GetStatus() {
	case pb.AssignmentStatus_ASSIGNMENT_STATUS_NONE:
		return "no record"
	case pb.AssignmentStatus_ASSIGNMENT_STATUS_DYNAMIC:
		return "dynamic: never assigned to anybody"
	}
	status := word(a.GetStatus())
	if a.GetStatus() == pb.AssignmentStatus_ASSIGNMENT_STATUS_PRIVATE {
		status = "in use without a name"
	}
	// The narrowest record is the right one: ranges still cover ports that were assigned since.
	var own *pb.ServiceEntry
	for _, e := range l.GetEntries() {
		if e.GetName() == "" && holdsFor(e, a.GetProtocol()) && (own == nil || width(e) < width(own)) {
			own = e
		}
	}
	text := ianadb.Collapse(own.GetDescription())
	switch {
	case text == "":
		return status
	case strings.HasPrefix(strings.ToLower(text), status):
		return status + text[len(status):] // "Unassigned [was netstat]"
	}
	return status + ": " + text
}

func width(e *pb.ServiceEntry) uint32 { return e.GetPorts().GetLast() - e.GetPorts().GetFirst() }

// notes is what the registry's notes say beyond the description, in short. Those of DNS-SD's TXT keys are about no port.
func notes(l *pb.ServiceLookup) (out []string) {
	add := func(e *pb.ServiceEntry, text string) {
		if e.GetName() != "" {
			text = e.GetName() + ": " + text
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
func (c *ctl) printBare(l *pb.ServiceLookup, q question) error {
	var seen []string
	for _, a := range assigned(l) {
		v := a.name
		if q.name != "" {
			v = a.ports
		}
		if v != "-" && !slices.Contains(seen, v) {
			seen = append(seen, v)
			fmt.Fprintln(c.out, v)
		}
	}
	return nil
}

// printUses prints who has the ports of a question here.
func (c *ctl) printUses(answer *pb.WhoisResponse, q question) error {
	if q.name != "" && !slices.ContainsFunc(answer.GetLookup().GetEntries(), func(e *pb.ServiceEntry) bool { return e.GetPorts() != nil }) {
		return nil // a name without a port is nowhere
	}
	uses := summarize(answer.GetUses())
	if len(uses) == 0 {
		fmt.Fprintln(c.out, "here: nobody has it")
	}
	for _, u := range uses {
		fmt.Fprintln(c.out, "here:", u)
	}
	for _, h := range answer.GetHidden() {
		c.say("%s", h)
	}
	return nil
}

// summarize says a line per use: reservations first, then what listens and is bound; the connections of a program
// together, for a busy server has thousands.
func summarize(uses []*pb.PortUse) (lines []string) {
	var others []*pb.PortUse
	for _, u := range uses {
		if r := u.GetReservation(); r != nil {
			lines = append(lines, u.GetEndpoint().GetText()+" "+useText(r))
		} else if u.GetHolder() != nil {
			others = append(others, u)
		}
	}
	slices.SortStableFunc(others, func(a, b *pb.PortUse) int { return cmp.Compare(a.GetHolder().GetState(), b.GetHolder().GetState()) })
	connections, order := map[string]int{}, []string(nil)
	for _, u := range others {
		h := u.GetHolder()
		port := protoWord(h.GetEndpoint().GetProtocol()) + "/" + portsText(h.GetEndpoint().GetPorts())
		switch h.GetState() {
		case pb.SocketState_SOCKET_STATE_CONNECTED, pb.SocketState_SOCKET_STATE_LEFTOVER:
			what := port + " is the port of connections of " + holderName(h)
			if h.GetState() == pb.SocketState_SOCKET_STATE_LEFTOVER {
				what = port + " is the port of connections that are closed, and that the kernel still remembers"
			}
			if connections[what]++; connections[what] == 1 {
				order = append(order, what)
			}
		default:
			lines = append(lines, fmt.Sprintf("%s %s: %s on %s", port, word(h.GetState()), holderName(h), holderAddr(h)))
		}
	}
	for _, what := range order {
		lines = append(lines, fmt.Sprintf("%s (%d)", what, connections[what]))
	}
	return lines
}
