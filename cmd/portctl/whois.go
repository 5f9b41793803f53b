package main

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"time"

	"github.com/portd/portd/client"
	"github.com/portd/portd/internal/registry"
	pb "github.com/portd/portd/proto/portd/v1"
	"github.com/spf13/cobra"
)

const whoisHelp = `Whois says what the IANA registry has a port or a service name for, and who has
the port on this host now. Without a portd the registry's part is answered from the
copy inside portctl.

That IANA has assigned a port says nothing about what really listens there; that it
has not does not make the port yours. "here" is what really is: reservations, and
sockets of other programs as far as you may see them.

A port always has an answer; a name that the registry does not have is exit code 3.
A word that is both a protocol and a service (tcp, udp) is the service. With -q the
bare value: the names of a port, or the ports of a name.`

func (c *ctl) whoisCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "whois PORT | NAME | PORT/PROTOCOL | NAME/PROTOCOL",
		Short: "Say what a port is meant for, and who has it here",
		Long:  whoisHelp,
		Example: `  portctl whois 443
  portctl whois 514/udp
  portctl whois tcp 8080
  portctl whois https
  portctl whois -q https/tcp`,
		Args:              wants(1, 2, "a port or the name of a service"),
		ValidArgsFunction: completeServices,
		RunE: func(cmd *cobra.Command, args []string) error {
			sep := " " // "tcp 443", and "443 tcp" as well
			if !isProtocols(args[0]) {
				sep = "/"
			}
			return c.whois(cmd.Context(), strings.Join(args, sep))
		},
	}
}

func (c *ctl) whois(ctx context.Context, text string) error {
	q, err := parseQuestion(text)
	if err != nil {
		return err
	}
	answer, err := c.askWhois(ctx, q)
	asked := err == nil
	if errors.Is(err, errNotAsked) {
		c.say("%v; this is the IANA registry's part alone", err)
		answer, err = embeddedWhois(q)
	}
	switch {
	case err != nil:
		return try(err, "portctl whois PORT")
	case c.json():
		return c.printJSON(answer)
	case c.quiet:
		return c.printBare(answer.GetLookup(), q)
	}
	if err := c.printLookup(answer.GetLookup(), q); err != nil || !asked {
		return err
	}
	return c.printUses(answer, q)
}

// errNotAsked is why portd could not be asked, whatever the reason: whois answers even so.
var errNotAsked = errors.New("portd was not asked")

type notAsked struct{ error }

func (e notAsked) Is(target error) bool { return target == errNotAsked }

// whoisPatience is how long whois waits for a portd that does not answer.
const whoisPatience = 10 * time.Second

func (c *ctl) askWhois(ctx context.Context, q question) (*pb.WhoisResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, whoisPatience)
	defer cancel()
	cl, err := c.dial(ctx)
	if err != nil {
		return nil, notAsked{err}
	}
	defer cl.Close()
	req := &pb.WhoisRequest{Protocol: q.proto}
	if q.name != "" {
		req.Query = &pb.WhoisRequest_Name{Name: q.name}
	} else {
		req.Query = &pb.WhoisRequest_Port{Port: uint32(q.port)}
	}
	answer, err := cl.Ports.Whois(ctx, req)
	if errors.Is(err, client.ErrUnavailable) || errors.Is(err, context.DeadlineExceeded) {
		return nil, notAsked{err}
	}
	return answer, err
}

// A question is what whois asks: a port, or a name where that is not empty.
type question struct {
	port  uint16
	name  string
	proto pb.Protocol // unspecified: all
}

func parseQuestion(text string) (q question, err error) {
	protos, rest := registry.SplitProtocol(text)
	if protos != "" {
		var ok bool
		if q.proto, ok = parseProtocol(protos); !ok {
			return q, usagef("%q names several protocols; leave them out to see all", text)
		}
	}
	if port, err := strconv.ParseUint(rest, 10, 16); err == nil {
		q.port = uint16(port)
		return q, nil
	}
	// An endpoint with an address is asked about as often; its port is meant.
	if ep, err := registry.ParseEndpoint(text); err == nil && ep.Ports() == 1 {
		q.port = ep.First
		return q, nil
	}
	if !isName(rest) {
		return q, usagef("%q is neither a port, 0 to 65535, nor the name of a service", rest)
	}
	q.name = rest
	return q, nil
}

// isName says whether s can be the name of a service: it has a letter (RFC 6335 section 5.1), and no blanks. The
// registry has some with slashes, stars and dots.
func isName(s string) bool {
	letter := false
	for _, r := range s {
		if r <= ' ' || r >= 0x7f {
			return false
		}
		letter = letter || 'a' <= r|0x20 && r|0x20 <= 'z'
	}
	return letter
}
