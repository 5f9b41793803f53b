package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/portd/portd/client"
	pb "github.com/portd/portd/proto/portd/v1"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"
)

const adoptHelp = `Adopt takes over the port of a program that runs and was not started by portctl: portd
gets a duplicate of its listening TCP socket, and the port is yours in portd from then
on. The program notices nothing and serves on. When it stops, the port goes on listening:
clients wait until a successor takes them (portctl run, or client.Listen in Go), and none
is refused.

You may adopt from a program what the kernel would let you take from it yourself: root
from any, others from what they run themselves, unless the program has capabilities or
guards itself (ptrace(2)), or the host forbids it (kernel.yama.ptrace_scope). portd needs
the right too: CAP_SYS_PTRACE where the program is another user's than portd's.

A socket with SO_REUSEPORT is refused, for others could join it; so is UDP, which has
nobody wait. Without an address it is the socket that the program has on the port.

A successor that is a worker (client.Listen) may start while the program still serves.
One that has the socket itself (portctl run) makes it non-blocking for both: if the
program waits in accept, as many without an event loop do, stop it first.

A program that stops its listener by shutdown(2) stops it for portd as well: "portctl
close" and "portctl listen" bring it back.

A reservation of yours that has lost the port to the program has it again by that.

Released, the socket is the program's alone again; once it is lent to a successor, release
stops it. The keeper has the socket over a restart of portd. Where there is none (portd
--no-keeper), or portd was stopped meanwhile, the port is lost while the program runs, for
nobody else has the socket then: adopt it again, or portd takes it back within a second of
the program's end, and clients are refused meanwhile.`

type adoptFlags struct {
	pid                  int32
	name, lease, request string
	addresses, labels    []string
	ttl                  time.Duration
}

func (c *ctl) adoptCommand() *cobra.Command {
	var f adoptFlags
	cmd := &cobra.Command{
		Use:   "adopt ENDPOINT --pid PID",
		Short: "Take over the port of a program that runs",
		Long:  adoptHelp,
		Example: `  portctl adopt tcp 8080 --pid 812
  portctl adopt tcp/127.0.0.1:8080 --pid "$(pgrep -o server)" --name web
  portctl adopt tcp/https --pid 812 --ttl 10m
  portctl adopt tcp 8080 --pid 812 --netns 812`,
		Args:              wants(1, 2, "an endpoint like tcp/8080"),
		ValidArgsFunction: c.completeListening,
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		endpoint := c.there(words(args))
		switch {
		case len(endpoint) > 1:
			return usagef("%q is one argument too many: one socket is adopted at a time", endpoint[1])
		case !cmd.Flags().Changed("pid"):
			return try(usagef("--pid is missing: the program that listens there"), "portctl whois "+endpoint[0])
		case f.pid <= 0:
			return usagef("--pid %d is not a pid", f.pid)
		case cmd.Flags().Changed("ttl") && cmd.Flags().Changed("lease"):
			return usagef("--ttl and --lease exclude each other: a reservation has one lease")
		case cmd.Flags().Changed("ttl") && f.ttl <= 0:
			return usagef("--ttl %v is not allowed; allowed are 1s to 720h (30 days)", f.ttl)
		}
		return c.adopt(cmd.Context(), endpoint[0], f)
	}
	flags := cmd.Flags()
	flags.Int32Var(&f.pid, "pid", 0, "the `process` that listens on it")
	flags.StringArrayVar(&f.addresses, "address", nil, "IP `address` that it listens on (default: whichever it is)")
	flags.StringVar(&f.name, "name", "", "`name` of the reservation, unique on this host")
	flags.StringArrayVar(&f.labels, "label", nil, "label, `key=value`; may be repeated")
	flags.DurationVar(&f.ttl, "ttl", 0, "give it back after this `time`, unless it is renewed: 1s to 720h")
	flags.StringVar(&f.lease, "lease", "", "give it back when this `lease` ends: the id of one that is there")
	flags.StringVar(&f.request, "request-id", "", "makes a repeated call give the first one's answer")
	c.netnsFlag(cmd)
	_ = cmd.RegisterFlagCompletionFunc("pid", c.completeListeners)
	return cmd
}

