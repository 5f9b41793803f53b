package services

import (
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"hash/fnv"

	"google.golang.org/protobuf/proto"

	"github.com/portd/portd/internal/registry"
	pb "github.com/portd/portd/proto/portd/v1"
)

// maxPage is how many items a page has at most.
const maxPage = 1000

// List gives a page of the entries as they stand, the host's own first. Where they are long, a page has fewer than were asked for.
func List(s *registry.Services, req *pb.ListServicesRequest) (*pb.ListServicesResponse, error) {
	p, err := ToProtocol("protocol", req.GetProtocol())
	if err != nil {
		return nil, err
	}
	source := req.GetSource()
	if source < 0 || source > pb.EntrySource_ENTRY_SOURCE_HOST {
		return nil, invalid("source", "%d is unknown; known are ENTRY_SOURCE_IANA and ENTRY_SOURCE_HOST", source)
	}
	at, err := newPage(s, fmt.Sprint("list", source, p), req.GetPageToken(), req.GetPageSize(), 100)
	if err != nil {
		return nil, err
	}
	out := &pb.ListServicesResponse{RegistryDate: s.Current.Date, RegistryDigest: digest(s.Current)}
	n, size := 0, 0
	for r := range s.All() {
		own := s.IsOwn(r)
		if source == pb.EntrySource_ENTRY_SOURCE_IANA && own || p != 0 && r.Protocol() != 0 && r.Protocol() != p {
			continue
		}
		if source == pb.EntrySource_ENTRY_SOURCE_HOST && !own {
			break // they come first
		}
		if n++; n <= at.skip {
			continue
		}
		e := Entry(s, r)
		if size += proto.Size(e); len(out.Services) == at.size || size > maxAnswer {
			out.NextPageToken = at.next(at.skip + len(out.Services))
			break
		}
		out.Services = append(out.Services, e)
	}
	return out, nil
}

// A page is a part of a list. Its token says what it is a page of and how much was before: a list that has changed would
// show some items twice and others not at all.
type page struct {
	size, skip int
	of         uint64
}

func newPage(s *registry.Services, question, token string, size int32, usual int) (page, error) {
	p := page{size: min(int(size), maxPage), of: version(s, question)}
	switch {
	case size < 0:
		return page{}, invalid("page_size", "%d is negative", size)
	case size == 0:
		p.size = usual
	}
	if token == "" {
		return p, nil
	}
	var of uint64
	text, err := base64.RawURLEncoding.DecodeString(token)
	if err == nil {
		_, err = fmt.Sscanf(string(text), "%x.%d", &of, &p.skip)
	}
	switch {
	case err != nil || p.skip < 0:
		return page{}, invalid("page_token", "%.40q is not one of portd's; leave it out to start again", token)
	case of != p.of:
		return page{}, invalid("page_token", "it is of another question, or the service registry has changed since; leave it out to start again")
	}
	return p, nil
}

func (p page) next(skip int) string {
	return base64.RawURLEncoding.EncodeToString(fmt.Appendf(nil, "%x.%d", p.of, skip))
}

// version is different for other questions and for other registries: IANA's edition has its digest, and every change to one of the
// host's own entries has a revision of its own.
func version(s *registry.Services, question string) uint64 {
	h := fnv.New64a()
	_, _ = h.Write(s.Current.SHA256[:]) // never an error
	for _, o := range s.Own {
		_ = binary.Write(h, binary.LittleEndian, int64(o.Revision))
	}
	_, _ = h.Write([]byte(question))
	return h.Sum64()
}
