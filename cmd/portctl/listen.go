package main

import (
	"errors"
	"fmt"
	"maps"
	"strings"
	"time"

	"github.com/portd/portd/client"
	pb "github.com/portd/portd/proto/portd/v1"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
)

const listenHelp = `Listen makes the held ports of a reservation listen. Connections are accepted by the
kernel from then on, and wait until a program takes them; they go on waiting while no
program is there, and the port listens again after a restart of portd.

What listens already goes on as it is, but for what the flags say, which is so for the
connections to come. With --reset everything else is again as portd has it by default.
A number or time of 0 is that default, too. What the kernel made of it all is in
"portctl show": it caps a backlog at net.core.somaxconn, buffers at net.core.rmem_max
and wmem_max, and rounds the time of --defer-accept up.

Without --receive-buffer and --send-buffer the kernel sizes the buffers of each connection
by itself, which is mostly better. A mark (SO_MARK) steers the host's routing and filters:
it is for root and the user that portd runs as, and portd needs CAP_NET_ADMIN for it.

` + listenHandoffHelp

func (c *ctl) listenCommand() *cobra.Command {
	var (
		f     listenFlags
		reset bool
		only  ifRevision
	)
	cmd := &cobra.Command{
		Use:   "listen RESERVATION…",
		Short: "Make held ports listen, or listen otherwise",
		Long:  listenHelp,
		Example: `  portctl listen tcp/8080
  portctl listen web --backlog 1024 --keep-alive-idle 1m
  portctl listen web --no-delay=false
  portctl listen web --strategy client-address --without-worker refuse
  portctl listen web --reset`,
		Args:              wants(1, many, "a reservation, by its id, its name or an endpoint,"),
		ValidArgsFunction: c.completeReservations,
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := f.handoff.check(cmd); err != nil {
			return err
		}
		refs := c.there(words(args))
		if err := only.check(cmd, refs); err != nil {
			return err
		}
		return c.each(cmd.Context(), refs, func(cl *client.Client, ref string) error {
			req := &pb.ListenRequest{Reservation: ref, ExpectedRevision: int64(only)}
			req.Options, req.UpdateMask = f.given(cmd.Flags())
			if reset {
				req.UpdateMask = nil
				if req.Options == nil {
					req.Options = &pb.ListenOptions{}
				}
			}
			answer, err := cl.Reservations.Listen(cmd.Context(), req)
			if why := (*client.Error)(nil); errors.As(err, &why) {
				err = inFlags(why, cmd)
			}
			if err != nil {
				return listenHint(conflictHint(err, ref), ref)
			}
			return c.printAnswer(answer, answer.GetReservation())
		})
	}
	f.add(cmd.Flags())
	f.handoff.add(cmd)
	cmd.Flags().BoolVar(&reset, "reset", false, "everything that no flag says as by default")
	c.netnsFlag(cmd)
	only.flag(cmd)
	return cmd
}

// listenFlags are the options of a listener as flags.
type listenFlags struct {
	backlog, probes, fastOpen, mark, receive, send uint32
	noDelay, keepAlive                             bool
	idle, interval, userTimeout, deferAccept       time.Duration
	handoff                                        handoffFlags
}

func (f *listenFlags) add(flags *pflag.FlagSet) {
	flags.Uint32Var(&f.backlog, "backlog", 0, "connections that may wait (default 4096)")
	flags.BoolVar(&f.noDelay, "no-delay", true, "send small pieces at once (TCP_NODELAY)")
	flags.BoolVar(&f.keepAlive, "keep-alive", true, "find out whether silent clients are still there (SO_KEEPALIVE)")
	flags.DurationVar(&f.idle, "keep-alive-idle", 0, "after this `time` of silence (default net.ipv4.tcp_keepalive_time)")
	flags.DurationVar(&f.interval, "keep-alive-interval", 0, "then every so often (default net.ipv4.tcp_keepalive_intvl)")
	flags.Uint32Var(&f.probes, "keep-alive-probes", 0, "and so many times (default net.ipv4.tcp_keepalive_probes)")
	flags.DurationVar(&f.userTimeout, "user-timeout", 0, "end a connection whose client does not acknowledge data for this `time`")
	flags.DurationVar(&f.deferAccept, "defer-accept", 0, "accept a connection when its client has sent something, waiting this `time`")
	flags.Uint32Var(&f.fastOpen, "fast-open", 0, "clients that may be connecting with data at once (TCP Fast Open)")
	flags.Uint32Var(&f.mark, "mark", 0, "mark of the packets of connections (SO_MARK)")
	flags.Uint32Var(&f.receive, "receive-buffer", 0, "`bytes` of each connection's receive buffer")
	flags.Uint32Var(&f.send, "send-buffer", 0, "`bytes` of each connection's send buffer")
}

