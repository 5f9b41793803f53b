package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/portd/portd/client"
	pb "github.com/portd/portd/proto/portd/v1"
	"github.com/spf13/cobra"
)

func (c *ctl) showCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:               "show RESERVATION",
		Short:             "Show all of one reservation",
		Long:              "Show tells all of one reservation, named by its id, its name or an endpoint of it.",
		Example:           "  portctl show web\n  portctl show tcp 8080 -o json",
		Args:              wants(1, 2, "a reservation, by its id, its name or an endpoint,"),
		ValidArgsFunction: c.completeReservations,
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		cl, err := c.dial(cmd.Context())
		if err != nil {
			return err
		}
		defer cl.Close()
		answer, err := cl.Reservations.GetReservation(cmd.Context(), &pb.GetReservationRequest{Reservation: c.there([]string{strings.Join(args, " ")})[0]})
		switch {
		case err != nil:
			return err
		case c.json():
			return c.printJSON(answer.GetReservation())
		case c.quiet:
			_, err := fmt.Fprintln(c.out, answer.GetReservation().GetId())
			return err
		}
		res := answer.GetReservation()
		return c.printDetails(res, leaseEnds(cmd.Context(), cl, res), listening(cmd.Context(), cl, res))
	}
	c.netnsFlag(cmd)
	return cmd
}

// leaseEnds says what ends a reservation by itself, and when. Whose lease it is, is of no matter: whois says it to everybody.
func leaseEnds(ctx context.Context, cl *client.Client, res *pb.Reservation) string {
	if res.GetLeaseId() == "" || len(res.GetAssigned()) == 0 {
		return ""
	}
	ep := res.GetAssigned()[0].GetEndpoint()
	answer, err := cl.Ports.Whois(ctx, &pb.WhoisRequest{
		Query: &pb.WhoisRequest_Port{Port: ep.GetPorts().GetFirst()}, Protocol: ep.GetProtocol(), Netns: ep.GetNetns(),
	})
	i := slices.IndexFunc(answer.GetUses(), func(u *pb.PortUse) bool { return u.GetReservation().GetId() == res.GetId() })
	if err != nil || i < 0 {
		return untilText(res)
	}
	r := answer.GetUses()[i].GetReservation()
	return r.GetLease() + untilClause(r)
}

func (c *ctl) printDetails(res *pb.Reservation, ends string, listening map[string]*pb.Listener) error {
	t := c.table()
	t.row("id", res.GetId())
	t.row("name", res.GetName())
	t.row("owner", ownerText(res.GetOwner()))
	t.row("mode", word(res.GetSpec().GetMode()))
	for _, a := range res.GetAssigned() {
		t.row("endpoint", a.GetEndpoint().GetText()+"  "+word(a.GetState()))
		if l := listening[a.GetEndpoint().GetText()]; l != nil {
			t.row("listens with", optionsText(l.GetOptions()))
			t.row("hands over", handoffText(l.GetOptions().GetHandoff()))
			if text := receptionText(l.GetReception()); text != "" {
				t.row("clients", text)
			}
		}
		for _, ex := range exceptions(a) {
			t.row("", ex.ports+"  "+ex.state)
		}
		if a.GetState() != pb.EndpointState_ENDPOINT_STATE_RECORDED {
			continue
		}
		if who := holdersText(a.GetBoundBy()); who != "" {
			t.row("", who)
		} else {
			t.row("", "no program has bound it")
		}
	}
	if opt := bindOptions(res.GetSpec().GetBindOptions()); opt != "" {
		t.row("bound with", opt)
	}
	for _, k := range slices.Sorted(maps.Keys(res.GetLabels())) {
		t.row("label", k+"="+res.GetLabels()[k])
	}
	if res.GetLeaseId() != "" {
		t.row("lease", res.GetLeaseId()+"  "+ends)
	}
	t.row("created", fmt.Sprintf("%s  revision %d", full(res.GetCreateTime()), res.GetCreateRevision()))
	if res.GetRevision() != res.GetCreateRevision() {
		t.row("changed", fmt.Sprintf("revision %d", res.GetRevision()))
	}
	if err := t.flush(); err != nil {
		return err
	}
	told := map[string]bool{}
	for _, a := range res.GetAssigned() {
		for _, h := range a.GetBoundBy() {
			if why := h.GetHidden(); why != "" && !told[why] {
				told[why] = true
				c.say("%s", why)
			}
		}
	}
	return nil
}

func ownerText(principal string) string {
	if name := ownerName(principal); name != principal {
		return name + " (" + principal + ")"
	}
	return principal
}

// listening are the options of what listens of a reservation as the kernel has them, by the endpoint; of what has just stopped, none.
func listening(ctx context.Context, cl *client.Client, res *pb.Reservation) map[string]*pb.Listener {
	have := map[string]*pb.Listener{}
	if !slices.ContainsFunc(res.GetAssigned(), func(a *pb.AssignedEndpoint) bool { return a.GetListenOptions() != nil }) {
		return have
	}
	req := &pb.ListListenersRequest{Reservation: res.GetId()}
	_ = pages(func(token string) (string, error) {
		req.PageToken = token
		page, err := cl.Handoff.ListListeners(ctx, req)
		for _, l := range page.GetListeners() {
			have[l.GetEndpoint().GetText()] = l
		}
		return page.GetNextPageToken(), err
	})
	return have
}

func bindOptions(o *pb.BindOptions) string {
	var on []string
	for _, opt := range []struct {
		name string
		is   bool
	}{{"freebind", o.GetFreebind()}, {"transparent", o.GetTransparent()}, {"mptcp", o.GetMptcp()}} {
		if opt.is {
			on = append(on, opt.name)
		}
	}
	if n := o.GetGroup(); n != 0 {
		on = append(on, fmt.Sprintf("a group of %d sockets", n))
	}
	if mode := o.GetFileMode(); mode != 0 {
		on = append(on, fmt.Sprintf("file mode %04o", mode))
	}
	return strings.Join(on, ", ")
}
