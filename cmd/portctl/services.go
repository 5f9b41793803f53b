package main

import (
	"context"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"

	"github.com/portd/portd/client"
	"github.com/portd/portd/internal/etcservices"
	"github.com/portd/portd/internal/ianadb"
	"github.com/portd/portd/internal/services"
	pb "github.com/portd/portd/proto/portd/v1"
	"github.com/spf13/cobra"
)

const servicesHelp = `Services writes the whole service registry, this host's own services first, for programs
that read files:

  services  an /etc/services, services(5), from which getservbyname(3) and
            getservbyport(3) answer as portd does
  csv       IANA's own form, byte for byte where the host has no services of its own
  json      a ServiceEntry of the API on a line; -o json is the same

An /etc/services has no place for what has no port or no name, nor for some names: on
standard error it is told how many entries that leaves out, and which names, a line each.
Nothing is written before all of it has been read; a shell empties the file behind > before
that, so write another one and move it. The same registry gives the same bytes.

Without a portd it is the registry that portctl can read by itself, and that is said.`

type servicesFlags struct {
	format, protocol string
	host             bool
}

func (c *ctl) servicesCommand() *cobra.Command {
	var f servicesFlags
	cmd := &cobra.Command{
		Use:   "services",
		Short: "Write the service registry as an /etc/services, CSV or JSON",
		Long:  servicesHelp,
		Example: `  portctl services > /etc/services.new && mv /etc/services.new /etc/services
  portctl services --format csv > service-names-port-numbers.csv
  portctl services --format json --protocol udp | jq -r .name
  portctl services --host`,
		Args:              wants(0, 0, ""),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if c.json() && f.format != "json" && cmd.Flags().Changed("format") {
				return usagef("-o json and --format %s: it is one or the other", f.format)
			}
			return c.services(cmd.Context(), f)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&f.format, "format", "services", "services, csv or json")
	flags.StringVar(&f.protocol, "protocol", "", "only what holds for this `protocol`: tcp, udp, sctp or dccp")
	flags.BoolVar(&f.host, "host", false, "only this host's own")
	_ = cmd.RegisterFlagCompletionFunc("format", cobra.FixedCompletions(serviceFormats, cobra.ShellCompDirectiveNoFileComp))
	_ = cmd.RegisterFlagCompletionFunc("protocol", cobra.FixedCompletions([]string{"tcp", "udp", "sctp", "dccp"}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

var serviceFormats = []string{"services", "csv", "json"}

func (c *ctl) services(ctx context.Context, f servicesFlags) error {
	req := &pb.ListServicesRequest{}
	if f.host {
		req.Source = pb.EntrySource_ENTRY_SOURCE_HOST
	}
	if f.protocol != "" {
		var ok bool
		if req.Protocol, ok = serviceProtocols[strings.ToLower(f.protocol)]; !ok {
			return usagef("--protocol %s: known are tcp, udp, sctp and dccp", f.protocol)
		}
	}
	if !slices.Contains(serviceFormats, f.format) {
		return usagef("--format %s: known are %s", f.format, strings.Join(serviceFormats, ", "))
	}
	s := c.openSource(ctx)
	defer s.close()
	all, err := s.list(ctx, req)
	if err != nil {
		return err
	}
	if s.alone() && f.host && len(all.GetServices()) == 0 {
		// An empty file would say that there are none.
		return fmt.Errorf("%w to say which services this host has of its own", client.ErrNoDaemon)
	}
	if c.json() || f.format == "json" {
		for _, e := range all.GetServices() {
			if err := c.printJSON(e); err != nil {
				return err
			}
		}
		return nil
	}
	own, iana, err := entriesOf(all.GetServices())
	if err != nil {
		return err
	}
	if f.format == "csv" {
		return ianadb.WriteCSV(c.out, slices.Values(slices.Concat(own, iana)))
	}
	report, err := etcservices.Write(c.out, slices.Values(own), slices.Values(iana), headOf(all, f, len(iana)))
	if err != nil {
		return err
	}
	if err := c.out.Flush(); err != nil {
		return err
	}
	c.sayReport(report)
	return nil
}

// list is all entries of one registry, portd's or the one that portctl reads itself.
func (s *source) list(ctx context.Context, req *pb.ListServicesRequest) (*pb.ListServicesResponse, error) {
	return allServices(req, func(req *pb.ListServicesRequest) (*pb.ListServicesResponse, error) {
		return ask(ctx, s, func(ctx context.Context) (*pb.ListServicesResponse, error) {
			return s.cl.Services.ListServices(ctx, req)
		}, func() (*pb.ListServicesResponse, error) { return services.List(s.own, req) })
	})
}

// entriesOf parts the API's entries into this host's own and IANA's, each as the registry has it.
func entriesOf(all []*pb.ServiceEntry) (own, iana []ianadb.Entry, err error) {
	for i, e := range all {
		entry, err := services.ToEntry(fmt.Sprintf("services[%d]", i), e)
		if err != nil {
			return nil, nil, fmt.Errorf("what portd lists cannot be written: %w", err)
		}
		entry.Port = e.GetPortNumber() // as it is written there: some ranges are one port wide
		if e.GetSource() == pb.EntrySource_ENTRY_SOURCE_HOST {
			own = append(own, entry)
		} else {
			iana = append(iana, entry)
		}
	}
	return own, iana, nil
}

// headOf is what the file says of the registry. The time is not among it, so that only a change of the registry makes
// another file.
func headOf(all *pb.ListServicesResponse, f servicesFlags, records int) etcservices.Head {
	head := etcservices.Head{Date: all.GetRegistryDate()}
	if !f.host && f.protocol == "" {
		head.Records = records
	}
	_, _ = hex.Decode(head.SHA256[:], []byte(all.GetRegistryDigest()))
	return head
}

// sayReport tells what is not in the file as it is in the registry.
func (c *ctl) sayReport(r *etcservices.Report) {
	for _, n := range r.Notes {
		c.say("%s", n)
	}
	own, iana := r.Own, r.IANA
	written, records := own.Written+iana.Written, own.Records()+iana.Records()
	text := fmt.Sprintf("%s of %s written, in %s", thousands(uint32(written)), count(records, "record"), count(own.Lines+iana.Lines, "line"))
	var out []string
	for _, n := range []struct {
		n    int
		what string
	}{
		{own.Unnamed + iana.Unnamed, "without a name"},
		{own.Portless + iana.Portless, "without a port"},
		{own.DeRegistered + iana.DeRegistered, "de-registered"},
		{own.Duplicate + iana.Duplicate, "said already"},
		{own.Bad + iana.Bad, "that services(5) cannot hold"},
	} {
		if n.n > 0 {
			out = append(out, thousands(uint32(n.n))+" "+n.what)
		}
	}
	if len(out) > 0 {
		text += "; left out: " + strings.Join(out, ", ")
	}
	c.say("%s", text)
}
