package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/portd/portd/client"
	pb "github.com/portd/portd/proto/portd/v1"
	"github.com/spf13/cobra"
	"google.golang.org/grpc"
)

const watchHelp = `Watch prints every change as it happens, of reservations, of this host's own services and
of the registry that answers, each once and in order: its revision, the time, what
happened, the ports, the name or id, and who did it. It goes on until it is interrupted
or portd stops; when another portd takes over, or the same one is back within two
seconds, it goes on there and has missed nothing. With --from it begins at an earlier
revision, and nothing since is missing; a revision that is no longer kept is an error.

With -o json every answer of the API is a line, the progress marks without events too.`

func (c *ctl) watchCommand() *cobra.Command {
	var from int64
	cmd := &cobra.Command{
		Use:   "watch",
		Short: "Follow what changes",
		Long:  watchHelp,
		Example: `  portctl watch
  portctl watch --from 1
  portctl watch -o json | jq .events`,
		Args: wants(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if from < 0 {
				return usagef("--from %d is not a revision", from)
			}
			return c.watch(cmd.Context(), from)
		},
	}
	cmd.Flags().Int64Var(&from, "from", 0, "first `revision` wanted; 0 is from now on")
	return cmd
}

func (c *ctl) watch(ctx context.Context, from int64) error {
	cl, err := c.dial(ctx)
	if err != nil {
		return err
	}
	defer cl.Close()
	stream, err := cl.Reservations.WatchReservations(ctx, &pb.WatchReservationsRequest{StartRevision: from})
	if err != nil {
		return err
	}
	seen, begun, storeID := from-1, false, ""
	for {
		m, err := stream.Recv()
		if begun && errors.Is(err, client.ErrUnavailable) {
			stream, m, err = resume(ctx, cl, &pb.WatchReservationsRequest{StartRevision: seen + 1, StoreId: storeID}, err)
		}
		if err != nil {
			return watchHint(err, seen, begun)
		}
		storeID = m.GetStoreId()
		if !begun && !c.json() {
			c.say("watching from revision %d on", m.GetRevision()+1)
		}
		seen, begun = m.GetRevision(), true
		if c.json() {
			err = c.printJSON(m)
		} else {
			err = c.printEvents(m)
		}
		// Whoever reads along wants it now.
		if err = errors.Join(err, c.out.Flush()); err != nil {
			return err
		}
	}
}

// resume watches again when portd has gone, which may be for another one to take its place; why is the error where there is none in time.
func resume(ctx context.Context, cl *client.Client, req *pb.WatchReservationsRequest, why error) (watchStream, *pb.WatchReservationsResponse, error) {
	for late := time.Now().Add(2 * time.Second); time.Now().Before(late); {
		stream, err := cl.Reservations.WatchReservations(ctx, req)
		if err == nil {
			var m *pb.WatchReservationsResponse
			if m, err = stream.Recv(); err == nil {
				return stream, m, nil
			}
		}
		if !errors.Is(err, client.ErrUnavailable) {
			return nil, nil, err
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return nil, nil, ctx.Err()
		}
	}
	return nil, nil, why
}

type watchStream = grpc.ServerStreamingClient[pb.WatchReservationsResponse]

// watchHint says where to go on.
func watchHint(err error, seen int64, begun bool) error {
	switch {
	case errors.Is(err, client.ErrCompacted):
		return try(err, "portctl list, then portctl watch")
	case errors.Is(err, client.ErrInvalid):
		return try(usagef("--from: %s", strings.TrimPrefix(err.Error(), "start_revision: ")), "portctl watch")
	case errors.Is(err, client.ErrStoreChanged): // its revisions are others
		return try(err, "portctl list, then portctl watch")
	case begun:
		return try(err, fmt.Sprintf("portctl watch --from %d", seen+1))
	}
	return err
}

func (c *ctl) printEvents(m *pb.WatchReservationsResponse) error {
	for _, e := range m.GetEvents() {
		what, who := eventText(e)
		cells := []string{fmt.Sprint(m.GetRevision()), full(m.GetTime()), strings.ReplaceAll(word(e.GetType()), "_", " ")}
		for _, s := range []string{what, who} {
			if s != "" {
				cells = append(cells, s)
			}
		}
		cells = append(cells, "by "+ownerName(e.GetCaller()))
		if e.GetReason() != "" {
			cells = append(cells, "("+e.GetReason()+")")
		}
		if _, err := fmt.Fprintln(c.out, printable(strings.Join(cells, "  "))); err != nil {
			return err
		}
	}
	return nil
}

// eventText says to what something happened, and how that is called.
func eventText(e *pb.Event) (what, who string) {
	switch {
	case e.GetReservation() != nil:
		return endpointsText(e.GetReservation()), nameOrID(e.GetReservation())
	case e.GetService() != nil:
		return placeText(e.GetService().GetPorts(), e.GetService().GetProtocol()), oneLine(e.GetService().GetName())
	case e.GetServiceRegistry() != nil:
		return registryDate(e.GetServiceRegistry().GetDate()), thousands(e.GetServiceRegistry().GetRecords()) + " records"
	}
	return forText(e.GetLease().GetSpec()), e.GetLease().GetId()
}
