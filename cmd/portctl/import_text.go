package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/portd/portd/client"
	"github.com/portd/portd/internal/ianadb"
	"github.com/portd/portd/internal/registry"
	pb "github.com/portd/portd/proto/portd/v1"
	"github.com/spf13/cobra"
)

// printImport prints what an import or its undoing changed, and with a dry run all that it would.
func (c *ctl) printImport(im *pb.ServiceImport) error {
	if im.GetDryRun() {
		if err := c.printChanges(im.GetChanges()); err != nil {
			return err
		}
	}
	summary := fmt.Sprintf("%s: %s", edition(im.GetAfter()), changesText(im))
	switch {
	case c.quiet && !im.GetDryRun():
		fmt.Fprintln(c.out, oneLine(im.GetAfter().GetDate()))
	case c.quiet:
	case im.GetUnchanged():
		_ = c.out.Flush()
		c.say("the %s answers already (%s): nothing to do", edition(im.GetAfter()), digestText(im.GetAfter()))
	case im.GetDryRun():
		_ = c.out.Flush()
		c.say("a dry run, nothing was changed; it would be the %s", summary)
	default:
		fmt.Fprintln(c.out, summary)
	}
	return nil
}

// printOverridden tells which of the host's own services IANA gives to others now: those that it did not before, and of the
// others how many there are; with a dry run all. Quiet or not: somebody wanted that name or port for something else.
func (c *ctl) printOverridden(ctx context.Context, cl *client.Client, im *pb.ServiceImport) {
	all := im.GetOverridden()
	if len(all) == 0 {
		return
	}
	fresh := all
	if !im.GetDryRun() {
		// To undo it would have the registry from before answer again, and what is overridden there.
		if back, err := cl.Services.UndoImport(ctx, &pb.UndoImportRequest{DryRun: true}); err == nil {
			fresh = nil
			for _, o := range all {
				if !slices.Contains(back.GetImport().GetOverridden(), o) {
					fresh = append(fresh, o)
				}
			}
		}
	}
	for _, o := range fresh {
		c.warn("note: %s", oneLine(o))
	}
	text := "this host's own services still win"
	if n := len(all) - len(fresh); n > 0 {
		text += fmt.Sprintf(", over %s as before", count(n, "service"))
	}
	c.say("%s; to see them: portctl service list", text)
}

// lostSight says of a portd that is gone in the middle of an import that nobody knows what became of it.
func lostSight(err error, dry bool) error {
	if dry || !errors.Is(err, client.ErrNoDaemon) {
		return err
	}
	return try(fmt.Errorf("%w; it is not known whether the import was done", err), "portctl status")
}

// edition names a registry: "registry of 2026-08-17".
func edition(s *pb.ServiceRegistryStatus) string {
	if s.GetSource() == registry.Embedded.String() {
		return registryDate(s.GetDate()) + " that portd was built with"
	}
	return registryDate(s.GetDate())
}

// changesText is the numbers of an import.
func changesText(im *pb.ServiceImport) string {
	text := fmt.Sprintf("%s records", thousands(im.GetAfter().GetRecords()))
	var parts []string
	for _, n := range []struct {
		n    uint32
		what string
	}{{im.GetAdded(), "added"}, {im.GetRemoved(), "removed"}, {im.GetRenamed(), "renamed"}, {im.GetChanged(), "changed"}} {
		if n.n > 0 {
			parts = append(parts, thousands(n.n)+" "+n.what)
		}
	}
	if len(parts) == 0 {
		return text + ", none of them different"
	}
	return text + "; " + strings.Join(parts, ", ")
}

func (c *ctl) printChanges(changes []*pb.ServiceChange) error {
	t := c.table()
	for _, ch := range changes {
		name, place := cmp.Or(oneLine(ch.GetName()), "-"), placeText(ch.GetPorts(), ch.GetProtocol())
		if ch.GetPorts() == nil {
			name, place = name+" (no port)", strings.TrimPrefix(place, "-/")
		}
		row := func(sign, text string) { t.row(sign+" "+place, text) }
		switch ch.GetKind() {
		case pb.ServiceChangeKind_SERVICE_CHANGE_KIND_ADDED:
			row("+", strings.TrimSpace(name+"  "+shorten(oneLine(ch.GetDescription()), 60)))
		case pb.ServiceChangeKind_SERVICE_CHANGE_KIND_REMOVED:
			row("-", strings.TrimSpace(name+"  "+shorten(oneLine(ch.GetDescription()), 60)))
		case pb.ServiceChangeKind_SERVICE_CHANGE_KIND_RENAMED:
			row("~", cmp.Or(oneLine(ch.GetOldName()), "-")+" → "+name)
		default:
			if ch.GetName() == "" {
				name = cmp.Or(oneLine(ch.GetDescription()), "-")
			}
			row("*", name+": "+oneLine(strings.Join(ch.GetColumns(), ", ")))
		}
	}
	return t.flush()
}

// placeText is where a service is: "443/tcp", "6000-6063/udp", "4200" for every protocol, a dash for no port.
func placeText(ports *pb.PortRange, p pb.Protocol) string {
	text := "-"
	if ports != nil {
		text = portsText(ports)
	}
	if p != pb.Protocol_PROTOCOL_UNSPECIFIED {
		text += "/" + protoWord(p)
	}
	return text
}

// digestText is enough of a SHA-256 to tell files apart.
func digestText(s *pb.ServiceRegistryStatus) string {
	digest := oneLine(s.GetDigest())
	return "sha256 " + digest[:min(len(digest), 12)]
}

// thousands writes 14533 as people do: 14,533.
func thousands(n uint32) string {
	s := strconv.FormatUint(uint64(n), 10)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// oneLine is a text from elsewhere on one line, with nothing in it that a terminal would obey.
func oneLine(s string) string { return printable(ianadb.Collapse(s)) }

// A refusedError is a file that portd does not take. The command line was right, so it is no error of usage.
type refusedError struct{ why *client.Error }

func (e *refusedError) Error() string {
	return "refused, and nothing was changed: " + strings.TrimPrefix(e.why.Error(), e.why.Metadata["field"]+": ")
}

// importHint says what to do where an import fails.
func importHint(err error, cmd *cobra.Command, args []string) error {
	why := (*client.Error)(nil)
	errors.As(err, &why)
	switch {
	case why == nil:
		return err
	case errors.Is(err, client.ErrInvalid) && why.Reason == "IMPLAUSIBLE":
		return try(&refusedError{why}, again(cmd, args, "--force"))
	case errors.Is(err, client.ErrInvalid) && why.Metadata["field"] == "options.date":
		return usagef("--date %s", strings.TrimPrefix(why.Error(), "options.date: "))
	case errors.Is(err, client.ErrInvalid):
		return try(&refusedError{why}, "portctl import --url "+ianaXML)
	case errors.Is(err, client.ErrDenied):
		return try(err, sudo(cmd, args))
	case errors.Is(err, client.ErrUnsupported), errors.Is(err, client.ErrNotFound), errors.Is(err, client.ErrConflict):
		return try(err, "portctl status")
	}
	return err
}