func (c *ctl) adopt(ctx context.Context, endpoint string, f adoptFlags) error {
	req := &pb.AdoptRequest{Pid: f.pid, Name: f.name, LeaseId: f.lease, RequestId: f.request}
	var err error
	if req.Labels, err = parseLabels(f.labels); err != nil {
		return err
	}
	if req.Endpoint, err = parseSpec(endpoint); err != nil {
		return err
	}
	if err := addAddresses(req.GetEndpoint(), f.addresses); err != nil {
		return err
	}
	if f.ttl != 0 {
		req.NewLease = &pb.LeaseSpec{Kind: &pb.LeaseSpec_Ttl{Ttl: durationpb.New(f.ttl)}}
	}
	cl, err := c.dial(ctx)
	if err != nil {
		return err
	}
	defer cl.Close()
	answer, err := cl.Reservations.Adopt(ctx, req)
	if err != nil {
		return adoptHint(err, endpoint, f)
	}
	res := answer.GetReservation()
	switch {
	case c.json():
		return c.printJSON(answer)
	case c.quiet:
		c.printPorts(res)
		return nil
	}
	if err := c.printReservation(res, ""); err != nil {
		return err
	}
	c.say("%s is yours in portd, and stays when %s", endpointsText(res), whoStops(answer.GetAlsoOpenIn(), f.pid))
	ref := nameOrID(res)
	c.say("to serve on it then: portctl run %s -- PROGRAM, or client.Listen(ctx, %q) in Go", ref, ref)
	c.sayLease(res, req.GetNewLease())
	return nil
}

// whoStops says what has the socket beside portd: "python3 (pid 812) and nginx (pid 900) stop".
func whoStops(have []*pb.Process, pid int32) string {
	var who []string
	for _, p := range have {
		who = append(who, fmt.Sprintf("%s (pid %d)", p.GetCommand(), p.GetPid()))
	}
	switch n := len(who); {
	case n == 0:
		return fmt.Sprintf("process %d stops", pid)
	case n == 1:
		return who[0] + " stops"
	case n > 4:
		return fmt.Sprintf("%s and %d more stop", strings.Join(who[:3], ", "), n-3)
	default:
		return strings.Join(who[:n-1], ", ") + " and " + who[n-1] + " stop"
	}
}

// adoptHint says what to do about a socket that could not be had.
func adoptHint(err error, endpoint string, f adoptFlags) error {
	why := (*client.Error)(nil)
	if !errors.As(err, &why) {
		return err
	}
	switch {
	case why.Reason == "NAME_TAKEN":
		return try(err, "portctl show "+f.name)
	case errors.Is(err, client.ErrTaken) && yours(why.Conflict) != "":
		return try(err, "portctl show "+yours(why.Conflict))
	case errors.Is(err, client.ErrNotFound) && f.lease != "" && why.Reason == "NOT_FOUND":
		return try(err, "portctl leases --mine")
	case errors.Is(err, client.ErrNotFound):
		for _, u := range why.Conflict.GetUses() {
			if ps := u.GetHolder().GetProcesses(); len(ps) > 0 {
				return try(err, fmt.Sprintf("portctl adopt %s --pid %d", u.GetEndpoint().GetText(), ps[0].GetPid()))
			}
		}
		return try(err, "portctl whois "+endpoint)
	case errors.Is(err, client.ErrDenied):
		return try(err, fmt.Sprintf("sudo portctl adopt %s --pid %d", endpoint, f.pid))
	case why.Reason == "NOT_A_STREAM":
		return try(err, "portctl run "+endpoint+" -- PROGRAM")
	}
	return err
}

// completeListening offers what programs listen on that are not portd's.
func (c *ctl) completeListening(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
	var out []string
	if len(args) == 0 {
		for _, u := range c.listening(cmd.Context()) {
			if text := u.GetEndpoint().GetText(); strings.HasPrefix(text, prefix) {
				out = append(out, cobra.CompletionWithDesc(text, holderName(u.GetHolder())))
			}
		}
	}
	return out, cobra.ShellCompDirectiveNoFileComp
}

// completeListeners offers the processes that listen on what stands before.
func (c *ctl) completeListeners(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
	var want *pb.EndpointSpec
	if at := words(args); len(at) == 1 {
		want, _ = parseSpec(at[0])
	}
	var out []string
	for _, u := range c.listening(cmd.Context()) {
		if want != nil && want.GetExact().GetFirst() != u.GetEndpoint().GetPorts().GetFirst() {
			continue
		}
		for _, p := range u.GetHolder().GetProcesses() {
			if pid := strconv.Itoa(int(p.GetPid())); strings.HasPrefix(pid, prefix) {
				out = append(out, cobra.CompletionWithDesc(pid, p.GetCommand()+" on "+u.GetEndpoint().GetText()))
			}
		}
	}
	return out, cobra.ShellCompDirectiveNoFileComp
}

// listening is the TCP sockets that are not portd's and listen, none where that cannot be told quickly.
func (c *ctl) listening(ctx context.Context) (out []*pb.PortUse) {
	ctx, cancel := context.WithTimeout(ctx, completionPatience)
	defer cancel()
	cl, err := c.dial(ctx)
	if err != nil {
		return nil
	}
	defer cl.Close()
	all, err := listUses(ctx, cl, &pb.ListPortUsesRequest{Protocols: []pb.Protocol{pb.Protocol_PROTOCOL_TCP}, Netns: c.netns})
	if err != nil {
		return nil
	}
	for _, u := range all.GetUses() {
		if u.GetHolder().GetState() == pb.SocketState_SOCKET_STATE_LISTENING {
			out = append(out, u)
		}
	}
	return out
}
