package services

import (
	"github.com/portd/portd/internal/ianadb"
	pb "github.com/portd/portd/proto/portd/v1"
)

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

var classes = [...]pb.PortClass{
	ianadb.System:  pb.PortClass_PORT_CLASS_SYSTEM,
	ianadb.User:    pb.PortClass_PORT_CLASS_USER,
	ianadb.Dynamic: pb.PortClass_PORT_CLASS_DYNAMIC,
}

// fromProtocols is indexed by IANA's protocols, toProtocols by the API's.
var (
	fromProtocols = [...]pb.Protocol{
		ianadb.AnyProtocol: pb.Protocol_PROTOCOL_UNSPECIFIED,
		ianadb.TCP:         pb.Protocol_PROTOCOL_TCP,
		ianadb.UDP:         pb.Protocol_PROTOCOL_UDP,
		ianadb.SCTP:        pb.Protocol_PROTOCOL_SCTP,
		ianadb.DCCP:        pb.Protocol_PROTOCOL_DCCP,
	}
	toProtocols = [...]ianadb.Protocol{
		pb.Protocol_PROTOCOL_UNSPECIFIED: ianadb.AnyProtocol,
		pb.Protocol_PROTOCOL_TCP:         ianadb.TCP,
		pb.Protocol_PROTOCOL_UDP:         ianadb.UDP,
		pb.Protocol_PROTOCOL_SCTP:        ianadb.SCTP,
		pb.Protocol_PROTOCOL_DCCP:        ianadb.DCCP,
		pb.Protocol_PROTOCOL_UDPLITE:     ianadb.UDP,
	}
)

// FromProtocol is IANA's protocol as the API has it.
func FromProtocol(p ianadb.Protocol) pb.Protocol { return fromProtocols[p] }

// ToProtocol is the protocol by which IANA's registry knows p: UDP-Lite has the ports that UDP has (RFC 3828, section 3.1).
// A refusal names field.
func ToProtocol(field string, p pb.Protocol) (ianadb.Protocol, error) {
	if p < 0 || int(p) >= len(toProtocols) {
		return 0, invalid(field, "%d is unknown; allowed are PROTOCOL_TCP, _UDP, _SCTP, _DCCP and _UDPLITE", p)
	}
	return toProtocols[p], nil
}
