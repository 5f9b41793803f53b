package main

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"strings"

	"github.com/portd/portd/client"
	"github.com/portd/portd/internal/ianadb"
	"github.com/portd/portd/internal/registry"
	pb "github.com/portd/portd/proto/portd/v1"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"google.golang.org/protobuf/proto"
)

const serviceHelp = `Service keeps this host's own names for ports, over those of the IANA registry. They win
wherever portd is asked for a name or a port: by portctl whois and search, by
portctl reserve tcp/NAME, and in what portctl services writes. They stay when another
edition of the registry is imported. Changes are for root and the user that portd runs as.`

// serviceCommand is a noun with verbs of its own.
func (c *ctl) serviceCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "service",
		Short: "Keep this host's own services",
		Long:  serviceHelp,
		Example: `  portctl service add myapp 8123/tcp --description "What I work on"
  portctl service edit myapp --port 8124
  portctl service list
  portctl service remove myapp`,
		RunE: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usagef("%q is not what can be done with a service: add, edit, remove, list", args[0])
			}
			return usagef("what is to be done: add, edit, remove or list?")
		},
	}
	cmd.AddCommand(c.serviceAddCommand(), c.serviceEditCommand(), c.serviceRemoveCommand(), c.serviceListCommand())
	return cmd
}

// serviceFlags are the cells of an entry, by the names of their flags.
type serviceFlags struct {
	description, assignee, contact, reference, notes string
	override                                         bool
}

func (f *serviceFlags) add(flags *pflag.FlagSet) {
	flags.StringVar(&f.description, "description", "", "what it is, in a line")
	flags.StringVar(&f.assignee, "assignee", "", "whose it is")
	flags.StringVar(&f.contact, "contact", "", "who answers for it")
	flags.StringVar(&f.reference, "reference", "", "where it is described: a `URL`, an RFC")
	flags.StringVar(&f.notes, "notes", "", "whatever else is to be known")
	flags.BoolVar(&f.override, "override", false, "win over others with the same name or port")
}

func (f *serviceFlags) fill(e *pb.ServiceEntry) {
	e.Description, e.Assignee, e.Contact, e.Reference, e.Notes = f.description, f.assignee, f.contact, f.reference, f.notes
}

// parsePlaces reads "8123/tcp,udp", "tcp 8123", "8000-8010/udp": an entry each for every protocol.
func parsePlaces(name string, texts []string) (entries []*pb.ServiceEntry, err error) {
	for _, text := range texts {
		ports, protos, err := parsePlace(text)
		switch {
		case err != nil:
			return nil, err
		case ports == nil:
			return nil, usagef("%s: which port? write %s", text, "8123/"+text)
		case len(protos) == 0:
			return nil, usagef("%s: which protocol? write %s/tcp, or %s/tcp,udp", text, text, text)
		}
		for _, p := range protos {
			e := &pb.ServiceEntry{Name: name, Ports: ports, Protocol: p}
			if !slices.ContainsFunc(entries, func(o *pb.ServiceEntry) bool { return proto.Equal(o, e) }) {
				entries = append(entries, e)
			}
		}
	}
	return entries, nil
}

// parsePlace reads ports, protocols, or both.
func parsePlace(text string) (ports *pb.PortRange, protos []pb.Protocol, err error) {
	words, rest := registry.SplitProtocol(text)
	if words == "" && isProtocols(text) {
		words, rest = text, ""
	}
	if words != "" {
		for w := range strings.SplitSeq(words, ",") {
			p, ok := serviceProtocols[strings.ToLower(w)]
			if !ok {
				return nil, nil, usagef("%s: a service is for tcp, udp, sctp or dccp, not for %s", text, w)
			}
			protos = append(protos, p)
		}
	}
	if rest == "" {
		return nil, protos, nil
	}
	digits, other, _ := strings.Cut(rest, "/")
	switch {
	case digits == "" || digits[0] < '0' || digits[0] > '9':
		return nil, nil, usagef("%q is not a port and protocol like 8123/tcp, 8123/tcp,udp or 8000-8010/udp", text)
	case other != "":
		return nil, nil, usagef("%s: a service is for tcp, udp, sctp or dccp, not for %s", text, other)
	}
	ports, err = parseServicePorts(rest)
	return ports, protos, err
}

