package services

import (
	"fmt"
	"iter"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/portd/portd/internal/ianadb"
	"github.com/portd/portd/internal/registry"
	pb "github.com/portd/portd/proto/portd/v1"
)

// maxAnswer is how large the entries of an answer may be, in bytes: gRPC clients take 4 MiB unless told otherwise. The
// ports of 2026 as a whole are 1.3 MB.
const maxAnswer = 3<<20 + 512<<10

// Lookup answers by port, by ports, by name or by service code. Ports always have an answer; a name or a service code that
// the registry does not have is a registry.ErrNotFound, for a name a *NoServiceError.
func Lookup(s *registry.Services, req *pb.LookupServicesRequest) (*pb.ServiceLookup, error) {
	p, err := ToProtocol("protocol", req.GetProtocol())
	if err != nil {
		return nil, err
	}
	out := &pb.ServiceLookup{RegistryDate: s.Current.Date, RegistrySource: s.Current.Origin.String()}
	switch q := req.GetQuery().(type) {
	case *pb.LookupServicesRequest_Port:
		if q.Port > 65535 {
			return nil, invalid("port", "%d is not a port; allowed are 0 to 65535", q.Port)
		}
		err = byPort(s, uint16(q.Port), p, req.GetProtocol(), out)
	case *pb.LookupServicesRequest_Ports:
		var ports ianadb.Range
		if ports, err = ToRange("ports", q.Ports); err == nil {
			err = byPorts(s, ports, p, req.GetProtocol(), out)
		}
	case *pb.LookupServicesRequest_Name:
		err = byName(s, q.Name, p, req.GetProtocol(), out)
	case *pb.LookupServicesRequest_ServiceCode:
		err = byServiceCode(s, q.ServiceCode, req.GetProtocol(), out)
	default:
		err = invalid("query", "is missing; one of port, ports, name and service_code is wanted")
	}
	if err != nil {
		return nil, err
	}
	return out, nil
}

var allProtocols = []pb.Protocol{
	pb.Protocol_PROTOCOL_TCP, pb.Protocol_PROTOCOL_UDP, pb.Protocol_PROTOCOL_SCTP, pb.Protocol_PROTOCOL_DCCP,
}

// assigned are the protocols that an answer has assignments for: it says UDPLITE to who asks for that.
func assigned(asked pb.Protocol) []pb.Protocol {
	if asked == pb.Protocol_PROTOCOL_UNSPECIFIED {
		return allProtocols
	}
	return []pb.Protocol{asked}
}

// entries are what was found, in the API's words, unless that is more than an answer may be: the host's own entries and those of an
// edition that was imported by force can all be on one port. A refusal names field.
func entries(s *registry.Services, field string, found iter.Seq[ianadb.Record]) (all []*pb.ServiceEntry, err error) {
	size := 0
	for r := range found {
		e := Entry(s, r)
		if size += proto.Size(e); size > maxAnswer {
			return nil, invalid(field, "the answer has more than %d bytes: ask for less, or list the services page by page", maxAnswer)
		}
		all = append(all, e)
	}
	return all, nil
}

func byPort(s *registry.Services, port uint16, p ianadb.Protocol, asked pb.Protocol, out *pb.ServiceLookup) (err error) {
	out.PortClass = classes[ianadb.ClassOf(port)]
	if out.Entries, err = entries(s, "port", s.ByPort(port, p)); err != nil {
		return err
	}
	for _, as := range assigned(asked) {
		out.Assignments = append(out.Assignments, &pb.PortAssignment{
			Port: uint32(port), Protocol: as, Status: statuses[s.Status(port, toProtocols[as])],
			Ports: &pb.PortRange{First: uint32(port), Last: uint32(port)},
		})
	}
	return nil
}

