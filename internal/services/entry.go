package services

import (
	"slices"
	"strconv"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/portd/portd/internal/ianadb"
	"github.com/portd/portd/internal/registry"
	pb "github.com/portd/portd/proto/portd/v1"
)

// Entry is a record of s as the API has it; of one of the host's own it also says who made it and when.
func Entry(s *registry.Services, r ianadb.Record) *pb.ServiceEntry {
	e := r.Entry()
	if !s.IsOwn(r) {
		return fromEntry(e, pb.EntrySource_ENTRY_SOURCE_IANA)
	}
	i := slices.IndexFunc(s.Own, func(o *registry.OwnService) bool {
		return o.Entry.Name == e.Name && o.Entry.Protocol == e.Protocol && o.Entry.Port == e.Port
	})
	if i < 0 {
		return fromEntry(e, pb.EntrySource_ENTRY_SOURCE_HOST)
	}
	return Own(s.Own[i])
}

// Own is an entry of the host's own as the API has it.
func Own(o *registry.OwnService) *pb.ServiceEntry {
	out := fromEntry(o.Entry, pb.EntrySource_ENTRY_SOURCE_HOST)
	out.ChangedBy = string(o.By)
	if !o.Time.IsZero() {
		out.ChangeTime = timestamppb.New(o.Time)
	}
	return out
}

func fromEntry(e ianadb.Entry, source pb.EntrySource) *pb.ServiceEntry {
	out := &pb.ServiceEntry{
		Name: e.Name, Protocol: FromProtocol(e.Protocol), Description: e.Description, Assignee: e.Assignee, Contact: e.Contact,
		RegistrationDate: e.RegistrationDate, ModificationDate: e.ModificationDate, Reference: e.Reference,
		ServiceCode: e.ServiceCode, UnauthorizedUse: e.UnauthorizedUse, Notes: e.Notes, AliasOf: e.AliasOf(),
		Source: source, PortNumber: e.Port,
	}
	if e.HasPort() {
		out.Ports = &pb.PortRange{First: uint32(e.First), Last: uint32(e.Last)}
	}
	return out
}

// ToEntry is an entry as a request has it. Refused is only what an ianadb.Entry cannot hold; field is the path of e in the
// request, for the sentence.
func ToEntry(field string, e *pb.ServiceEntry) (ianadb.Entry, error) {
	proto, err := ToProtocol(field+".protocol", e.GetProtocol())
	switch {
	case err != nil:
		return ianadb.Entry{}, err
	case e.GetProtocol() == pb.Protocol_PROTOCOL_UDPLITE:
		return ianadb.Entry{}, invalid(field+".protocol", "UDP-Lite has the ports of UDP (RFC 3828): say PROTOCOL_UDP")
	}
	out := ianadb.Entry{
		Name: e.GetName(), Protocol: proto, Description: e.GetDescription(), Assignee: e.GetAssignee(), Contact: e.GetContact(),
		RegistrationDate: e.GetRegistrationDate(), ModificationDate: e.GetModificationDate(), Reference: e.GetReference(),
		ServiceCode: e.GetServiceCode(), UnauthorizedUse: e.GetUnauthorizedUse(), Notes: e.GetNotes(),
	}
	if alias := e.GetAliasOf(); alias != "" && alias != out.AliasOf() {
		return ianadb.Entry{}, invalid(field+".alias_of", "follows from the notes: write there: This entry is an alias to %.80q.", alias)
	}
	if e.GetPorts() == nil {
		return out, nil
	}
	ports, err := ToRange(field+".ports", e.GetPorts())
	if err != nil {
		return ianadb.Entry{}, err
	}
	out.First, out.Last, out.Port = ports.First, ports.Last, portNumber(ports)
	return out, nil
}

// portNumber is a range as the registry's "Port Number" cell has it: "443", "6000-6063".
func portNumber(r ianadb.Range) string {
	s := strconv.Itoa(int(r.First))
	if r.Last != r.First {
		s += "-" + strconv.Itoa(int(r.Last))
	}
	return s
}

// ToRange is a range of ports from 0 to 65535; a last of 0 means the same as first. A refusal names field.
func ToRange(field string, r *pb.PortRange) (ianadb.Range, error) {
	first, last := r.GetFirst(), r.GetLast()
	if last == 0 {
		last = first
	}
	switch {
	case first > 65535:
		return ianadb.Range{}, invalid(field+".first", "%d is not a port; allowed are 0 to 65535", first)
	case last > 65535:
		return ianadb.Range{}, invalid(field+".last", "%d is not a port; allowed are 0 to 65535", last)
	case last < first:
		return ianadb.Range{}, invalid(field, "%d-%d runs backwards", first, last)
	}
	return ianadb.Range{First: uint16(first), Last: uint16(last)}, nil
}
