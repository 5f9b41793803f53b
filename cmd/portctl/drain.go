package main

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/portd/portd/client"
	pb "github.com/portd/portd/proto/portd/v1"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"
)

const drainHelp = `Drain gives workers no more connections of a reservation: others get them at once, and the
drained finish what they have. They are told, and programs that stand on the Go client then
stop accepting. A worker is drained when nothing that it was sent lies in its queue.

Without a choice all are drained. --except is for a restart without a gap: start the new
workers beside the old ones, with another generation ($PORTD_GENERATION), and drain all
but them. The old ones are drained only once so many of the new ones are ready as --ready
says, one where it says nothing; when they are not in time the new ones are drained
instead, and it is an error. --ready 0 does not wait for them.

Owners of a reservation may drain its workers, as may root and the user that portd runs as.`

func (c *ctl) drainCommand() *cobra.Command {
	var (
		req                pb.DrainWorkersRequest
		generation, except string
		within, wait       time.Duration
	)
	cmd := &cobra.Command{
		Use:   "drain RESERVATION",
		Short: "Give workers no more connections",
		Long:  drainHelp,
		Example: `  portctl drain tcp/8080 --worker wrk_0123456789abcdefghij --wait 30s
  portctl drain web --generation v1
  portctl drain web --except v2 --ready 2 --within 30s --wait 30s`,
		Args:              wants(1, 2, "a reservation, by its id, its name or an endpoint,"),
		ValidArgsFunction: c.completeReservations,
	}
	flags := cmd.Flags()
	flags.StringArrayVar(&req.WorkerIds, "worker", nil, "only the worker with this `id`; may be repeated")
	flags.StringVar(&generation, "generation", "", "only those of this generation; empty: those without one")
	flags.StringVar(&except, "except", "", "all but those of this generation, the successors")
	flags.Uint32Var(&req.Ready, "ready", 0, "wait until `so many` of the successors are ready, and drain the others only then (default 1)")
	flags.DurationVar(&within, "within", 0, "how long to wait for that (default 1m0s)")
	flags.DurationVar(&wait, "wait", 0, "wait until they are drained, or have left, but not longer than this")
	c.netnsFlag(cmd)
	for _, name := range []string{"generation", "except"} {
		_ = cmd.RegisterFlagCompletionFunc(name, c.completeGenerations)
	}
	_ = cmd.RegisterFlagCompletionFunc("worker", c.completeWorkers)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		req.Reservation = c.there([]string{strings.Join(args, " ")})[0]
		if flags.Changed("generation") {
			req.Generation = &generation
		}
		if flags.Changed("except") {
			req.ExceptGeneration = &except
		}
		if req.ExceptGeneration != nil && !flags.Changed("ready") {
			req.Ready = 1 // or a slip of the pen drained all
		}
		switch {
		case within < 0 || wait < 0:
			return usageError("--within and --wait are times like 30s")
		case req.Ready > 0 && req.ExceptGeneration == nil:
			return usageError("--ready: whose? say the successors' generation with --except")
		case within > 0 && req.Ready == 0:
			return usageError("--within: what is to be ready? say whose with --except, and how many with --ready")
		}
		if within > 0 {
			req.Within = durationpb.New(within)
		}
		req.Wait = durationpb.New(wait)
		return c.drain(cmd.Context(), &req)
	}
	return cmd
}

func (c *ctl) drain(ctx context.Context, req *pb.DrainWorkersRequest) error {
	cl, err := c.dial(ctx)
	if err != nil {
		return err
	}
	defer cl.Close()
	answer, err := cl.Handoff.DrainWorkers(ctx, req)
	if err != nil {
		return drainHint(err, req)
	}
	if c.json() {
		err = c.printJSON(answer)
	} else if len(answer.GetWorkers()) > 0 {
		err = c.printWorkers(answer.GetWorkers())
	}
	if err != nil {
		return err
	}
	_ = c.out.Flush()
	if len(answer.GetWorkers()) == 0 {
		c.say("no worker of %s is one to drain", req.GetReservation())
	}
	for _, e := range answer.GetWithoutWorker() {
		c.warn("no worker is ready for %s now", e.GetText())
	}
	return c.drainedInTime(req, answer)
}

// drainHint shows the workers where that helps: where there is such a reservation, and the caller may see them.
func drainHint(err error, req *pb.DrainWorkersRequest) error {
	if errors.Is(err, client.ErrDenied) || errors.Is(err, client.ErrNotFound) && len(req.GetWorkerIds()) == 0 {
		return err
	}
	return try(err, "portctl workers "+req.GetReservation())
}

// drainedInTime complains of workers that were waited for in vain.
func (c *ctl) drainedInTime(req *pb.DrainWorkersRequest, answer *pb.DrainWorkersResponse) (err error) {
	if req.GetWait().AsDuration() == 0 {
		return nil
	}
	for _, w := range answer.GetWorkers() {
		for _, l := range w.GetListeners() {
			if l.GetState() == pb.WorkerState_WORKER_STATE_DRAINING && !l.GetDrained() {
				c.warn("%s (pid %d) has not taken all that it was sent for %s in %v", w.GetId(), w.GetPid(), l.GetEndpoint().GetText(), req.GetWait().AsDuration())
				err = status(exitFailed)
			}
		}
	}
	return err
}

// completeGenerations offers the generations of the workers of the reservation that was named, or of all.
func (c *ctl) completeGenerations(cmd *cobra.Command, args []string, prefix string) (out []string, _ cobra.ShellCompDirective) {
	page := quickly(cmd.Context(), c, func(ctx context.Context, cl *client.Client) (*pb.ListWorkersResponse, error) {
		return cl.Handoff.ListWorkers(ctx, &pb.ListWorkersRequest{Reservation: strings.Join(args, " ")})
	})
	for _, w := range page.GetWorkers() {
		if g := w.GetGeneration(); g != "" && strings.HasPrefix(g, prefix) && !slices.Contains(out, g) {
			out = append(out, g)
		}
	}
	return out, cobra.ShellCompDirectiveNoFileComp
}