func byPorts(s *registry.Services, ports ianadb.Range, p ianadb.Protocol, asked pb.Protocol, out *pb.ServiceLookup) (err error) {
	out.PortClass = classes[ianadb.ClassOf(ports.First)]
	if out.Entries, err = entries(s, "ports", s.ByPorts(ports, p)); err != nil {
		return err
	}
	for _, as := range assigned(asked) {
		out.Assignments = append(out.Assignments, runs(s, ports, as)...)
	}
	return nil
}

// runs are the longest runs of ports that are alike.
func runs(s *registry.Services, ports ianadb.Range, as pb.Protocol) (all []*pb.PortAssignment) {
	var last *pb.PortAssignment
	for port := uint32(ports.First); port <= uint32(ports.Last); port++ {
		status := statuses[s.Status(uint16(port), toProtocols[as])]
		if last == nil || last.GetStatus() != status {
			last = &pb.PortAssignment{Port: port, Protocol: as, Status: status, Ports: &pb.PortRange{First: port}}
			all = append(all, last)
		}
		last.Ports.Last = port
	}
	return all
}

func byName(s *registry.Services, name string, p ianadb.Protocol, asked pb.Protocol, out *pb.ServiceLookup) (err error) {
	if name == "" {
		return invalid("name", "is empty")
	}
	if out.Entries, err = entries(s, "name", s.ByName(name, p)); err != nil || len(out.Entries) > 0 {
		return err
	}
	e := &NoServiceError{Name: name, Protocol: asked, Own: len(s.Own) > 0}
	for r := range s.ByName(name, ianadb.AnyProtocol) {
		if other := r.Protocol().String(); !slices.Contains(e.Others, other) {
			e.Others = append(e.Others, other)
		}
	}
	if len(e.Others) == 0 {
		e.Near = s.Near(name)
	}
	return e
}

// A NoServiceError is a name that the registry does not have. It is a registry.ErrNotFound.
type NoServiceError struct {
	Name     string
	Protocol pb.Protocol // that was asked for; unspecified: all
	Others   []string    // the protocols that it has the name for instead: "tcp"
	Near     []string    // names like it that it has, the likeliest first
	Own      bool        // the host has entries of its own, which were looked at too
}

// Is matches registry.ErrNotFound.
func (e *NoServiceError) Is(target error) bool { return target == registry.ErrNotFound }

func (e *NoServiceError) Error() string {
	text := fmt.Sprintf("the IANA registry has no service %.80q", e.Name)
	if e.Own {
		text = fmt.Sprintf("neither the IANA registry nor this host has a service %.80q", e.Name)
	}
	if e.Protocol != pb.Protocol_PROTOCOL_UNSPECIFIED {
		text += " for " + strings.ToLower(strings.TrimPrefix(e.Protocol.String(), "PROTOCOL_"))
	}
	switch {
	case len(e.Others) > 0:
		text += "; there is one for " + strings.Join(e.Others, ", ")
	case len(e.Near) > 0:
		text += "; near: " + strings.Join(e.Near, ", ")
	}
	return text
}

func byServiceCode(s *registry.Services, code uint32, asked pb.Protocol, out *pb.ServiceLookup) (err error) {
	switch asked {
	case pb.Protocol_PROTOCOL_UNSPECIFIED, pb.Protocol_PROTOCOL_DCCP:
	default:
		return invalid("protocol", "only DCCP has service codes (RFC 4340, section 8.1.2): leave it out")
	}
	out.Entries, err = entries(s, "service_code", s.ByServiceCode(code))
	if err == nil && len(out.Entries) == 0 {
		return notFound("the IANA registry has no service with the DCCP service code %s", CodeText(code))
	}
	return err
}

// CodeText is a service code as ianadb.ParseServiceCode reads it: "SC:DISC", or "SC=1" where it has no such characters.
func CodeText(code uint32) string {
	text := "SC:" + strings.TrimRight(string([]byte{byte(code >> 24), byte(code >> 16), byte(code >> 8), byte(code)}), " ")
	if back, err := ianadb.ParseServiceCode(text); err == nil && back == code {
		return text
	}
	return fmt.Sprintf("SC=%d", code)
}
