package main

import (
	"fmt"

	"github.com/portd/portd/client"
	"github.com/portd/portd/internal/ianadb"
	pb "github.com/portd/portd/proto/portd/v1"
)

// embeddedWhois is the registry's part of an answer from the copy inside portctl, as portd would give it.
func embeddedWhois(q question) (*pb.WhoisResponse, error) {
	db, proto := ianadb.Embedded(), protocols[q.proto]
	out := &pb.ServiceLookup{RegistryDate: db.Source().Date}
	if q.name != "" {
		for r := range db.ByName(q.name, proto) {
			out.Entries = append(out.Entries, entryOf(r.Entry()))
		}
		if len(out.Entries) == 0 {
			return nil, noService(q)
		}
	} else {
		out.PortClass = pb.PortClass(ianadb.ClassOf(q.port)) + pb.PortClass_PORT_CLASS_SYSTEM
		for r := range db.ByPort(q.port, proto) {
			out.Entries = append(out.Entries, entryOf(r.Entry()))
		}
		protos := []pb.Protocol{pb.Protocol_PROTOCOL_TCP, pb.Protocol_PROTOCOL_UDP, pb.Protocol_PROTOCOL_SCTP, pb.Protocol_PROTOCOL_DCCP}
		if q.proto != 0 {
			protos = []pb.Protocol{q.proto}
		}
		for _, p := range protos {
			out.Assignments = append(out.Assignments, &pb.PortAssignment{
				Port: uint32(q.port), Protocol: p, Status: statuses[db.Status(q.port, protocols[p])],
			})
		}
	}
	return &pb.WhoisResponse{Lookup: out, Hidden: []string{"no portd was asked: who has the port here is not known"}}, nil
}

// A noService is a name that the registry does not have.
type noService question

func (e noService) Error() string {
	if e.proto != pb.Protocol_PROTOCOL_UNSPECIFIED {
		return fmt.Sprintf("the IANA registry has no service %q for %s", e.name, protoWord(e.proto))
	}
	return fmt.Sprintf("the IANA registry has no service %q", e.name)
}

func (e noService) Is(target error) bool { return target == client.ErrNotFound }

// protocols are IANA's. UDP-Lite has the ports that UDP has (RFC 3828 section 3.1).
var protocols = map[pb.Protocol]ianadb.Protocol{
	pb.Protocol_PROTOCOL_TCP:     ianadb.TCP,
	pb.Protocol_PROTOCOL_UDP:     ianadb.UDP,
	pb.Protocol_PROTOCOL_SCTP:    ianadb.SCTP,
	pb.Protocol_PROTOCOL_DCCP:    ianadb.DCCP,
	pb.Protocol_PROTOCOL_UDPLITE: ianadb.UDP,
}

var statuses = [...]pb.AssignmentStatus{
	ianadb.StatusNone:       pb.AssignmentStatus_ASSIGNMENT_STATUS_NONE,
	ianadb.StatusAssigned:   pb.AssignmentStatus_ASSIGNMENT_STATUS_ASSIGNED,
	ianadb.StatusUnassigned: pb.AssignmentStatus_ASSIGNMENT_STATUS_UNASSIGNED,
	ianadb.StatusReserved:   pb.AssignmentStatus_ASSIGNMENT_STATUS_RESERVED,
	ianadb.StatusPrivate:    pb.AssignmentStatus_ASSIGNMENT_STATUS_PRIVATE,
	ianadb.StatusRetired:    pb.AssignmentStatus_ASSIGNMENT_STATUS_RETIRED,
	ianadb.StatusOther:      pb.AssignmentStatus_ASSIGNMENT_STATUS_OTHER,
	ianadb.StatusDynamic:    pb.AssignmentStatus_ASSIGNMENT_STATUS_DYNAMIC,
}

func entryOf(e ianadb.Entry) *pb.ServiceEntry {
	out := &pb.ServiceEntry{
		Name: e.Name, Description: e.Description, Assignee: e.Assignee, Contact: e.Contact,
		RegistrationDate: e.RegistrationDate, ModificationDate: e.ModificationDate, Reference: e.Reference,
		ServiceCode: e.ServiceCode, UnauthorizedUse: e.UnauthorizedUse, Notes: e.Notes, AliasOf: e.AliasOf(),
		Source: pb.EntrySource_ENTRY_SOURCE_IANA,
	}
	if e.Protocol != ianadb.AnyProtocol {
		out.Protocol, _ = parseProtocol(e.Protocol.String())
	}
	if e.HasPort() {
		out.Ports = &pb.PortRange{First: uint32(e.First), Last: uint32(e.Last)}
	}
	return out
}
