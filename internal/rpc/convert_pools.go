package rpc

import (
	"github.com/portd/portd/internal/registry"
	pb "github.com/portd/portd/proto/portd/v1"
)

func toAnyPorts(field string, a *pb.AnyPorts) (_ *registry.AnyPorts, err error) {
	out := &registry.AnyPorts{Count: int(min(a.GetCount(), 65536)), Pool: a.GetPool()} // more is as much too many
	if out.Within, err = toPortRange(field+".within", a.GetWithin()); err != nil {
		return nil, err
	}
	switch p := a.GetPrefer().(type) {
	case *pb.AnyPorts_PreferService:
		if out.PreferService = p.PreferService; out.PreferService == "" {
			err = invalid(field+".prefer_service", "is empty")
		}
	case *pb.AnyPorts_PreferPort:
		if p.PreferPort == 0 || p.PreferPort > 65535 {
			err = invalid(field+".prefer_port", "%d is not a port; allowed are 1 to 65535", p.PreferPort)
		}
		out.PreferPort = uint16(p.PreferPort)
	}
	return out, err
}

func fromAnyPorts(a *registry.AnyPorts) *pb.AnyPorts {
	out := &pb.AnyPorts{Count: uint32(a.Count), Pool: a.Pool}
	if a.Within != (registry.PortRange{}) {
		out.Within = fromPortRange(a.Within)
	}
	switch {
	case a.PreferService != "":
		out.Prefer = &pb.AnyPorts_PreferService{PreferService: a.PreferService}
	case a.PreferPort != 0:
		out.Prefer = &pb.AnyPorts_PreferPort{PreferPort: uint32(a.PreferPort)}
	}
	return out
}

func fromPassedOver(passed []registry.PassedOver) (out []*pb.PassedOver) {
	for _, p := range passed {
		out = append(out, &pb.PassedOver{Ports: fromPortRange(p.Ports), Preference: pb.Preference(p.Preference), Reason: p.Reason})
	}
	return out
}
