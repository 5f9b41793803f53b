package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/portd/portd/internal/services"
	pb "github.com/portd/portd/proto/portd/v1"
	"github.com/spf13/cobra"
)

const whoisHelp = `Whois says what the IANA registry has a port or a service name for, and who has
the port on this host now. Services that this host has added to the registry come first
and are marked. Without a portd the registry's part alone is answered, from a copy that
portctl can read itself, and which it names, with -q and -o json on standard error too.

That IANA has assigned a port says nothing about what really listens there; that it
has not does not make the port yours. "here" is what really is: reservations, and
sockets of other programs as far as you may see them. What NAT rules of this host (Docker's,
kube-proxy's, your own) send elsewhere before any socket sees it is said with the rule.

A question is a port, a range of ports, a name, or a DCCP service code as RFC 4340
writes it (SC:DISC, SC=1145656131, SC=x44495343). A protocol stands before or after it:
443/tcp, "tcp 443", "443 tcp", tcp,udp/443. There may be several questions. A protocol
that stands apart is for all that follow it up to the next one ("tcp 80 443 udp 53"), or,
where the last word is one, for all before it. A word that is both a protocol and a
service (tcp, udp) is the service when nothing else is asked.

The details of a service (assignee, dates, reference, notes) are shown where a question
has one answer; --long shows them for all, --short for none.

A port always has an answer; a name that the registry does not have is exit code 3, and
the other questions are answered. With -q the bare value: the names of a port, or the
ports of a name. With -o json an answer of the API on each line.`

type whoisFlags struct {
	long, short bool
	codes       []string
}

func (c *ctl) whoisCommand() *cobra.Command {
	var f whoisFlags
	cmd := &cobra.Command{
		Use:   "whois PORT[/PROTOCOL] | FIRST-LAST[/PROTOCOL] | NAME[/PROTOCOL] | SC:CODE …",
		Short: "Say what a port is meant for, and who has it here",
		Long:  whoisHelp,
		Example: `  portctl whois 443
  portctl whois 514/udp
  portctl whois tcp 8080
  portctl whois https
  portctl whois 6000-6010
  portctl whois 22 80/tcp imaps --long
  portctl whois SC:DISC
  portctl whois -q https/tcp`,
		ValidArgsFunction: c.completeServices,
		RunE: func(cmd *cobra.Command, args []string) error {
			questions, err := parseQuestions(args, f.codes)
			switch {
			case err != nil:
				return err
			case f.long && f.short:
				return usagef("--long and --short: it is one or the other")
			}
			return c.whois(cmd.Context(), questions, f)
		},
	}
	flags := cmd.Flags()
	flags.BoolVarP(&f.long, "long", "l", false, "show the details of every service")
	flags.BoolVarP(&f.short, "short", "s", false, "show no details and no notes")
	flags.StringArrayVar(&f.codes, "service-code", nil, "ask for this DCCP service `code`, a number too; may be repeated")
	c.netnsFlag(cmd)
	return cmd
}

// whois answers one question after the other. What has no answer does not keep the others from theirs.
func (c *ctl) whois(ctx context.Context, questions []question, f whoisFlags) error {
	source := c.openSource(ctx)
	defer source.close()
	var failed error
	last := (*pb.ServiceLookup)(nil)
	for _, q := range questions {
		answer, err := source.whois(ctx, q)
		switch {
		case err != nil && len(questions) == 1:
			return c.noAnswer(ctx, source, err, q)
		case err != nil:
			// Said at once, where it would stand among the answers.
			c.complain(c.noAnswer(ctx, source, err, q))
			if code := exitCode(err); failed == nil || code != exitNotFound {
				failed = status(code)
			}
			continue
		case c.json():
			err = c.printJSON(answer)
		case c.quiet:
			c.printBare(answer.GetLookup(), q)
		default:
			if last != nil {
				fmt.Fprintln(c.out)
			}
			last = answer.GetLookup()
			err = c.printWhois(answer, q, source, f, len(questions) > 1)
		}
		if err != nil {
			return err
		}
	}
	if last != nil && len(questions) > 1 {
		fmt.Fprintf(c.out, "\niana: %s\n", source.registryText(last))
	}
	return failed
}

// noAnswer adds what to ask instead.
func (c *ctl) noAnswer(ctx context.Context, source *source, err error, q question) error {
	if exitCode(err) != exitNotFound {
		return try(err, "portctl whois PORT")
	}
	// A name that goes on for more than a letter is no typing error.
	if near := nearNames(err); len(near) > 0 && (len(near[0]) == len(q.name)+1 || !strings.HasPrefix(near[0], strings.ToLower(q.name))) {
		return try(err, "portctl whois "+shellWords(near[0]))
	}
	if q.code != nil {
		return c.noCode(ctx, source, err, *q.code)
	}
	if _, err2 := source.whois(ctx, question{name: q.name}); err2 == nil { // for another protocol
		return try(err, "portctl whois "+shellWords(q.name))
	}
	return try(err, "portctl search "+shellWords(q.name))
}

// noCode offers the service code that differs in case alone: they are bytes, and the registry has upper and lower case.
func (c *ctl) noCode(ctx context.Context, source *source, err error, code uint32) error {
	text, ok := strings.CutPrefix(services.CodeText(code), "SC:")
	for _, other := range []string{strings.ToUpper(text), strings.ToLower(text)} {
		q, err2 := parseCode("SC:" + other)
		if !ok || err2 != nil || *q.code == code {
			continue
		}
		if _, err2 := source.whois(ctx, q); err2 == nil {
			return try(err, "portctl whois "+shellWords("SC:"+other))
		}
	}
	return try(err, "portctl search dccp")
}

// printWhois prints the answer to one question: a line per service, what more there is to say of it, and who has it here.
func (c *ctl) printWhois(answer *pb.WhoisResponse, q question, source *source, f whoisFlags, several bool) error {
	l := answer.GetLookup()
	if err := c.printLines(l, q); err != nil {
		return err
	}
	var blocks []*block
	if f.long || !several && !q.isRange() && !f.short {
		blocks = detailsOf(l, q, f.long)
	}
	switch {
	case len(blocks) > 0:
		c.printBlocks(blocks)
	case !f.short && !f.long:
		told := false
		for _, n := range notes(l, q) {
			if strings.HasSuffix(n, "…") && !told {
				n, told = n+" (--long shows it all)", true
			}
			fmt.Fprintln(c.out, "note:", printable(n))
		}
	}
	// The date of the registry is the same for all of several answers, and said after them.
	class := ""
	if q.isPorts() {
		class = classText(q)
	}
	switch {
	case !several && class != "":
		fmt.Fprintf(c.out, "iana: %s, %s\n", class, source.registryText(l))
	case !several:
		fmt.Fprintf(c.out, "iana: %s\n", source.registryText(l))
	case class != "":
		fmt.Fprintf(c.out, "iana: %s\n", class)
	}
	if source.alone() {
		return nil
	}
	return c.printUses(answer, q, several)
}
