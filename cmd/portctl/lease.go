package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/portd/portd/client"
	pb "github.com/portd/portd/proto/portd/v1"
	"github.com/spf13/cobra"
)

const renewHelp = `Renew gives a lease its whole time to live again, from now on, and with it all the
reservations that it carries. It is named by its id or by one of them. A lease that has
ended is not found: what it carried was given back.

What a lease lives by is the time that the host has been up, suspended or not. After
portd was down every lease has its whole time again.`

func (c *ctl) renewCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "renew LEASE|RESERVATION…",
		Short: "Give a lease its whole time again",
		Long:  renewHelp,
		Example: `  portctl reserve tcp 8080 --name web --ttl 10m
  portctl renew web
  portctl renew lse_0123456789abcdefghij`,
		Args:              wants(1, many, "a lease, or a reservation that has one,"),
		ValidArgsFunction: c.completeReservations,
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return c.each(cmd.Context(), words(args), func(cl *client.Client, ref string) error {
			id, err := leaseOf(cmd.Context(), cl, ref)
			if err != nil {
				return err
			}
			answer, err := cl.Leases.RenewLease(cmd.Context(), &pb.RenewLeaseRequest{LeaseId: id})
			switch {
			case err != nil:
				return try(err, "portctl leases")
			case c.json():
				return c.printJSON(answer)
			case c.quiet:
				_, err = fmt.Fprintln(c.out, id)
				return err
			}
			t := c.table()
			t.row(id, endsText(answer.GetLease()))
			return t.flush()
		})
	}
	return cmd
}

// leaseOf is the lease that people mean by its id or by a reservation that it carries.
func leaseOf(ctx context.Context, cl *client.Client, ref string) (string, error) {
	if isLease(ref) {
		return ref, nil
	}
	answer, err := cl.Reservations.GetReservation(ctx, &pb.GetReservationRequest{Reservation: ref})
	if err != nil {
		return "", err
	}
	if answer.GetReservation().GetLeaseId() == "" {
		return "", usagef("%s has no lease: it stays until it is released", ref)
	}
	return answer.GetReservation().GetLeaseId(), nil
}

func isLease(ref string) bool { return strings.HasPrefix(ref, "lse_") }

const leasesHelp = `Leases shows what ends reservations by itself: when, whose it is, and which reservations
go with it. With -q the ids alone. "portctl release LEASE" ends one at once.`

func (c *ctl) leasesCommand() *cobra.Command {
	var mine bool
	cmd := &cobra.Command{
		Use:     "leases",
		Short:   "List what ends reservations by itself",
		Long:    leasesHelp,
		Example: "  portctl leases\n  portctl leases --mine -q",
		Args:    wants(0, 0, ""),
	}
	cmd.Flags().BoolVar(&mine, "mine", false, "only your own")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cl, err := c.dial(cmd.Context())
		if err != nil {
			return err
		}
		defer cl.Close()
		req := &pb.ListLeasesRequest{}
		if mine {
			st, err := cl.Daemon.GetStatus(cmd.Context(), &pb.GetStatusRequest{})
			if err != nil {
				return err
			}
			req.Owner = st.GetCaller()
		}
		all, err := listLeases(cmd.Context(), cl, req)
		if err != nil || c.json() {
			return c.jsonUnless(err, all)
		}
		return c.printLeases(cmd.Context(), cl, all.GetLeases())
	}
	return cmd
}

// listLeases is all pages as one answer.
func listLeases(ctx context.Context, cl *client.Client, req *pb.ListLeasesRequest) (*pb.ListLeasesResponse, error) {
	all := &pb.ListLeasesResponse{}
	err := pages(func(token string) (string, error) {
		req.PageToken = token
		page, err := cl.Leases.ListLeases(ctx, req)
		if err != nil {
			return "", err
		}
		all.Leases = append(all.Leases, page.GetLeases()...)
		all.Revision, all.StoreId = page.GetRevision(), page.GetStoreId()
		return page.GetNextPageToken(), nil
	})
	return all, err
}

func (c *ctl) printLeases(ctx context.Context, cl *client.Client, leases []*pb.Lease) error {
	t := c.listing(len(leases), "LEASE", "ENDS", "OWNER", "SINCE", "CARRIES")
	carries := map[string][]string{}
	if !c.quiet && len(leases) > 0 {
		all, err := listAll(ctx, cl, nil)
		if err != nil {
			return err
		}
		for _, res := range all.GetReservations() {
			carries[res.GetLeaseId()] = append(carries[res.GetLeaseId()], nameOrID(res))
		}
	}
	for _, l := range leases {
		if c.quiet {
			t.row(l.GetId())
			continue
		}
		t.row(l.GetId(), endsText(l), ownerName(l.GetOwner()), when(l.GetCreateTime()), strings.Join(carries[l.GetId()], ", "))
	}
	return t.flush()
}

// endsText says when a lease ends.
func endsText(l *pb.Lease) string {
	if l.GetExpireTime() != nil {
		return full(l.GetExpireTime())
	}
	if p := l.GetSpec().GetProcess(); p != nil {
		return fmt.Sprintf("with process %d", p.GetPid())
	}
	return "with its session"
}

// forText says for how long a lease is.
func forText(s *pb.LeaseSpec) string {
	switch {
	case s.GetTtl() != nil:
		return "for " + s.GetTtl().AsDuration().String()
	case s.GetProcess() != nil:
		return fmt.Sprintf("for process %d", s.GetProcess().GetPid())
	}
	return "for a session"
}

// endLease ends a lease with all that it carries.
func (c *ctl) endLease(ctx context.Context, cl *client.Client, id, request string) error {
	answer, err := cl.Leases.EndLease(ctx, &pb.EndLeaseRequest{LeaseId: id, RequestId: request})
	switch {
	case err != nil:
		return try(err, "portctl leases")
	case c.json():
		return c.printJSON(answer)
	}
	for _, res := range answer.GetReleased() {
		if err := c.printChanged(res, "released"); err != nil {
			return err
		}
	}
	c.say("%s has ended, with %s", id, count(len(answer.GetReleased()), "reservation"))
	return nil
}
