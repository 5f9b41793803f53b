package main

import (
	"context"
	"fmt"
	"slices"
	"strings"

	pb "github.com/portd/portd/proto/portd/v1"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
)

const serviceAddHelp = `Add gives ports a name on this host, all that are listed or none. The name follows
RFC 6335: 1 to 15 letters, digits and hyphens, at least one letter, no hyphen at either
end or beside another. A name or a port that IANA, or this host, has given to another
service is refused, unless --override says that the host's own is to win. Adding what is
there already changes nothing. With -q the name alone is printed.`

func (c *ctl) serviceAddCommand() *cobra.Command {
	var f serviceFlags
	cmd := &cobra.Command{
		Use:   "add NAME PORT/PROTOCOL[,PROTOCOL]…",
		Short: "Give ports a name on this host",
		Long:  serviceAddHelp,
		Example: `  portctl service add myapp 8123/tcp --description "What I work on"
  portctl service add metrics 8810-8812/tcp 8810/udp --contact ops@example.org
  portctl service add http 8080/tcp --override`,
		Args:              wants(2, many, "a name and ports like 8123/tcp"),
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := checkServiceName(args[0]); err != nil {
			return err
		}
		entries, err := parsePlaces(args[0], words(args[1:]))
		if err != nil {
			return err
		}
		for _, e := range entries {
			f.fill(e)
		}
		return serviceHint(c.addServices(cmd.Context(), entries, f.override), cmd, args)
	}
	f.add(cmd.Flags())
	return cmd
}

func (c *ctl) addServices(ctx context.Context, entries []*pb.ServiceEntry, override bool) error {
	cl, err := c.dial(ctx)
	if err != nil {
		return err
	}
	defer cl.Close()
	answer, err := cl.Services.AddServices(ctx, &pb.AddServicesRequest{Services: entries, Override: override})
	if err != nil {
		return err
	}
	return c.printServices(answer, answer.GetServices(), answer.GetOverridden(), "is %s here", true)
}

const serviceEditHelp = `Edit changes services of this host's own: all entries of a name, or those of one port
or protocol. What no flag names stays as it is; an empty text takes a cell's content away.
IANA's own entries are not edited: add one of the host's own over them.`

func (c *ctl) serviceEditCommand() *cobra.Command {
	var f serviceFlags
	var port, name string
	cmd := &cobra.Command{
		Use:   "edit NAME [PORT/PROTOCOL]",
		Short: "Change a service of this host's own",
		Long:  serviceEditHelp,
		Example: `  portctl service edit myapp --description "What we work on"
  portctl service edit myapp 8123/tcp --port 8124
  portctl service edit myapp --name ourapp`,
		Args:              wants(1, 3, "the name of a service"),
		ValidArgsFunction: c.completeOwn,
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		req := &pb.EditServicesRequest{Name: args[0], Service: &pb.ServiceEntry{}, UpdateMask: &fieldmaskpb.FieldMask{}, Override: f.override}
		f.fill(req.Service)
		for flag, field := range map[string]string{
			"port": "ports", "name": "name", "description": "description", "assignee": "assignee", "contact": "contact",
			"reference": "reference", "notes": "notes",
		} {
			if cmd.Flags().Changed(flag) {
				req.UpdateMask.Paths = append(req.UpdateMask.Paths, field)
			}
		}
		slices.Sort(req.UpdateMask.Paths)
		var err error
		if req.Ports, req.Protocol, err = parseSelector(args[1:]); err != nil {
			return err
		}
		if len(req.UpdateMask.Paths) == 0 {
			return usagef("what is to change? --port, --name, --description, --assignee, --contact, --reference or --notes says it")
		}
		if cmd.Flags().Changed("name") {
			if err := checkServiceName(name); err != nil {
				return err
			}
			req.Service.Name = name
		}
		if cmd.Flags().Changed("port") {
			if req.Service.Ports, err = parseServicePorts(port); err != nil {
				return usagef("--port %v", err)
			}
		}
		return serviceHint(c.editServices(cmd.Context(), req), cmd, args)
	}
	f.add(cmd.Flags())
	cmd.Flags().StringVar(&port, "port", "", "the new `port`, or ports like 8000-8009")
	cmd.Flags().StringVar(&name, "name", "", "the new name")
	return cmd
}

