// Package services answers questions to the service registry in the API's messages, for portd and for a portctl that has
// no portd.
//
// Answers share memory with the snapshot that they are of.
package services

import (
	"encoding/hex"
	"fmt"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/portd/portd/internal/ianadb"
	"github.com/portd/portd/internal/registry"
	pb "github.com/portd/portd/proto/portd/v1"
)

// Embedded is the service registry that the program was built with, on a host that has nothing of its own.
func Embedded() *registry.Services {
	db := ianadb.Embedded()
	source := db.Source()
	e := &registry.Edition{Origin: registry.Embedded, Date: source.Date, SHA256: source.SHA256, Records: db.Len()}
	return &registry.Services{Directory: ianadb.Directory{IANA: db}, Current: e, Embedded: e}
}

// Status says which registry answers.
func Status(s *registry.Services) *pb.ServiceRegistryStatus {
	out := Edition(s.Current)
	out.HostEntries = uint32(len(s.Own))
	if s.Previous != nil {
		out.Previous = Edition(s.Previous)
	}
	if s.Embedded != nil {
		out.EmbeddedDate = s.Embedded.Date
	}
	return out
}

// Edition is what one edition says of itself.
func Edition(e *registry.Edition) *pb.ServiceRegistryStatus {
	out := &pb.ServiceRegistryStatus{
		Date: e.Date, Digest: digest(e), Records: uint32(e.Records), Source: e.Origin.String(),
		From: e.From, ImportedBy: string(e.By), LastModified: e.LastModified, Etag: e.ETag,
	}
	if !e.Time.IsZero() {
		out.ImportTime = timestamppb.New(e.Time)
	}
	return out
}

func digest(e *registry.Edition) string { return hex.EncodeToString(e.SHA256[:]) }

// A notFoundError is a registry.ErrNotFound with a sentence of its own.
type notFoundError string

func (e notFoundError) Error() string        { return string(e) }
func (e notFoundError) Is(target error) bool { return target == registry.ErrNotFound }

func notFound(format string, args ...any) error { return notFoundError(fmt.Sprintf(format, args...)) }

func invalid(field, format string, args ...any) error {
	return &registry.InvalidError{Field: field, Reason: fmt.Sprintf(format, args...)}
}
