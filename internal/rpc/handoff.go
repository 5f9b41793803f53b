package rpc

import (
	"context"
	"encoding/base64"
	"fmt"
	"slices"
	"strconv"
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
		TakenBack: total.TakenBack, Lost: total.Lost, Refused: total.Refused, Reception: pb.Reception(total.Reception),
		Held: uint32(total.Held), Waiting: uint32(total.Waiting), PerSecond: total.PerSecond, Wait: fromWaits(total.Waits),
	}
}

func (s *handoffs) ListWorkers(ctx context.Context, req *pb.ListWorkersRequest) (*pb.ListWorkersResponse, error) {
	_, shown, err := s.shown(ctx, req.GetReservation())
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
	only, shown, err := s.shown(ctx, req.GetReservation())
	if err != nil {
		return nil, err
	}
	q := ConnectionQuery{Reservation: only, Worker: req.GetWorkerId(), Open: req.GetOpen(), Shown: shown, Most: int(req.GetPageSize())}
	switch {
	case q.Most < 0:
		return nil, invalid("page_size", "%d is negative", q.Most)
	case q.Most == 0:
		q.Most = registry.MaxPage
	}
	q.Most = min(q.Most, maxConnections)
	if token := req.GetPageToken(); token != "" {
		text, err := base64.RawURLEncoding.DecodeString(token)
		if err == nil {
			q.Before, err = strconv.ParseUint(string(text), 16, 64)
		}
		if err != nil || q.Before == 0 {
			return nil, badToken(token)
		}
	}
	some, more, err := s.workers.Connections(ctx, q)
	if err != nil {
		return nil, err
	}
	out := &pb.ListConnectionsResponse{Connections: fromConnections(some)}
	if more {
		out.NextPageToken = base64.RawURLEncoding.EncodeToString(strconv.AppendUint(nil, some[len(some)-1].Seq, 16))
	}
	return out, nil
}

// maxConnections is how many a page has at most: more than of other things, since there are more, and an answer stays below the four
// megabytes that gRPC clients take.
const maxConnections = 5000

// shown says what of the work the caller sees: what policy lets him, of one reservation where ref is not empty, whose id is only.
func (s *handoffs) shown(ctx context.Context, ref string) (only string, _ func(reservation string, owner registry.Principal) bool, _ error) {
	me, policy := callerOf(ctx), s.reg.Policy()
	if ref != "" {
		r, err := s.reg.Get(ctx, me, ref)
		if err != nil {
			return "", nil, err
		}
		only = r.ID
	}
	return only, func(reservation string, owner registry.Principal) bool {
		return (only == "" || only == reservation) && policy.SeeWork(me, owner)
	}, nil
}

func badToken(token string) error {
	return invalid("page_token", "%q is not one of portd's; leave it out to begin anew", token)
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
		return nil, "", badToken(p.Token)
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
