package main

import (
	"context"
	"strings"

	"github.com/portd/portd/client"
	pb "github.com/portd/portd/proto/portd/v1"
	"github.com/spf13/cobra"
)

const poolsHelp = `Pools shows where ports of portd's choice come from: the pools of its policy file
(portd-policy(5)), and "default", which portd has anyway. Each protocol of a pool has a
line: its ranges, how many ports may be chosen from them, how many of these are reserved
now or rest after a release, when they go to their last owner alone, how the pool draws
from its free ports, for how long they rest, and which kinds of ports it leaves out. A
NAME shows that pool alone. With -q the names alone.`

func (c *ctl) poolsCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "pools [NAME]",
		Short:   "List the pools that portd chooses ports from",
		Long:    poolsHelp,
		Example: "  portctl pools\n  portctl pools ci\n  portctl reserve tcp any --pool ci",
		Args:    wants(0, 1, ""),
	}
	cmd.ValidArgsFunction = func(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return c.completePools(cmd, args, prefix)
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		cl, err := c.dial(cmd.Context())
		if err != nil {
			return err
		}
		defer cl.Close()
		answer, err := cl.Ports.ListPools(cmd.Context(), &pb.ListPoolsRequest{Name: strings.Join(args, "")})
		if err != nil && len(args) > 0 {
			return try(err, "portctl pools")
		}
		if err != nil || c.json() {
			return c.jsonUnless(err, answer)
		}
		return c.printPools(answer)
	}
	return cmd
}

func (c *ctl) printPools(answer *pb.ListPoolsResponse) error {
	t := c.listing(len(answer.GetPools()), "POOL", "PROTOCOL", "SIZE", "RESERVED", "RESTING", "STRATEGY", "REST", "PORTS", "WITHOUT")
	for _, p := range answer.GetPools() {
		if c.quiet {
			t.row(p.GetName())
			continue
		}
		for _, ports := range p.GetPorts() {
			var ranges []string
			for _, r := range ports.GetRanges() {
				ranges = append(ranges, portsText(r))
			}
			t.row(p.GetName(), protoWord(ports.GetProtocol()), thousands(ports.GetSize()), thousands(ports.GetReserved()), thousands(ports.GetQuarantined()),
				p.GetStrategy(), p.GetQuarantine().AsDuration().String(), strings.Join(ranges, ","), strings.Join(ports.GetAvoid(), ","))
		}
	}
	if err := t.flush(); err != nil {
		return err
	}
	_ = c.out.Flush()
	if file := answer.GetPolicyFile(); file != "" {
		c.say("from %s", printable(file))
	} else {
		c.say("portd's own, for it has no policy file")
	}
	return nil
}

// completePools offers the names of the pools.
func (c *ctl) completePools(cmd *cobra.Command, _ []string, prefix string) (names []string, _ cobra.ShellCompDirective) {
	answer := quickly(cmd.Context(), c, func(ctx context.Context, cl *client.Client) (*pb.ListPoolsResponse, error) {
		return cl.Ports.ListPools(ctx, &pb.ListPoolsRequest{})
	})
	for _, p := range answer.GetPools() {
		if strings.HasPrefix(p.GetName(), prefix) {
			names = append(names, p.GetName())
		}
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

// policyRows say which policy file applies, and what is wrong with it now.
func policyRows(t table, p *pb.PolicyStatus) {
	switch {
	case p.GetLoadTime() != nil:
		t.row("policy", p.GetFile()+"  loaded "+full(p.GetLoadTime()))
	case p.GetFile() != "":
		t.row("policy", "portd's own; "+p.GetFile()+" is not there")
	default:
		t.row("policy", "portd's own")
	}
	for line := range strings.Lines(p.GetError()) {
		t.row("policy", "not reloaded at "+full(p.GetErrorTime())+": "+strings.TrimSpace(line))
	}
}
