package main

import (
	"context"
	"errors"
	"maps"
	"strings"

	"github.com/portd/portd/client"
	pb "github.com/portd/portd/proto/portd/v1"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
)

const setHelp = `Set changes a reservation that is there: its name, its labels, or the lease that ends it.
All that is asked for is done in one change, or nothing is; the ports stay as they are, and
whoever serves on them notices nothing.

--label adds a label or gives it another value, and leaves the others alone. With --name ''
the reservation has no name any more. --no-lease keeps it until it is released; a lease
that was made with the reservation, and carries none then, ends.

With --if-revision nothing is done if somebody has changed the reservation since.`

type setFlags struct {
	name           string
	labels, remove []string
	lease          string
	noLease        bool
	only           ifRevision
}

func (c *ctl) setCommand() *cobra.Command {
	var f setFlags
	cmd := &cobra.Command{
		Use:   "set RESERVATION",
		Short: "Change a reservation's name, labels or lease",
		Long:  setHelp,
		Example: `  portctl set tcp 8080 --name web
  portctl set web --label team=shop --remove-label trial
  portctl set web --no-lease
  portctl set web --lease lse_0123456789abcdefghij --if-revision 17`,
		Args:              wants(1, 2, "a reservation, by its id, its name or an endpoint,"),
		ValidArgsFunction: c.completeReservations,
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		ref := c.there([]string{strings.Join(args, " ")})[0]
		if err := f.only.check(cmd, []string{ref}); err != nil {
			return err
		}
		req, err := f.toRequest(cmd, ref)
		if err != nil {
			return err
		}
		return c.set(cmd.Context(), req, f)
	}
	flags := cmd.Flags()
	flags.StringVar(&f.name, "name", "", "its new `name`, unique on this host; empty: none")
	flags.StringArrayVar(&f.labels, "label", nil, "add or replace a label, `key=value`; may be repeated")
	flags.StringArrayVar(&f.remove, "remove-label", nil, "take away the label with this `key`; may be repeated")
	flags.StringVar(&f.lease, "lease", "", "give it back when this `lease` ends: the id of one that is there")
	flags.BoolVar(&f.noLease, "no-lease", false, "keep it until it is released")
	c.netnsFlag(cmd)
	f.only.flag(cmd)
	_ = cmd.RegisterFlagCompletionFunc("lease", c.completeLeases)
	return cmd
}

// toRequest is all but the labels, which depend on those that are there.
func (f setFlags) toRequest(cmd *cobra.Command, ref string) (*pb.UpdateReservationRequest, error) {
	req := &pb.UpdateReservationRequest{Reservation: ref, ExpectedRevision: int64(f.only), UpdateMask: &fieldmaskpb.FieldMask{}}
	add := func(field string) { req.UpdateMask.Paths = append(req.UpdateMask.Paths, field) }
	if cmd.Flags().Changed("name") {
		req.Name = f.name
		add("name")
	}
	labels, err := parseLabels(f.labels)
	if err != nil {
		return nil, err
	}
	for _, key := range f.remove {
		if _, both := labels[key]; both {
			return nil, usagef("label %q is given and taken away; say one of the two", key)
		}
	}
	if len(f.labels)+len(f.remove) > 0 {
		req.Labels = labels
		add("labels")
	}
	switch {
	case f.noLease && f.lease != "":
		return nil, usagef("--lease and --no-lease exclude each other")
	case cmd.Flags().Changed("lease") && f.lease == "":
		return nil, usagef("--lease is empty; --no-lease keeps a reservation until it is released")
	case f.noLease || f.lease != "":
		req.LeaseId = f.lease
		add("lease_id")
	}
	if len(req.GetUpdateMask().GetPaths()) == 0 {
		return nil, usagef("nothing to change: say --name, --label, --remove-label, --lease or --no-lease")
	}
	return req, nil
}

func (c *ctl) set(ctx context.Context, req *pb.UpdateReservationRequest, f setFlags) error {
	cl, err := c.dial(ctx)
	if err != nil {
		return err
	}
	defer cl.Close()
	ref, labels := req.GetReservation(), req.GetLabels()
	for {
		if len(f.labels)+len(f.remove) > 0 {
			if err := addLabels(ctx, cl, req, ref, labels, f); err != nil {
				return err
			}
		}
		answer, err := cl.Reservations.UpdateReservation(ctx, req)
		switch {
		case err == nil:
			return c.printAnswer(answer, answer.GetReservation())
		case errors.Is(err, client.ErrConflict) && f.only == 0:
			continue // somebody came between; their labels stay, too
		}
		return setHint(err, ref, f)
	}
}

// addLabels fills in the labels that there will be, with the revision of those that there are.
func addLabels(ctx context.Context, cl *client.Client, req *pb.UpdateReservationRequest, ref string, labels map[string]string, f setFlags) error {
	answer, err := cl.Reservations.GetReservation(ctx, &pb.GetReservationRequest{Reservation: ref})
	if err != nil {
		return err
	}
	res := answer.GetReservation()
	all := maps.Clone(res.GetLabels())
	if all == nil {
		all = map[string]string{}
	}
	maps.Copy(all, labels)
	for _, key := range f.remove {
		delete(all, key)
	}
	req.Reservation, req.Labels = res.GetId(), all
	if f.only == 0 {
		req.ExpectedRevision = res.GetRevision()
	}
	return nil
}

// setHint says what to look at where a change is refused.
func setHint(err error, ref string, f setFlags) error {
	switch {
	case errors.Is(err, client.ErrTaken):
		return try(err, "portctl show "+shellWords(f.name))
	case errors.Is(err, client.ErrNotFound) && f.lease != "" && strings.HasPrefix(err.Error(), "lease "):
		return try(err, "portctl leases --mine")
	}
	return conflictHint(err, ref)
}
