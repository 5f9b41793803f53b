package rpc

import (
	"context"
	"encoding/base64"
	"fmt"
	"slices"
	"strings"

	"github.com/portd/portd/internal/registry"
	pb "github.com/portd/portd/proto/portd/v1"
)

type handoffs struct {
	pb.UnimplementedHandoffServiceServer
	reg     *registry.Registry
	workers Workers
}

func (s *handoffs) ListListeners(ctx context.Context, req *pb.ListListenersRequest) (*pb.ListListenersResponse, error) {
	all, err := s.reg.Listeners(ctx, callerOf(ctx), req.GetReservation())
	if err != nil {
		return nil, err
	}
	some, next, err := page(all, toPage(req), func(l registry.ListenerInfo) string {
		return fmt.Sprintf("%016x.%04x", l.Reservation.CreateRevision, l.Index)
	})
	out := &pb.ListListenersResponse{NextPageToken: next}
	for _, l := range some {
		out.Listeners = append(out.Listeners, s.fromListener(l))
	}
	return out, err
}

func (s *handoffs) fromListener(l registry.ListenerInfo) *pb.Listener {
	r := l.Reservation
	total := s.workers.Totals(registry.SocketKey{Reservation: r.ID, Index: l.Index})
	return &pb.Listener{
		ReservationId: r.ID, ReservationName: r.Name, Owner: string(r.Owner),
		Endpoint: fromEndpoint(r.Assigned[l.Index].Endpoint), Options: fromListenOptions(l.Options),
		Workers: uint32(total.Workers), HandedOver: total.HandedOver, Redelivered: total.Redelivered,
		TakenBack: total.TakenBack, Lost: total.Lost,
	}
}

func (s *handoffs) ListWorkers(ctx context.Context, req *pb.ListWorkersRequest) (*pb.ListWorkersResponse, error) {
	shown, err := s.shown(ctx, req.GetReservation())
	if err != nil {
		return nil, err
	}
	var all []Worker
	for _, w := range s.workers.Workers() {
		w.Listeners = slices.DeleteFunc(w.Listeners, func(l WorkerListener) bool { return !shown(l.Key.Reservation, l.Owner) })
		if len(w.Listeners) > 0 {
			all = append(all, w)
		}
	}
	some, next, err := page(all, toPage(req), func(w Worker) string { return fmt.Sprintf("%016x.%s", w.Attached.UnixNano(), w.ID) })
	out := &pb.ListWorkersResponse{NextPageToken: next}
	for _, w := range some {
		out.Workers = append(out.Workers, fromWorker(w))
	}
	return out, err
}

func (s *handoffs) ListConnections(ctx context.Context, req *pb.ListConnectionsRequest) (*pb.ListConnectionsResponse, error) {
	shown, err := s.shown(ctx, req.GetReservation())
	if err != nil {
		return nil, err
	}
	all := slices.DeleteFunc(s.workers.Connections(), func(c Connection) bool {
		return !shown(c.Key.Reservation, c.Owner) || req.GetWorkerId() != "" && req.GetWorkerId() != c.Worker
	})
	some, next, err := page(all, toPage(req), func(c Connection) string { return fmt.Sprintf("%016x", ^c.Seq) }) // the newest first
	out := &pb.ListConnectionsResponse{NextPageToken: next}
	for _, c := range some {
		out.Connections = append(out.Connections, fromConnection(c))
	}
	return out, err
}

// shown says what of the work the caller sees: what policy lets him, of one reservation where ref is not empty.
func (s *handoffs) shown(ctx context.Context, ref string) (func(reservation string, owner registry.Principal) bool, error) {
	me, policy, only := callerOf(ctx), s.reg.Policy(), ""
	if ref != "" {
		r, err := s.reg.Get(ctx, me, ref)
		if err != nil {
			return nil, err
		}
		only = r.ID
	}
	return func(reservation string, owner registry.Principal) bool {
		return (only == "" || only == reservation) && policy.SeeWork(me, owner)
	}, nil
}

// page sorts items by key and cuts one page out of them. Since a token is the key of the last item before it, what comes
// and goes meanwhile neither repeats nor skips others.
func page[T any](items []T, p registry.Page, key func(T) string) (some []T, next string, err error) {
	if p.Size < 0 {
		return nil, "", invalid("page_size", "%d is negative", p.Size)
	}
	if p.Size == 0 || p.Size > registry.MaxPage {
		p.Size = registry.MaxPage
	}
	after, err := base64.RawURLEncoding.DecodeString(p.Token)
	if err != nil {
		return nil, "", invalid("page_token", "%q is not one of portd's; leave it out to begin anew", p.Token)
	}
	type keyed struct {
		key  string
		item T
	}
	var rest []keyed
	for _, item := range items {
		if k := key(item); k > string(after) {
			rest = append(rest, keyed{k, item})
		}
	}
	slices.SortFunc(rest, func(a, b keyed) int { return strings.Compare(a.key, b.key) })
	if len(rest) > p.Size {
		rest = rest[:p.Size]
		next = base64.RawURLEncoding.EncodeToString([]byte(rest[p.Size-1].key))
	}
	for _, k := range rest {
		some = append(some, k.item)
	}
	return some, next, nil
}
