package rpc

import (
	"fmt"
	"math"
	"net/netip"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/portd/portd/internal/registry"
	pb "github.com/portd/portd/proto/portd/v1"
)

// Proto to domain. Refused here is only what the domain's types cannot hold; what makes no sense otherwise the registry refuses.
// A field's path stands before what it is refused for.

func invalid(field, format string, args ...any) error {
	return &registry.InvalidError{Field: field, Reason: fmt.Sprintf(format, args...)}
}

// at is the path of an item of a repeated field.
func at(field string, i int) string { return fmt.Sprintf("%s[%d]", field, i) }

func toReserve(req *pb.ReserveRequest) (*registry.ReserveRequest, error) {
	spec, err := toSpec("spec", req.GetSpec())
	if err != nil {
		return nil, err
	}
	lease, err := toLeaseSpec("new_lease", req.GetNewLease())
	return &registry.ReserveRequest{
		Spec: spec, Name: req.GetName(), Labels: req.GetLabels(),
		Lease: req.GetLeaseId(), NewLease: lease, RequestID: req.GetRequestId(),
	}, err
}

func toSpec(field string, spec *pb.ReservationSpec) (s registry.Spec, err error) {
	if spec == nil {
		return s, invalid(field, "is missing: it says what to reserve")
	}
	if s.Mode, err = toMode(field+".mode", spec.GetMode()); err != nil {
		return s, err
	}
	opt := spec.GetBindOptions()
	s.Options = registry.BindOptions{
		Freebind: opt.GetFreebind(), Transparent: opt.GetTransparent(), MPTCP: opt.GetMptcp(), Group: toGroup(opt.GetGroup()),
		FileMode: uint16(min(opt.GetFileMode(), math.MaxUint16)),
	}
	for i, e := range spec.GetEndpoints() {
		ep, err := toEndpointSpec(fmt.Sprintf("%s.endpoints[%d]", field, i), e)
		if err != nil {
			return s, err
		}
		s.Endpoints = append(s.Endpoints, ep)
	}
	return s, nil
}

func toMode(field string, m pb.Mode) (registry.Mode, error) {
	switch m {
	case pb.Mode_MODE_UNSPECIFIED, pb.Mode_MODE_HELD:
		return registry.Held, nil
	case pb.Mode_MODE_RECORDED:
		return registry.Recorded, nil
	}
	return 0, invalid(field, "%d is unknown; known are MODE_HELD and MODE_RECORDED", m)
}

func toEndpointSpec(field string, e *pb.EndpointSpec) (registry.EndpointSpec, error) {
	s := registry.EndpointSpec{Netns: e.GetNetns(), V6Only: e.GetV6Only(), Device: e.GetDevice()}
	for i, p := range e.GetProtocols() {
		at := fmt.Sprintf("%s.protocols[%d]", field, i)
		proto, err := toProtocol(at, p)
		switch {
		case err != nil:
			return s, err
		case proto == 0:
			return s, invalid(at, "is unspecified; %s", protocolsAllowed)
		}
		s.Protos = append(s.Protos, proto)
	}
	for i, text := range e.GetAddresses() {
		addr, err := toAddr(fmt.Sprintf("%s.addresses[%d]", field, i), text)
		if err != nil {
			return s, err
		}
		s.Addrs = append(s.Addrs, addr)
	}
	return s, toChoice(field, e, &s)
}

func toChoice(field string, e *pb.EndpointSpec, s *registry.EndpointSpec) (err error) {
	switch e.GetChoice().(type) {
	case *pb.EndpointSpec_Exact:
		if s.Exact, err = toPortRange(field+".exact", e.GetExact()); err == nil && s.Exact.First == 0 {
			err = invalid(field+".exact.first", "0 is not a port; allowed are 1 to 65535, or any")
		}
	case *pb.EndpointSpec_Any:
		s.Any, err = toAnyPorts(field+".any", e.GetAny())
	case *pb.EndpointSpec_Service:
		if s.Service = e.GetService(); s.Service == "" {
			err = invalid(field+".service", "is empty")
		}
	case *pb.EndpointSpec_Path:
		if s.Path = e.GetPath(); s.Path == "" {
			err = invalid(field+".path", "is empty")
		}
	default:
		err = invalid(field, "says no port; one of exact, any and service is wanted, or a path")
	}
	return err
}

const protocolsAllowed = "allowed are PROTOCOL_TCP, _UDP, _SCTP, _DCCP, _UDPLITE and _UNIX"

var protocols = map[pb.Protocol]registry.Protocol{
	pb.Protocol_PROTOCOL_UNSPECIFIED: 0,
	pb.Protocol_PROTOCOL_TCP:         registry.TCP,
	pb.Protocol_PROTOCOL_UDP:         registry.UDP,
	pb.Protocol_PROTOCOL_SCTP:        registry.SCTP,
	pb.Protocol_PROTOCOL_DCCP:        registry.DCCP,
	pb.Protocol_PROTOCOL_UDPLITE:     registry.UDPLite,
	pb.Protocol_PROTOCOL_UNIX:        registry.Unix,
}

