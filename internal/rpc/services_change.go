package rpc

import (
	"context"
	"strings"

	"google.golang.org/protobuf/types/known/fieldmaskpb"

	"github.com/portd/portd/internal/ianadb"
	"github.com/portd/portd/internal/registry"
	"github.com/portd/portd/internal/services"
	pb "github.com/portd/portd/proto/portd/v1"
)

func (s *serviceRegistry) AddServices(ctx context.Context, req *pb.AddServicesRequest) (*pb.AddServicesResponse, error) {
	var entries []ianadb.Entry
	for i, e := range req.GetServices() {
		entry, err := services.ToEntry(at("services", i), e)
		if err != nil {
			return nil, err
		}
		entries = append(entries, entry)
	}
	added, overridden, err := s.reg.AddServices(ctx, callerOf(ctx), entries, req.GetOverride())
	if err != nil {
		return nil, err
	}
	return &pb.AddServicesResponse{Services: fromOwn(added), Overridden: overridden}, nil
}

func (s *serviceRegistry) EditServices(ctx context.Context, req *pb.EditServicesRequest) (*pb.EditServicesResponse, error) {
	sel, err := toSelector(req)
	if err != nil {
		return nil, err
	}
	to, err := services.ToEntry("service", req.GetService())
	if err != nil {
		return nil, err
	}
	edit, err := toEdit(to, req.GetUpdateMask())
	if err != nil {
		return nil, err
	}
	after, overridden, err := s.reg.EditServices(ctx, callerOf(ctx), sel, edit, req.GetOverride())
	if err != nil {
		return nil, err
	}
	return &pb.EditServicesResponse{Services: fromOwn(after), Overridden: overridden}, nil
}

func (s *serviceRegistry) RemoveServices(ctx context.Context, req *pb.RemoveServicesRequest) (*pb.RemoveServicesResponse, error) {
	sel, err := toSelector(req)
	if err != nil {
		return nil, err
	}
	removed, err := s.reg.RemoveServices(ctx, callerOf(ctx), sel)
	if err != nil {
		return nil, err
	}
	return &pb.RemoveServicesResponse{Services: fromOwn(removed)}, nil
}

func fromOwn(all []*registry.OwnService) (out []*pb.ServiceEntry) {
	for _, s := range all {
		out = append(out, services.Own(s))
	}
	return out
}

// toSelector refuses ports that are none, for they would select all of the name, and names that are none, for errors repeat them.
func toSelector(req interface {
	GetName() string
	GetProtocol() pb.Protocol
	GetPorts() *pb.PortRange
},
) (sel registry.ServiceSelector, err error) {
	switch sel.Name = req.GetName(); {
	case sel.Name == "":
		return sel, invalid("name", "is empty; it says which of the host's own entries are meant")
	case ianadb.CheckName(sel.Name) != nil: // which no entry of the host's own has
		return sel, invalid("name", "%v", ianadb.CheckName(sel.Name))
	}
	if sel.Protocol, err = services.ToProtocol("protocol", req.GetProtocol()); err != nil || req.GetPorts() == nil {
		return sel, err
	}
	if sel.Ports, err = services.ToRange("ports", req.GetPorts()); err == nil && sel.Ports.First == 0 {
		err = invalid("ports.first", "0 is not a port of an entry of the host's own; leave ports out to mean all")
	}
	return sel, err
}

// editable are the fields that an edit may take from another entry.
var editable = []struct {
	path string
	set  func(e *ianadb.Entry, to ianadb.Entry)
}{
	{"name", func(e *ianadb.Entry, to ianadb.Entry) { e.Name = to.Name }},
	{"ports", func(e *ianadb.Entry, to ianadb.Entry) { e.First, e.Last, e.Port = to.First, to.Last, to.Port }},
	{"description", func(e *ianadb.Entry, to ianadb.Entry) { e.Description = to.Description }},
	{"assignee", func(e *ianadb.Entry, to ianadb.Entry) { e.Assignee = to.Assignee }},
	{"contact", func(e *ianadb.Entry, to ianadb.Entry) { e.Contact = to.Contact }},
	{"reference", func(e *ianadb.Entry, to ianadb.Entry) { e.Reference = to.Reference }},
	{"notes", func(e *ianadb.Entry, to ianadb.Entry) { e.Notes = to.Notes }},
}

// toEdit takes the fields of mask from to.
func toEdit(to ianadb.Entry, mask *fieldmaskpb.FieldMask) (func(*ianadb.Entry), error) {
	var sets []func(*ianadb.Entry, ianadb.Entry)
	var known []string
	for _, f := range editable {
		known = append(known, f.path)
	}
	for i, path := range mask.GetPaths() {
		n := len(sets)
		for _, f := range editable {
			if f.path == path {
				sets = append(sets, f.set)
			}
		}
		if len(sets) == n {
			return nil, invalid(at("update_mask.paths", i), "%.40q cannot be edited; allowed are %s", path, strings.Join(known, ", "))
		}
	}
	if len(sets) == 0 {
		return nil, invalid("update_mask", "is empty; at least one is wanted of %s", strings.Join(known, ", "))
	}
	return func(e *ianadb.Entry) {
		for _, set := range sets {
			set(e, to)
		}
	}, nil
}
