package main

import (
	"slices"
	"strings"

	"github.com/portd/portd/internal/ianadb"
	pb "github.com/portd/portd/proto/portd/v1"
)

// unnamed is how the registry stands to ports for the protocols under which they have no name. For SCTP and DCCP it
// seldom says anything; they are left out then.
func unnamed(l *pb.ServiceLookup, q question) (lines []*line) {
	type key struct {
		first, last uint32
		text        string
	}
	at, holders := map[key]*line{}, holdersOf(l)
	for _, a := range l.GetAssignments() {
		rare := a.GetProtocol() == pb.Protocol_PROTOCOL_SCTP || a.GetProtocol() == pb.Protocol_PROTOCOL_DCCP
		switch {
		case a.GetStatus() == pb.AssignmentStatus_ASSIGNMENT_STATUS_ASSIGNED:
			continue
		case a.GetStatus() == pb.AssignmentStatus_ASSIGNMENT_STATUS_NONE && rare && q.proto == 0:
			continue
		}
		about := slices.DeleteFunc(slices.Clone(holders[a.GetPorts().GetFirst()]), func(e *pb.ServiceEntry) bool { return !covers(e, a) })
		if slices.ContainsFunc(about, func(e *pb.ServiceEntry) bool { return e.GetName() != "" }) {
			continue // it has a line, whatever has become of it
		}
		k := key{a.GetPorts().GetFirst(), a.GetPorts().GetLast(), statusText(about, a)}
		if at[k] == nil {
			at[k] = &line{ports: a.GetPorts(), texts: []string{k.text}}
			lines = append(lines, at[k])
		}
		at[k].protos = append(at[k].protos, protoWord(a.GetProtocol()))
	}
	return lines
}

// holdersOf is the entries by the ports at which an assignment begins: all ports together have many of both.
func holdersOf(l *pb.ServiceLookup) map[uint32][]*pb.ServiceEntry {
	holders := map[uint32][]*pb.ServiceEntry{}
	var begin []uint32
	for _, a := range l.GetAssignments() {
		begin = append(begin, a.GetPorts().GetFirst())
	}
	slices.Sort(begin)
	begin = slices.Compact(begin)
	for _, e := range l.GetEntries() {
		i, _ := slices.BinarySearch(begin, e.GetPorts().GetFirst())
		for ; i < len(begin) && begin[i] <= e.GetPorts().GetLast(); i++ {
			holders[begin[i]] = append(holders[begin[i]], e)
		}
	}
	return holders
}

// covers says whether an entry is about all ports and the protocol of a.
func covers(e *pb.ServiceEntry, a *pb.PortAssignment) bool {
	ports := e.GetPorts()
	// UDP-Lite has the ports of UDP (RFC 3828 section 3.1), and the entries are UDP's.
	proto := e.GetProtocol() == a.GetProtocol() || e.GetProtocol() == pb.Protocol_PROTOCOL_UNSPECIFIED ||
		e.GetProtocol() == pb.Protocol_PROTOCOL_UDP && a.GetProtocol() == pb.Protocol_PROTOCOL_UDPLITE
	return proto && ports != nil && ports.GetFirst() <= a.GetPorts().GetFirst() && a.GetPorts().GetLast() <= ports.GetLast()
}

// statusText is a status in words, and in those of the entries about it where they say more.
func statusText(about []*pb.ServiceEntry, a *pb.PortAssignment) string {
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
	// The narrowest entry is the right one: ranges still cover ports that were assigned since.
	var own *pb.ServiceEntry
	for _, e := range about {
		if own == nil || width(e) < width(own) {
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

// classText is the classes of the ports of a question (RFC 6335 section 6).
func classText(q question) string {
	first, last := ianadb.ClassOf(q.first), ianadb.ClassOf(q.last)
	switch {
	case !q.isRange():
		return first.String() + " port"
	case first == last:
		return first.String() + " ports"
	}
	var all []string
	for class := first; class <= last; class++ {
		all = append(all, class.String())
	}
	return strings.Join(all, ", ") + " ports"
}