// toProtocol is 0 for the unspecified one.
func toProtocol(field string, p pb.Protocol) (registry.Protocol, error) {
	if proto, ok := protocols[p]; ok {
		return proto, nil
	}
	return 0, invalid(field, "%d is unknown; %s", p, protocolsAllowed)
}

// toAddr unmaps IPv4-mapped addresses, for the kernel treats both spellings alike.
func toAddr(field, text string) (netip.Addr, error) {
	addr, err := netip.ParseAddr(text)
	switch {
	case err != nil:
		return addr, invalid(field, "%q is not an IP address", text)
	case addr.Is4In6() && addr.Zone() != "":
		return addr, invalid(field, "%q: an IPv4 address has no zone", text)
	}
	return addr.Unmap(), nil
}

// toPortRange is the zero range where there is none; a last of 0 means the same as first.
func toPortRange(field string, r *pb.PortRange) (registry.PortRange, error) {
	first, last := r.GetFirst(), r.GetLast()
	if last == 0 {
		last = first
	}
	switch {
	case first > 65535:
		return registry.PortRange{}, invalid(field+".first", "%d is not a port; allowed are 1 to 65535", first)
	case last > 65535:
		return registry.PortRange{}, invalid(field+".last", "%d is not a port; allowed are 1 to 65535", last)
	case first == 0 && last != 0:
		return registry.PortRange{}, invalid(field+".first", "0 is not a port; allowed are 1 to 65535")
	case last < first:
		return registry.PortRange{}, invalid(field, "%d-%d runs backwards", first, last)
	}
	return registry.PortRange{First: uint16(first), Last: uint16(last)}, nil
}

// toLeaseSpec is nil where none is wanted.
func toLeaseSpec(field string, l *pb.LeaseSpec) (_ *registry.LeaseSpec, err error) {
	if l == nil {
		return nil, nil
	}
	s := &registry.LeaseSpec{}
	switch l.GetKind().(type) {
	case *pb.LeaseSpec_Ttl:
		s.Kind = registry.TTLLease
		s.TTL, err = toDuration(field+".ttl", l.GetTtl())
	case *pb.LeaseSpec_Process:
		s.Kind, s.PID = registry.ProcessLease, l.GetProcess().GetPid()
	case *pb.LeaseSpec_Session:
		s.Kind = registry.SessionLease
		s.Grace, err = toDuration(field+".session.grace", l.GetSession().GetGrace())
	default:
		err = invalid(field, "is empty; one of ttl, process and session is wanted")
	}
	return s, err
}

// toDuration is 0 where there is none.
func toDuration(field string, d *durationpb.Duration) (time.Duration, error) {
	if d == nil {
		return 0, nil
	}
	if d.CheckValid() != nil {
		return 0, invalid(field, "%d.%09d s is not a length of time", d.GetSeconds(), d.GetNanos())
	}
	if d.AsDuration() < 0 {
		return 0, invalid(field, "%v is not a length of time", d.AsDuration())
	}
	return d.AsDuration(), nil
}

func toFilter(field string, f *pb.ReservationFilter) (_ registry.Filter, err error) {
	out := registry.Filter{
		Owner: registry.Principal(f.GetOwner()), Labels: f.GetLabels(), Lease: f.GetLeaseId(), Netns: f.GetNetns(),
	}
	if out.Proto, err = toProtocol(field+".protocol", f.GetProtocol()); err != nil {
		return out, err
	}
	if out.Ports, err = toPortRange(field+".ports", f.GetPorts()); err != nil {
		return out, err
	}
	for i, s := range f.GetStates() {
		if s <= pb.EndpointState_ENDPOINT_STATE_UNSPECIFIED || s > pb.EndpointState_ENDPOINT_STATE_LOST {
			return out, invalid(fmt.Sprintf("%s.states[%d]", field, i), "%d is no state of an endpoint", s)
		}
		out.States = append(out.States, registry.EndpointState(s))
	}
	return out, nil
}

// toPage is for all lists: their requests have these two fields.
func toPage(req interface {
	GetPageSize() int32
	GetPageToken() string
},
) registry.Page {
	return registry.Page{Size: int(req.GetPageSize()), Token: req.GetPageToken()}
}

func toWatch(req *pb.WatchReservationsRequest) (w registry.WatchRequest, err error) {
	w.From, w.StoreID = registry.Revision(req.GetStartRevision()), req.GetStoreId()
	if w.Filter, err = toFilter("filter", req.GetFilter()); err != nil {
		return w, err
	}
	w.Progress, err = toDuration("progress_interval", req.GetProgressInterval())
	return w, err
}