// A listenFlag is the field of ListenOptions that a flag is for, and how it gets the flag's value.
type listenFlag struct {
	path string
	in   func(*pb.ListenOptions)
}

// byName are the flags by their names.
func (f *listenFlags) byName() map[string]listenFlag {
	all := map[string]listenFlag{
		"backlog":             {"backlog", func(o *pb.ListenOptions) { o.Backlog = f.backlog }},
		"no-delay":            {"no_delay", func(o *pb.ListenOptions) { o.NoDelay = &f.noDelay }},
		"keep-alive":          {"keep_alive", func(o *pb.ListenOptions) { o.KeepAlive = &f.keepAlive }},
		"keep-alive-idle":     {"keep_alive_idle", func(o *pb.ListenOptions) { o.KeepAliveIdle = durationpb.New(f.idle) }},
		"keep-alive-interval": {"keep_alive_interval", func(o *pb.ListenOptions) { o.KeepAliveInterval = durationpb.New(f.interval) }},
		"keep-alive-probes":   {"keep_alive_probes", func(o *pb.ListenOptions) { o.KeepAliveProbes = f.probes }},
		"user-timeout":        {"user_timeout", func(o *pb.ListenOptions) { o.UserTimeout = durationpb.New(f.userTimeout) }},
		"defer-accept":        {"defer_accept", func(o *pb.ListenOptions) { o.DeferAccept = durationpb.New(f.deferAccept) }},
		"fast-open":           {"fast_open", func(o *pb.ListenOptions) { o.FastOpen = f.fastOpen }},
		"mark":                {"mark", func(o *pb.ListenOptions) { o.Mark = f.mark }},
		"receive-buffer":      {"receive_buffer", func(o *pb.ListenOptions) { o.ReceiveBuffer = f.receive }},
		"send-buffer":         {"send_buffer", func(o *pb.ListenOptions) { o.SendBuffer = f.send }},
	}
	maps.Copy(all, f.handoff.byName())
	return all
}

// given is what the flags on the command line say, and what they name; neither, where there are none.
func (f *listenFlags) given(flags *pflag.FlagSet) (o *pb.ListenOptions, named *fieldmaskpb.FieldMask) {
	known := f.byName()
	flags.Visit(func(flag *pflag.Flag) {
		option, ok := known[flag.Name]
		if !ok {
			return
		}
		if o == nil {
			o, named = &pb.ListenOptions{}, &fieldmaskpb.FieldMask{}
		}
		option.in(o)
		named.Paths = append(named.Paths, option.path)
	})
	return o, named
}

// optionsText tells the options of a listener as the kernel has them.
func optionsText(o *pb.ListenOptions) string {
	texts := []string{fmt.Sprintf("backlog %d", o.GetBacklog())}
	add := func(is bool, format string, args ...any) {
		if is {
			texts = append(texts, fmt.Sprintf(format, args...))
		}
	}
	add(o.NoDelay != nil && !o.GetNoDelay(), "without TCP_NODELAY")
	switch {
	case o.KeepAlive != nil && !o.GetKeepAlive():
		texts = append(texts, "without keep-alive")
	case o.GetKeepAliveIdle() != nil:
		texts = append(texts, fmt.Sprintf("keep-alive after %v, every %v, %d times",
			o.GetKeepAliveIdle().AsDuration(), o.GetKeepAliveInterval().AsDuration(), o.GetKeepAliveProbes()))
	}
	add(o.GetUserTimeout() != nil, "user timeout %v", o.GetUserTimeout().AsDuration())
	add(o.GetDeferAccept() != nil, "accept deferred for %v", o.GetDeferAccept().AsDuration())
	add(o.GetFastOpen() != 0, "fast open %d", o.GetFastOpen())
	add(o.GetMark() != 0, "mark %#x", o.GetMark())
	add(o.GetReceiveBuffer() != 0, "receive buffer %d", o.GetReceiveBuffer())
	add(o.GetSendBuffer() != 0, "send buffer %d", o.GetSendBuffer())
	return strings.Join(texts, ", ")
}
