package rpc

import (
	"context"
	"fmt"
	"slices"

	"github.com/portd/portd/internal/ianadb"
	"github.com/portd/portd/internal/registry"
	pb "github.com/portd/portd/proto/portd/v1"
)

// maxWhois is how many ports of a name Whois looks at: each is a look at the kernel's sockets.
const maxWhois = 64

type ports struct {
	pb.UnimplementedPortServiceServer
	reg     *registry.Registry
	workers Workers
}

func (s *ports) Whois(ctx context.Context, req *pb.WhoisRequest) (*pb.WhoisResponse, error) {
	_, byPort := req.GetQuery().(*pb.WhoisRequest_Port)
	_, byName := req.GetQuery().(*pb.WhoisRequest_Name)
	q, err := toQuestion(req, byPort, byName)
	if err != nil {
		return nil, err
	}
	found, err := lookup(s.reg.Services().IANA, q)
	if err != nil {
		return nil, err
	}
	me, out := callerOf(ctx), &pb.WhoisResponse{Lookup: found}
	wanted := wantedBy(s.reg.Services().IANA, q)
	if len(wanted) > maxWhois {
		out.Hidden = append(out.Hidden, fmt.Sprintf("only the first %d of %d ports were looked at: ask for one", maxWhois, len(wanted)))
		wanted = wanted[:maxWhois]
	}
	var seen []registry.SocketKey
	for _, w := range wanted {
		uses, err := s.reg.Uses(ctx, me, req.GetNetns(), w.proto, w.port)
		if err != nil {
			return nil, err
		}
		// A range of a reservation is one use of all its ports.
		uses = slices.DeleteFunc(uses, func(u registry.Use) bool {
			return u.Reservation != nil && slices.Contains(seen, registry.SocketKey{Reservation: u.Reservation.ID, Index: u.Index})
		})
		for _, u := range uses {
			use := fromUse(u, me.Principal())
			if r := u.Reservation; r != nil {
				key := registry.SocketKey{Reservation: r.ID, Index: u.Index}
				seen = append(seen, key)
				use.GetReservation().Workers = uint32(s.workers.Totals(key).Workers)
			}
			out.Uses = append(out.Uses, use)
		}
		for _, h := range hidden(uses) {
			if !slices.Contains(out.Hidden, h) {
				out.Hidden = append(out.Hidden, h)
			}
		}
	}
	return out, nil
}

// wantedBy are the ports that a question is about, one at a time, each once.
func wantedBy(db *ianadb.DB, q question) (wanted []question) {
	if q.name == "" {
		return []question{q}
	}
	for r := range db.ByName(q.name, iana(q.proto)) {
		ports, ok := r.Ports()
		if !ok {
			continue
		}
		for p := int(ports.First); p <= int(ports.Last); p++ {
			w := question{port: uint16(p), proto: or(q.proto, protocols[entryProtocols[r.Protocol()]])}
			if !slices.Contains(wanted, w) {
				wanted = append(wanted, w)
			}
		}
	}
	return wanted
}
