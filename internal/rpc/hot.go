package rpc

import (
	"sync/atomic"

	"google.golang.org/protobuf/proto"

	"github.com/portd/portd/internal/registry"
	pb "github.com/portd/portd/proto/portd/v1"
)

// maxHot is the size in bytes of an answer that is kept; IANA's longest is half of it.
const maxHot = 8 << 10

// A hot keeps answers for ports that were asked for lately as they go over the wire, until the service registry is another: to
// find and encode one takes longer than all else that portd does for it.
type hot struct{ at atomic.Pointer[hotAnswers] }

// hotAnswers are of one snapshot. A port has one place, which the last one asked for gets; all are some hundred kB.
type hotAnswers struct {
	of     *registry.Services
	places [256]atomic.Pointer[hotAnswer]
	whois  [256]atomic.Pointer[keptWhois]
}

// place is where the answer for a port is.
func place(port uint32, p pb.Protocol) uint32 { return (port ^ uint32(p)<<5) % 256 }

// answers are those of s.
func (h *hot) answers(s *registry.Services) *hotAnswers {
	all := h.at.Load()
	if all == nil || all.of != s {
		all = &hotAnswers{of: s}
		h.at.Store(all)
	}
	return all
}

type hotAnswer struct {
	port  uint32
	proto pb.Protocol
	bytes *pb.LookupServicesResponse
}

// lookup returns the answer for a port of s, from find where there is none yet.
func (h *hot) lookup(s *registry.Services, port uint32, p pb.Protocol, find func() (*pb.LookupServicesResponse, error)) (*pb.LookupServicesResponse, error) {
	place := &h.answers(s).places[place(port, p)]
	if a := place.Load(); a != nil && a.port == port && a.proto == p {
		return a.bytes, nil
	}
	answer, err := find()
	if err != nil {
		return nil, err
	}
	bytes, err := encoded(answer)
	if err != nil {
		return nil, err
	}
	if len(bytes.ProtoReflect().GetUnknown()) <= maxHot {
		place.Store(&hotAnswer{port, p, bytes})
	}
	return bytes, nil
}

// encoded is a message that is sent as m is, and whose fields are all unknown to it: what is unknown is copied as it came.
func encoded[M proto.Message](m M) (none M, err error) {
	bytes, err := proto.Marshal(m)
	if err != nil {
		return none, err
	}
	out := m.ProtoReflect().New()
	out.SetUnknown(bytes)
	return out.Interface().(M), nil
}
