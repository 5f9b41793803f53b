package rpc

import (
	"context"
	"slices"
	"time"

	"github.com/portd/portd/internal/registry"
	pb "github.com/portd/portd/proto/portd/v1"
)

func (s *handoffs) DrainWorkers(ctx context.Context, req *pb.DrainWorkersRequest) (*pb.DrainWorkersResponse, error) {
	d, err := toDrain(req)
	if err != nil {
		return nil, err
	}
	me := callerOf(ctx)
	r, err := s.reg.Get(ctx, me, req.GetReservation())
	if err != nil {
		return nil, err
	}
	d.Reservation, d.Endpoints = r.ID, r.Endpoints()
	if err := s.reg.Policy().Change(me, r.Owner, "drain the workers of "+d.Endpoints); err != nil {
		return nil, err
	}
	drained, err := s.workers.Drain(ctx, d)
	if err != nil {
		return nil, err
	}
	out := &pb.DrainWorkersResponse{}
	for _, w := range drained.Workers {
		w.Listeners = slices.DeleteFunc(w.Listeners, func(l WorkerListener) bool { return l.Key.Reservation != r.ID })
		out.Workers = append(out.Workers, fromWorker(w))
	}
	for _, e := range drained.Without {
		out.WithoutWorker = append(out.WithoutWorker, fromEndpoint(e))
	}
	return out, nil
}

func toDrain(req *pb.DrainWorkersRequest) (d Drain, err error) {
	if req.GetReservation() == "" {
		return d, invalid("reservation", "whose workers? Give a reservation's id or name, or an endpoint")
	}
	d = Drain{
		Workers: req.GetWorkerIds(), Generation: req.Generation, Except: req.ExceptGeneration, Ready: int(req.GetReady()),
	}
	if d.Ready > 0 && d.Except == nil {
		return d, invalid("ready", "whose %d workers are to be ready? Give except_generation, the successors'", d.Ready)
	}
	if d.Ready == 0 && req.GetWithin() != nil {
		return d, invalid("within", "within this time something is to be ready: give ready")
	}
	if d.Within, err = toDuration("within", req.GetWithin()); err != nil {
		return d, err
	}
	d.Wait, err = toDuration("wait", req.GetWait())
	return d, err
}

// A Drain says which workers take no more connections of a reservation.
type Drain struct {
	Reservation string
	Endpoints   string        // of the reservation, for people
	Workers     []string      // only these; empty: all
	Generation  *string       // only of this generation
	Except      *string       // only of others than this one, the successors'
	Ready       int           // of the successors must be ready before
	Within      time.Duration // or else they are drained themselves; 0: a minute
	Wait        time.Duration // how long to wait until nothing lies in the queues of those drained
}

// Drained is what became of a Drain.
type Drained struct {
	Workers []Worker            // those drained, as they are now
	Without []registry.Endpoint // those that listen and that no worker is ready for
}
