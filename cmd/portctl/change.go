package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/portd/portd/client"
	pb "github.com/portd/portd/proto/portd/v1"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"
)

// The commands that change reservations that are there. They take several, do what they can, and exit with the first
// one's trouble.

const releaseHelp = `Release gives reservations back, each named by its id, its name or an endpoint of it.
When it returns the ports are free of portd; a program that was given the socket itself
still has it until it closes it, and is named then.

A lease, named by its id, is ended with all that it carries.`

func (c *ctl) releaseCommand() *cobra.Command {
	var (
		request string
		only    ifRevision
	)
	cmd := &cobra.Command{
		Use:   "release RESERVATION|LEASE…",
		Short: "Give reservations back",
		Long:  releaseHelp,
		Example: `  portctl release tcp 8080
  portctl release web dns
  portctl release rsv_0123456789abcdefghij`,
		Args:              wants(1, many, "a reservation, by its id, its name or an endpoint,"),
		ValidArgsFunction: c.completeReservations,
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		refs := c.there(words(args))
		if err := only.check(cmd, refs); err != nil {
			return err
		}
		return c.each(cmd.Context(), refs, func(cl *client.Client, ref string) error {
			if isLease(ref) {
				return c.endLease(cmd.Context(), cl, ref, request)
			}
			req := &pb.ReleaseRequest{Reservation: ref, RequestId: request, ExpectedRevision: int64(only)}
			answer, err := cl.Reservations.Release(cmd.Context(), req)
			if err != nil {
				return conflictHint(err, ref)
			}
			if c.json() {
				return c.printJSON(answer)
			}
			res := answer.GetReservation()
			if err := c.printChanged(res, "released"); err != nil {
				return err
			}
			for _, h := range answer.GetStillBoundBy() {
				c.say("%s still has %s: the port is free when it closes it", holderName(h), h.GetEndpoint().GetText())
			}
			return nil
		})
	}
	cmd.Flags().StringVar(&request, "request-id", "", "makes a repeated call give the first one's answer")
	c.netnsFlag(cmd)
	only.flag(cmd)
	return cmd
}

const closeHelp = `Close stops listening; the ports stay held. Connections that still wait are reset.`

func (c *ctl) closeCommand() *cobra.Command {
	var only ifRevision
	cmd := &cobra.Command{
		Use:               "close RESERVATION…",
		Short:             "Stop listening, and keep the ports",
		Long:              closeHelp,
		Example:           `  portctl close tcp/8080`,
		Args:              wants(1, many, "a reservation, by its id, its name or an endpoint,"),
		ValidArgsFunction: c.completeReservations,
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		refs := c.there(words(args))
		if err := only.check(cmd, refs); err != nil {
			return err
		}
		return c.each(cmd.Context(), refs, func(cl *client.Client, ref string) error {
			answer, err := cl.Reservations.Close(cmd.Context(), &pb.CloseRequest{Reservation: ref, ExpectedRevision: int64(only)})
			if err != nil {
				return conflictHint(err, ref)
			}
			return c.printAnswer(answer, answer.GetReservation())
		})
	}
	c.netnsFlag(cmd)
	only.flag(cmd)
	return cmd
}

// each does a thing to every one of refs and complains of those where it cannot be done.
func (c *ctl) each(ctx context.Context, refs []string, do func(*client.Client, string) error) error {
	cl, err := c.dial(ctx)
	if err != nil {
		return err
	}
	defer cl.Close()
	var first error
	for _, ref := range refs {
		if err := do(cl, ref); err != nil {
			_ = c.out.Flush()
			c.complain(err)
			if first == nil {
				first = status(exitCode(err))
			}
		}
	}
	return first
}

func (c *ctl) printAnswer(answer proto.Message, res *pb.Reservation) error {
	if c.json() {
		return c.printJSON(answer)
	}
	return c.printChanged(res, "")
}

// printChanged prints how a reservation stands now; with -q its id.
func (c *ctl) printChanged(res *pb.Reservation, state string) error {
	if c.quiet {
		_, err := fmt.Fprintln(c.out, res.GetId())
		return err
	}
	return c.printReservation(res, state)
}

// listenHint says what to do with what does not listen.
func listenHint(err error, ref string) error {
	why := (*client.Error)(nil)
	if !errors.As(err, &why) {
		return err
	}
	switch why.Reason {
	case "NOT_A_STREAM":
		return try(err, "portctl run "+ref+" -- PROGRAM")
	case "RECORDED":
		return try(err, "portctl run --record-only "+ref+" -- PROGRAM --port {port}")
	}
	return err
}
