package rpc

import (
	"slices"

	"github.com/portd/portd/internal/registry"
	pb "github.com/portd/portd/proto/portd/v1"
)

// A keptWhois is an answer for a port as it goes over the wire, with all that it says beside the registry's part. What there is to
// be said is found out for every question; only where it is the same again is it not put into words again.
type keptWhois struct {
	port  uint32
	proto pb.Protocol
	said  said
	bytes *pb.WhoisResponse
}

// said is what an answer is made of. A reservation is never changed, so that the same one reads the same.
type said struct {
	uses      []saidUse
	redirects []registry.Redirect
	hidden    []string
}

// saidUse has what ports.use tells of a reservation, with nobody else on its port and no lease, whose end draws nearer all the time.
type saidUse struct {
	reservation *registry.Reservation
	index       int
	yours       bool
	workers     int
}

func (a said) equal(b said) bool {
	return slices.Equal(a.uses, b.uses) && slices.Equal(a.redirects, b.redirects) && slices.Equal(a.hidden, b.hidden)
}

// says is what there is to be said; plain is false where it cannot be known for the same when it comes again: what is seen of
// programs is told in words that are looked up.
func (s *ports) says(uses []registry.Use, me registry.Principal, redirects []registry.Redirect, hidden []string) (all said, plain bool) {
	all = said{redirects: redirects, hidden: hidden}
	for _, u := range uses {
		r := u.Reservation
		if r == nil || len(u.Holders) > 0 || r.Lease != "" {
			return said{}, false
		}
		workers := s.workers.Totals(registry.SocketKey{Reservation: r.ID, Index: u.Index}).Workers
		all.uses = append(all.uses, saidUse{r, u.Index, r.Owner == me, workers})
	}
	return all, true
}

// whois returns the answer for a port of s that says all, from make where it is not the one that is kept.
func (h *hot) whois(s *registry.Services, port uint32, p pb.Protocol, all said, make func() *pb.WhoisResponse) (*pb.WhoisResponse, error) {
	place := &h.answers(s).whois[place(port, p)]
	if k := place.Load(); k != nil && k.port == port && k.proto == p && k.said.equal(all) {
		return k.bytes, nil
	}
	answer := make()
	for i, u := range all.uses { // who came or went since is told of the next time
		answer.Uses[i].GetReservation().Workers = uint32(u.workers)
	}
	bytes, err := encoded(answer)
	if err != nil {
		return nil, err
	}
	if len(bytes.ProtoReflect().GetUnknown()) <= maxHot {
		place.Store(&keptWhois{port, p, all, bytes})
	}
	return bytes, nil
}
