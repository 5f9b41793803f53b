package daemon

import (
	"context"

	"github.com/portd/portd/internal/handoff"
	"github.com/portd/portd/internal/registry"
	"github.com/portd/portd/internal/rpc"
)

// workers is the hand-off as the doors know it.
type workers struct{ pool *handoff.Pool }

func (w workers) Workers() []rpc.Worker {
	var all []rpc.Worker
	for _, h := range w.pool.Workers() {
		all = append(all, toWorker(h))
	}
	return all
}

func toWorker(h handoff.Worker) rpc.Worker {
	out := rpc.Worker{
		ID: h.ID, UID: h.Caller.UID, PID: h.Caller.PID, Command: h.Command,
		Sent: h.Sent, Done: h.Done, Attached: h.Attached,
		Generation: h.Generation, Received: h.Received, TakenBack: h.TakenBack, Stuck: h.Stuck, PerSecond: h.PerSecond,
	}
	for _, l := range h.Listeners {
		out.Listeners = append(out.Listeners, rpc.WorkerListener{
			Key: l.Key, Owner: l.Owner, Endpoint: l.Endpoint, State: workerStates[l.State], Socket: l.Socket, Room: l.Room, Drained: l.Drained,
			Weight: l.Weight, Priority: l.Priority,
		})
	}
	return out
}

func (w workers) Drain(ctx context.Context, d rpc.Drain) (out rpc.Drained, err error) {
	drained, err := w.pool.Drain(ctx, handoff.Drain(d))
	out.Without = drained.Without
	for _, h := range drained.Workers {
		out.Workers = append(out.Workers, toWorker(h))
	}
	return out, err
}

var workerStates = map[handoff.State]rpc.WorkerState{
	handoff.Attached: rpc.WorkerAttached,
	handoff.Ready:    rpc.WorkerReady,
	handoff.Draining: rpc.WorkerDraining,
}

func (w workers) Connections(ctx context.Context, q rpc.ConnectionQuery) ([]rpc.Connection, bool, error) {
	some, more, err := w.pool.Connections(ctx, handoff.ConnectionQuery(q))
	all := make([]rpc.Connection, len(some))
	for i, h := range some {
		all[i] = rpc.Connection(h)
	}
	return all, more, err
}

func (w workers) Totals(key registry.SocketKey) rpc.Totals { return rpc.Totals(w.pool.Totals(key)) }

func (w workers) Sum() rpc.Totals { return rpc.Totals(w.pool.Sum()) }