// parseSelector reads which entries of a name are meant: "8123/tcp", "tcp 8123", "8123" or "tcp"; with nothing all.
func parseSelector(args []string) (*pb.PortRange, pb.Protocol, error) {
	if len(args) == 0 {
		return nil, 0, nil
	}
	text := strings.Join(args, " ")
	ports, protos, err := parsePlace(text)
	switch {
	case err != nil && !strings.ContainsAny(text, "0123456789/"): // another name, likely
		return nil, 0, usagef("%q is not a port and protocol like 8123/tcp; one service at a time", text)
	case err != nil:
		return nil, 0, err
	case len(protos) > 1:
		return nil, 0, usagef("%s: name one protocol, or none for all", text)
	case len(protos) == 0:
		return ports, 0, nil
	}
	return ports, protos[0], nil
}

func (c *ctl) editServices(ctx context.Context, req *pb.EditServicesRequest) error {
	cl, err := c.dial(ctx)
	if err != nil {
		return err
	}
	defer cl.Close()
	answer, err := cl.Services.EditServices(ctx, req)
	if err != nil {
		return err
	}
	return c.printServices(answer, answer.GetServices(), answer.GetOverridden(), "is %s here", true)
}

const serviceRemoveHelp = `Remove takes services of this host's own away: all entries of a name, or those of one
port or protocol. What IANA says of them answers again. Reservations stay as they are.`

func (c *ctl) serviceRemoveCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:               "remove NAME [PORT/PROTOCOL]",
		Short:             "Take a service of this host's own away",
		Long:              serviceRemoveHelp,
		Example:           "  portctl service remove myapp 8123/udp\n  portctl service remove myapp",
		Args:              wants(1, 3, "the name of a service"),
		ValidArgsFunction: c.completeOwn,
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		req := &pb.RemoveServicesRequest{Name: args[0]}
		var err error
		if req.Ports, req.Protocol, err = parseSelector(args[1:]); err != nil {
			return err
		}
		return serviceHint(c.removeServices(cmd.Context(), req), cmd, args)
	}
	return cmd
}

func (c *ctl) removeServices(ctx context.Context, req *pb.RemoveServicesRequest) error {
	cl, err := c.dial(ctx)
	if err != nil {
		return err
	}
	defer cl.Close()
	answer, err := cl.Services.RemoveServices(ctx, req)
	if err != nil {
		return err
	}
	return c.printServices(answer, answer.GetServices(), nil, "is no longer %s here", false)
}

// printServices prints the entries that a call changed, and says what they do now. What they override is said with -q too:
// another service lost a name or a port by it.
func (c *ctl) printServices(answer proto.Message, entries []*pb.ServiceEntry, overridden []string, what string, there bool) error {
	switch {
	case c.json():
		return c.printJSON(answer)
	case c.quiet:
		c.printNames(entries)
	default:
		t := c.table()
		for _, e := range entries {
			t.row(placeText(e.GetPorts(), e.GetProtocol()), oneLine(e.GetName()), oneLine(e.GetDescription()))
		}
		if err := t.flush(); err != nil {
			return err
		}
	}
	if err := c.out.Flush(); err != nil {
		return err
	}
	for _, o := range overridden {
		fmt.Fprintf(c.stderr, "portctl: overridden: %s\n", oneLine(o))
	}
	if len(entries) == 0 {
		return nil
	}
	name := oneLine(entries[0].GetName())
	text := fmt.Sprintf("%s "+what, name, placesText(entries))
	if there {
		text += ": portctl whois " + name
		if only(entries) {
			text += fmt.Sprintf(", portctl reserve %s/%s", protoWord(entries[0].GetProtocol()), name)
		}
	}
	c.say("%s", text)
	return nil
}

// only says whether the first of entries is a single port, and the only one of its protocol: what can be reserved by name.
func only(entries []*pb.ServiceEntry) bool {
	n := 0
	for _, e := range entries {
		if e.GetProtocol() == entries[0].GetProtocol() {
			n += int(e.GetPorts().GetLast()-e.GetPorts().GetFirst()) + 1
		}
	}
	return n == 1
}

// printNames prints each name once.
func (c *ctl) printNames(entries []*pb.ServiceEntry) {
	seen := map[string]bool{}
	for _, e := range entries {
		if !seen[e.GetName()] {
			seen[e.GetName()] = true
			fmt.Fprintln(c.out, oneLine(e.GetName()))
		}
	}
}
