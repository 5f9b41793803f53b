package main

import (
	"fmt"

	pb "github.com/portd/portd/proto/portd/v1"
	"github.com/spf13/cobra"
)

// choiceFlags are what people may say about a port of portd's choice.
type choiceFlags struct {
	within, pool, prefer string
	count                int
}

func (c *ctl) choiceFlags(cmd *cobra.Command, f *choiceFlags) {
	flags := cmd.Flags()
	flags.StringVar(&f.within, "range", "", "where portd chooses from, `first-last` (with \"any\")")
	flags.StringVar(&f.pool, "pool", "", "`name` of the pool that portd chooses from (with \"any\")")
	flags.StringVar(&f.prefer, "prefer", "", "`port` or service to try before all others (with \"any\")")
	flags.IntVar(&f.count, "count", 1, "how many contiguous ports (with \"any\")")
	_ = cmd.RegisterFlagCompletionFunc("pool", c.completePools)
	_ = cmd.RegisterFlagCompletionFunc("prefer", func(_ *cobra.Command, _ []string, prefix string) ([]string, cobra.ShellCompDirective) {
		return serviceNames("", prefix), cobra.ShellCompDirectiveNoFileComp
	})
}

// put says in ports from where portd takes ports of its choice, and how many; ports is nil where the port is said.
func (f choiceFlags) put(endpoint string, ports *pb.AnyPorts) (err error) {
	switch {
	case ports == nil && f != (choiceFlags{count: 1}):
		return usagef("%s says which port; --range, --pool, --prefer and --count are for portd's choice, as in tcp/any", endpoint)
	case ports == nil:
		return nil
	case f.count < 1 || f.count > 65535:
		return usagef("--count %d is not a number of ports", f.count)
	}
	ports.Count, ports.Pool = uint32(f.count), f.pool
	if f.within != "" {
		if ports.Within, err = parseRange(f.within); err != nil {
			return err
		}
	}
	if f.prefer == "" {
		return nil
	}
	spec, err := parseSpec("tcp/" + f.prefer)
	ports.Prefer = nil
	switch exact := spec.GetExact(); {
	case err != nil || len(spec.GetAddresses()) > 0 || spec.GetNetns() != "":
	case spec.GetService() != "":
		ports.Prefer = &pb.AnyPorts_PreferService{PreferService: spec.GetService()}
	case exact != nil && exact.GetLast() == exact.GetFirst():
		ports.Prefer = &pb.AnyPorts_PreferPort{PreferPort: exact.GetFirst()}
	}
	if ports.Prefer == nil {
		return usagef("--prefer %q is neither a port nor the name of a service; with --count it is the first port", f.prefer)
	}
	return nil
}

// sayPassedOver tells why other ports were given than those that come first.
func (c *ctl) sayPassedOver(answer *pb.ReserveResponse) {
	_ = c.out.Flush()
	for _, p := range answer.GetPassedOver() {
		why := "asked for first"
		if p.GetPreference() == pb.Preference_PREFERENCE_NAME {
			why = fmt.Sprintf("what %q had before", answer.GetReservation().GetName())
		}
		c.say("not %s, %s: %s", portsText(p.GetPorts()), why, p.GetReason())
	}
}
