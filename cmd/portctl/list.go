package main

import (
	"context"
	"slices"
	"strings"

	"github.com/portd/portd/client"
	"github.com/portd/portd/internal/registry"
	pb "github.com/portd/portd/proto/portd/v1"
	"github.com/spf13/cobra"
)

const listHelp = `List shows the reservations of this host, an endpoint on a line, in the order in which
they were made. A protocol and a range of ports narrow it. A port that should be held
and is not has a line of its own that says who has it. With -q the ids alone.

` + freeHelp + `

` + foreignHelp + `

With -o json the API's answer, all pages in one.`

type listFlags struct {
	owner  string
	mine   bool
	labels []string
	states []string
}

func (c *ctl) listCommand() *cobra.Command {
	var (
		f                    listFlags
		free                 freeFlags
		foreign, connections bool
	)
	cmd := &cobra.Command{
		Use:   "list [PROTOCOL] [PORTS]",
		Short: "List reservations, free ports, or every bound port",
		Long:  listHelp,
		Example: `  portctl list
  portctl list tcp 8000-8999
  portctl list --mine --label team=web
  portctl list --state lost
  portctl list --free tcp
  portctl list --free --both 8000-9999
  portctl list -q --free tcp,udp --count 10
  portctl list --foreign
  portctl list --foreign tcp 8000-8999
  portctl list --foreign --netns blue`,
		Args:              wants(0, 2, ""),
		ValidArgsFunction: completeProtocols,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := notTogether(cmd, free.free, foreign); err != nil {
				return err
			}
			switch {
			case free.free:
				return c.listFree(cmd.Context(), args, free, cmd.Flags().Changed("count"))
			case foreign:
				return c.listForeign(cmd.Context(), args, connections)
			}
			return c.list(cmd.Context(), args, f)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&f.owner, "owner", "", "only this `user`'s: a name, a uid, or a principal like uid:1000")
	flags.BoolVar(&f.mine, "mine", false, "only your own")
	flags.StringArrayVar(&f.labels, "label", nil, "only with this label, `key=value`; may be repeated")
	flags.StringSliceVar(&f.states, "state", nil, "only with an endpoint that is held, listening, recorded or lost; may be repeated")
	_ = cmd.RegisterFlagCompletionFunc("state", cobra.FixedCompletions(states, cobra.ShellCompDirectiveNoFileComp))
	flags.BoolVar(&free.free, "free", false, "list free ports")
	flags.BoolVar(&free.both, "both", false, "with --free: for tcp and udp")
	flags.IntVar(&free.count, "count", 0, "with --free: only the first `N` ports in a row")
	flags.BoolVar(&free.all, "all", false, "with --free: all of them, in order")
	flags.BoolVar(&foreign, "foreign", false, "list every bound port, portd's or not")
	c.netnsFlag(cmd)
	flags.BoolVar(&connections, "connections", false, "with --foreign: the local ports of connections too")
	return cmd
}

// notTogether says which flags are of another one of list's three questions.
func notTogether(cmd *cobra.Command, free, foreign bool) error {
	if free && foreign {
		return usagef("--free and --foreign: it is one or the other")
	}
	asked := ""
	switch {
	case free:
		asked = "--free lists free ports"
	case foreign:
		asked = "--foreign lists bound ports"
	}
	for _, name := range []string{"owner", "mine", "label", "state"} {
		if cmd.Flags().Changed(name) && asked != "" {
			return usagef("--%s is about reservations, and %s", name, asked)
		}
	}
	for _, name := range []string{"both", "count", "all"} {
		if cmd.Flags().Changed(name) && !free {
			return usagef("--%s goes with --free", name)
		}
	}
	if cmd.Flags().Changed("connections") && !foreign {
		return usagef("--connections goes with --foreign")
	}
	return nil
}

var states = []string{"held", "listening", "recorded", "lost"}