// parseServicePorts reads "8123" or "8000-8010".
func parseServicePorts(text string) (*pb.PortRange, error) {
	from, to, isRange := strings.Cut(text, "-")
	if !isRange {
		to = from
	}
	first, err := strconv.ParseUint(from, 10, 16)
	last, lastErr := strconv.ParseUint(to, 10, 16)
	switch {
	case err != nil || lastErr != nil || first == 0 || last == 0:
		return nil, usagef("%q is not a port, 1 to 65535, nor a range of ports like 8000-8010", text)
	case first > last:
		return nil, usagef("%s runs backwards; write %d-%d", text, last, first)
	}
	return &pb.PortRange{First: uint32(first), Last: uint32(last)}, nil
}

// serviceProtocols are those that the registry knows. UDP-Lite has the ports of UDP (RFC 3828 section 3.1).
var serviceProtocols = map[string]pb.Protocol{
	"tcp": pb.Protocol_PROTOCOL_TCP, "udp": pb.Protocol_PROTOCOL_UDP, "sctp": pb.Protocol_PROTOCOL_SCTP, "dccp": pb.Protocol_PROTOCOL_DCCP,
}

// serviceHint says what to do where a service cannot be changed.
func serviceHint(err error, cmd *cobra.Command, args []string) error {
	why := (*client.Error)(nil)
	switch {
	case errors.As(err, &why) && why.Reason == "SERVICE_CLASH":
		return try(err, again(cmd, args, "--override"))
	case errors.Is(err, client.ErrTaken) && cmd.Name() == "add" && saysWords(cmd): // by an entry of the same name and port, with others
		return try(err, strings.Replace(again(cmd, args[:1]), " add ", " edit ", 1))
	case errors.Is(err, client.ErrTaken):
		return try(err, "portctl service list")
	case errors.Is(err, client.ErrDenied):
		return try(err, sudo(cmd, args))
	case errors.Is(err, client.ErrNotFound):
		return try(err, "portctl service list")
	case errors.Is(err, client.ErrInvalid) && why != nil:
		return inFlags(why, cmd)
	}
	return err
}

// saysWords says whether a command line has a text for a cell, which edit can have as well.
func saysWords(cmd *cobra.Command) bool {
	return slices.ContainsFunc([]string{"description", "assignee", "contact", "reference", "notes"}, cmd.Flags().Changed)
}

// inFlags says of which flag portd speaks where it names a field of the API: "services[0].notes" is --notes,
// "options.keep_alive_idle" is --keep-alive-idle.
func inFlags(why *client.Error, cmd *cobra.Command) error {
	field := why.Metadata["field"]
	text, named := strings.CutPrefix(why.Error(), field+": ")
	name := strings.ReplaceAll(field[strings.LastIndexByte(field, '.')+1:], "_", "-")
	if !named || field == "" || !cmd.Flags().Changed(name) {
		return why
	}
	return usagef("--%s: %s", name, text)
}

// checkServiceName says which rule a new name breaks, before portd is asked.
func checkServiceName(name string) error {
	if err := ianadb.CheckName(name); err != nil {
		return usagef("%v", err)
	}
	return nil
}

// placesText is where a service is, protocols of the same ports together: "8123/tcp,udp".
func placesText(entries []*pb.ServiceEntry) string {
	var places []string
	for i := 0; i < len(entries); {
		protos, ports := []string{protoWord(entries[i].GetProtocol())}, portsText(entries[i].GetPorts())
		for i++; i < len(entries) && portsText(entries[i].GetPorts()) == ports; i++ {
			protos = append(protos, protoWord(entries[i].GetProtocol()))
		}
		places = append(places, ports+"/"+strings.Join(protos, ","))
	}
	return strings.Join(places, " and ")
}

// completeOwn offers the names of this host's own services, and after a name its ports.
func (c *ctl) completeOwn(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
	ctx, cancel := context.WithTimeout(cmd.Context(), completionPatience)
	defer cancel()
	cl, err := c.dial(ctx)
	if err != nil || len(args) > 1 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	defer cl.Close()
	page, err := cl.Services.ListServices(ctx, &pb.ListServicesRequest{Source: pb.EntrySource_ENTRY_SOURCE_HOST, PageSize: 1000})
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var out []string
	for _, e := range page.GetServices() {
		word, about := e.GetName(), placeText(e.GetPorts(), e.GetProtocol())
		if len(args) == 1 {
			if !strings.EqualFold(e.GetName(), args[0]) {
				continue
			}
			word, about = about, e.GetDescription()
		}
		if strings.HasPrefix(word, prefix) {
			out = append(out, cobra.CompletionWithDesc(word, oneLine(about)))
		}
	}
	return out, cobra.ShellCompDirectiveNoFileComp
}
