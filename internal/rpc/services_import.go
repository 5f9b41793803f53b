package rpc

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/portd/portd/internal/ianadb"
	"github.com/portd/portd/internal/registry"
	"github.com/portd/portd/internal/services"
	pb "github.com/portd/portd/proto/portd/v1"
)

func (s *serviceRegistry) ImportServices(from pb.ServiceRegistryService_ImportServicesServer) error {
	file := &upload{from: from}
	opt, err := file.begin()
	if err != nil {
		return err
	}
	ctx := from.Context()
	done, err := s.reg.ImportServices(ctx, callerOf(ctx), file, registry.ImportOptions{
		DryRun: opt.GetDryRun(), Force: opt.GetForce(), Date: opt.GetDate(),
		From: opt.GetFrom(), LastModified: opt.GetLastModified(), ETag: opt.GetEtag(),
	})
	if err != nil {
		return err
	}
	return from.SendAndClose(&pb.ImportServicesResponse{Import: fromImport(done)})
}

func (s *serviceRegistry) UndoImport(ctx context.Context, req *pb.UndoImportRequest) (*pb.UndoImportResponse, error) {
	done, err := s.reg.UndoImport(ctx, callerOf(ctx), registry.UndoOptions{DryRun: req.GetDryRun(), Embedded: req.GetEmbedded()})
	if err != nil {
		return nil, err
	}
	return &pb.UndoImportResponse{Import: fromImport(done)}, nil
}

// An upload is the file that a stream of requests brings, read as they come: nothing of it is kept here.
type upload struct {
	from  pb.ServiceRegistryService_ImportServicesServer
	chunk []byte // not read yet
	size  int    // of all chunks so far
}

const maxChunk = 1 << 20

// begin takes the options, which may come first; the first data stay to be read.
func (u *upload) begin() (*pb.ImportOptions, error) {
	req, err := u.from.Recv()
	switch {
	case errors.Is(err, io.EOF):
		return nil, invalid("data", "is missing; a registry as CSV or XML is wanted")
	case err != nil:
		return nil, err
	}
	if opt, ok := req.GetPart().(*pb.ImportServicesRequest_Options); ok {
		return opt.Options, nil
	}
	return nil, u.take(req)
}

// Read reads on in the file. A stream that breaks off is an error here, and no end.
func (u *upload) Read(p []byte) (int, error) {
	for len(u.chunk) == 0 {
		req, err := u.from.Recv()
		if err != nil {
			return 0, err // io.EOF where the caller has said that this is all
		}
		if err := u.take(req); err != nil {
			return 0, err
		}
	}
	n := copy(p, u.chunk)
	u.chunk = u.chunk[n:]
	return n, nil
}

func (u *upload) take(req *pb.ImportServicesRequest) error {
	if _, ok := req.GetPart().(*pb.ImportServicesRequest_Options); ok {
		return invalid("options", "come once, before all data")
	}
	u.chunk = req.GetData()
	u.size += len(u.chunk)
	switch {
	case len(u.chunk) > maxChunk:
		return tooLarge("has %d bytes; at most %d come at a time", len(u.chunk), maxChunk)
	case u.size > ianadb.MaxFile:
		return tooLarge("has more than %d bytes in all, which is no registry", ianadb.MaxFile)
	}
	return nil
}

func tooLarge(format string, args ...any) error {
	return &registry.InvalidError{Field: "data", Reason: fmt.Sprintf(format, args...), Code: "TOO_LARGE"}
}

func fromImport(i *registry.ServiceImport) *pb.ServiceImport {
	out := &pb.ServiceImport{
		Before: services.Status(i.Before), After: services.Status(i.After), DryRun: i.DryRun, Unchanged: i.Unchanged, Overridden: i.Overridden,
	}
	counts := [...]*uint32{ianadb.Added: &out.Added, ianadb.Removed: &out.Removed, ianadb.Renamed: &out.Renamed, ianadb.Changed: &out.Changed}
	for _, c := range i.Changes {
		*counts[c.Kind]++
		out.Changes = append(out.Changes, fromServiceChange(c))
	}
	return out
}

var changeKinds = [...]pb.ServiceChangeKind{
	ianadb.Added:   pb.ServiceChangeKind_SERVICE_CHANGE_KIND_ADDED,
	ianadb.Removed: pb.ServiceChangeKind_SERVICE_CHANGE_KIND_REMOVED,
	ianadb.Renamed: pb.ServiceChangeKind_SERVICE_CHANGE_KIND_RENAMED,
	ianadb.Changed: pb.ServiceChangeKind_SERVICE_CHANGE_KIND_CHANGED,
}

func fromServiceChange(c ianadb.Change) *pb.ServiceChange {
	e := c.New
	if c.Kind == ianadb.Removed {
		e = c.Old
	}
	out := &pb.ServiceChange{
		Kind: changeKinds[c.Kind], Name: e.Name, Protocol: services.FromProtocol(e.Protocol), Description: e.Description,
	}
	if e.HasPort() {
		out.Ports = &pb.PortRange{First: uint32(e.First), Last: uint32(e.Last)}
	}
	switch c.Kind {
	case ianadb.Renamed:
		out.OldName = c.Old.Name
	case ianadb.Changed:
		out.Columns = c.Columns
	}
	return out
}