func (c *ctl) list(ctx context.Context, args []string, f listFlags) error {
	if f.mine && f.owner != "" {
		return usagef("--mine and --owner say whose; say it once")
	}
	filter, err := f.toFilter(args)
	if err != nil {
		return err
	}
	filter.Netns = c.netns
	cl, err := c.dial(ctx)
	if err != nil {
		return err
	}
	defer cl.Close()
	if f.mine {
		st, err := cl.Daemon.GetStatus(ctx, &pb.GetStatusRequest{})
		if err != nil {
			return err
		}
		filter.Owner = st.GetCaller()
	}
	all, err := listAll(ctx, cl, filter)
	if err != nil || c.json() {
		return c.jsonUnless(err, all)
	}
	t := c.listing(len(all.GetReservations()), "ENDPOINT", "STATE", "OWNER", "SINCE", "UNTIL", "NAME", "ID")
	for _, res := range all.GetReservations() {
		if c.quiet {
			t.row(res.GetId())
			continue
		}
		owner, since, until := ownerName(res.GetOwner()), when(res.GetCreateTime()), untilText(res)
		for _, a := range res.GetAssigned() {
			t.row(a.GetEndpoint().GetText(), word(a.GetState()), owner, since, until, res.GetName(), res.GetId())
			for _, ex := range exceptions(a) {
				t.remark("  " + ex.ports + "  " + ex.state)
			}
		}
	}
	return t.flush()
}

// listAll is all pages as one answer.
func listAll(ctx context.Context, cl *client.Client, filter *pb.ReservationFilter) (*pb.ListReservationsResponse, error) {
	all, req := &pb.ListReservationsResponse{}, &pb.ListReservationsRequest{Filter: filter}
	err := pages(func(token string) (string, error) {
		req.PageToken = token
		page, err := cl.Reservations.ListReservations(ctx, req)
		if err != nil {
			return "", err
		}
		all.Reservations = append(all.Reservations, page.GetReservations()...)
		all.Revision, all.StoreId = page.GetRevision(), page.GetStoreId()
		return page.GetNextPageToken(), nil
	})
	return all, err
}

func (f listFlags) toFilter(args []string) (*pb.ReservationFilter, error) {
	filter := &pb.ReservationFilter{}
	for _, a := range args {
		if a == "" {
			return nil, usagef("an argument is empty")
		}
		if p, ok := parseProtocol(a); ok && filter.GetProtocol() == 0 {
			filter.Protocol = p
			continue
		}
		if protos, rest := registry.SplitProtocol(a); protos != "" && len(args) == 1 {
			return f.toFilter([]string{protos, rest})
		}
		ports, err := parseRange(a)
		switch {
		case filter.GetPorts() != nil || a[0] < '0' || a[0] > '9':
			return nil, usagef("%q is neither a protocol nor ports like 8080 or 8000-8999", a)
		case err != nil:
			return nil, err
		}
		filter.Ports = ports
	}
	for _, s := range f.states {
		i := slices.Index(states, s)
		if i < 0 {
			return nil, usagef("--state %s: known are %s", s, strings.Join(states, ", "))
		}
		filter.States = append(filter.States, pb.EndpointState(i+1))
	}
	var err error
	if filter.Labels, err = parseLabels(f.labels); err != nil {
		return nil, err
	}
	if f.owner != "" {
		filter.Owner, err = ownerOf(f.owner)
	}
	return filter, err
}

// An exception is ports of an endpoint that are not as the rest, in words.
type exception struct{ ports, state string }

func exceptions(a *pb.AssignedEndpoint) (out []exception) {
	for _, ex := range a.GetExceptions() {
		state, which := word(ex.GetState()), portsText(ex.GetPorts())
		if a.GetEndpoint().GetPath() != "" {
			which = "the path" // has no ports
		}
		if who := holdersText(ex.GetHolders()); who != "" {
			state += ": " + who
		}
		out = append(out, exception{which, state})
	}
	return out
}
