package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/portd/portd/client"
	"github.com/portd/portd/internal/registry"
	pb "github.com/portd/portd/proto/portd/v1"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"
)

const reserveHelp = `Reserve takes ports for you, all that are asked for or none. They are held: bound in
the kernel, so that no other program can have them, and refused to clients until
something serves on them (portctl run, or client.Listen in Go). They stay yours until
they are released, also when portd restarts; with --ttl until that time has passed
without a "portctl renew", with --pid until that process of yours ends.

The port is a number, a range, a service name that has one port in the IANA registry,
or "any": one of portd's choice, from --range or from a pool of portd's policy file
(portctl pools), else from 1024 up outside the kernel's ephemeral ports and without a
meaning to IANA. --prefer says which port to try before all others. Several protocols
or addresses get the same ports. A name gets the ports again that it had before, unless
somebody has taken them, and then it is said who.

unix/PATH is the path of a unix socket: portd makes the file with your rights, it is
yours, and a worker serves on it as on a port. A socket file that you left there and no
program has open any more is replaced.

What was given is printed, an endpoint on a line with the reservation's id; with -q the
port numbers alone, each on a line.`

type reserveFlags struct {
	addresses, labels     []string
	name, request         string
	choice                choiceFlags
	lease                 string
	ttl                   time.Duration
	pid                   int32
	recordOnly, listenToo bool
	fileMode              string
	bind                  struct{ free, transparent, mptcp bool }
	group                 uint32
}

func (c *ctl) reserveCommand() *cobra.Command {
	var f reserveFlags
	cmd := &cobra.Command{
		Use:   "reserve ENDPOINT…",
		Short: "Take ports, so that nobody else can have them",
		Long:  reserveHelp,
		Example: `  portctl reserve tcp 8080
  portctl reserve tcp,udp 53 --address 127.0.0.1 --address ::1 --name dns
  portctl reserve tcp 9000-9009
  portctl reserve tcp/https tcp/http
  P=$(portctl reserve -q tcp any --range 20000-20999)
  portctl reserve tcp any --pool ci --prefer 8080
  portctl reserve tcp 5432 --record-only
  portctl reserve tcp/192.0.2.7:443 --freebind
  portctl reserve udp 5353 --group 4
  portctl reserve unix/run/app.sock --file-mode 0660
  portctl reserve tcp any --ttl 10m
  portctl reserve tcp any --pid $$
  portctl reserve tcp 8080 --netns blue`,
		Args:              wants(1, many, "an endpoint like tcp/8080"),
		ValidArgsFunction: completeEndpoints,
		RunE: func(cmd *cobra.Command, args []string) error {
			var leases []string
			for _, name := range []string{"ttl", "pid", "lease"} {
				if cmd.Flags().Changed(name) {
					leases = append(leases, "--"+name)
				}
			}
			switch {
			case len(leases) > 1:
				return usagef("%s exclude each other: a reservation has one lease", strings.Join(leases, " and "))
			case cmd.Flags().Changed("ttl") && f.ttl <= 0:
				return usagef("--ttl %v is not allowed; allowed are 1s to 720h (30 days)", f.ttl)
			case cmd.Flags().Changed("pid") && f.pid <= 0:
				return usagef("--pid %d is not a pid", f.pid)
			}
			return c.reserve(cmd.Context(), c.there(words(args)), f)
		},
	}
	flags := cmd.Flags()
	flags.StringArrayVar(&f.addresses, "address", nil, "IP `address` to reserve on; may be repeated (default: every address)")
	flags.StringVar(&f.name, "name", "", "`name` of the reservation, unique on this host")
	flags.StringArrayVar(&f.labels, "label", nil, "label, `key=value`; may be repeated")
	c.choiceFlags(cmd, &f.choice)
	c.netnsFlag(cmd)
	flags.BoolVar(&f.recordOnly, "record-only", false, "do not bind: the program binds the port itself")
	flags.BoolVar(&f.listenToo, "listen", false, "listen at once: connections wait for a program to take them")
	flags.BoolVar(&f.bind.free, "freebind", false, "on addresses too that this host does not have yet")
	flags.BoolVar(&f.bind.transparent, "transparent", false, "for traffic to foreign addresses (IP_TRANSPARENT)")
	flags.BoolVar(&f.bind.mptcp, "mptcp", false, "also for Multipath TCP")
	flags.Uint32Var(&f.group, "group", 0, "hold a UDP port by so many `sockets`, 2 to 64, for as many programs")
	flags.StringVar(&f.fileMode, "file-mode", "", "of a unix socket's file, `octal`: who may write to it may connect (default 0600)")
	flags.DurationVar(&f.ttl, "ttl", 0, "give them back after this `time`, unless they are renewed: 1s to 720h")
	flags.Int32Var(&f.pid, "pid", 0, "give them back when this process of yours ends")
	flags.StringVar(&f.lease, "lease", "", "give them back when this `lease` ends: the id of one that is there")
	flags.StringVar(&f.request, "request-id", "", "makes a repeated call give the first one's answer")
	return cmd
}

func (c *ctl) reserve(ctx context.Context, endpoints []string, f reserveFlags) error {
	req, err := f.toRequest(endpoints)
	if err != nil {
		return err
	}
	cl, err := c.dial(ctx)
	if err != nil {
		return err
	}
	defer cl.Close()
	answer, err := cl.Reservations.Reserve(ctx, req)
	if err != nil {
		return reserveHint(err, req)
	}
	res := answer.GetReservation()
	var listenErr error
	if f.listenToo {
		listening, err := cl.Reservations.Listen(ctx, &pb.ListenRequest{Reservation: res.GetId()})
		if err != nil {
			err = listenHint(fmt.Errorf("it is reserved and stays so, but does not listen: %w", err), nameOrID(res))
			listenErr = try(err, "portctl listen "+res.GetId())
		} else {
			answer.Reservation = listening.GetReservation()
			res = answer.GetReservation()
		}
	}
	gone := f.request != "" && isGone(ctx, cl, res)
	switch {
	case gone && c.quiet: // a script would go on with a port that it has not
		return try(fmt.Errorf("%s, which this --request-id reserved, has been given back since: %w", endpointsText(res), client.ErrNotFound),
			"another --request-id")
	case c.json():
		err = c.printJSON(answer)
	case c.quiet:
		c.printPorts(res)
	case gone:
		err = c.printReservation(res, "released")
		c.say("that was the answer to the first call with this --request-id; what it gave has been given back since")
		c.say("to reserve again, use another one")
	default:
		err = c.printReservation(res, "")
		c.sayPassedOver(answer)
		c.sayReserved(res, answer.GetExisted())
		c.sayLease(res, req.GetNewLease())
		c.sayInTheWay(ctx, cl, res)
	}
	return errors.Join(err, listenErr)
}

// isGone says that an answer is about a reservation that is no more, as that of a repeated call may be.
func isGone(ctx context.Context, cl *client.Client, res *pb.Reservation) bool {
	_, err := cl.Reservations.GetReservation(ctx, &pb.GetReservationRequest{Reservation: res.GetId()})
	return errors.Is(err, client.ErrNotFound)
}

func (f reserveFlags) toRequest(endpoints []string) (*pb.ReserveRequest, error) {
	if f.listenToo && f.recordOnly {
		return nil, usagef("--listen and --record-only exclude each other: portd listens on what it holds")
	}
	labels, err := parseLabels(f.labels)
	if err != nil {
		return nil, err
	}
	req := &pb.ReserveRequest{Name: f.name, Labels: labels, RequestId: f.request, Spec: &pb.ReservationSpec{Mode: pb.Mode_MODE_HELD}}
	req.LeaseId = f.lease
	if f.ttl != 0 {
		req.NewLease = &pb.LeaseSpec{Kind: &pb.LeaseSpec_Ttl{Ttl: durationpb.New(f.ttl)}}
	}
	if f.pid != 0 {
		req.NewLease = &pb.LeaseSpec{Kind: &pb.LeaseSpec_Process{Process: &pb.ProcessLease{Pid: f.pid}}}
	}
	if f.recordOnly {
		req.Spec.Mode = pb.Mode_MODE_RECORDED
	}
	if f.group == 1 {
		return nil, usagef("--group is 2 to 64 sockets; without it there is one")
	}
	if b := f.bind; b.free || b.transparent || b.mptcp || f.group > 1 {
		if f.recordOnly {
			return nil, usagef("--freebind, --transparent, --mptcp and --group are about binding, and with --record-only portd does not bind")
		}
		req.Spec.BindOptions = &pb.BindOptions{Freebind: b.free, Transparent: b.transparent, Mptcp: b.mptcp, Group: f.group}
	}
	if f.fileMode != "" {
		mode, err := strconv.ParseUint(f.fileMode, 8, 9)
		if err != nil {
			return nil, usagef("--file-mode %s is no mode of a file; write it in octal, like 0660 (chmod(1))", f.fileMode)
		}
		if req.Spec.BindOptions == nil {
			req.Spec.BindOptions = &pb.BindOptions{}
		}
		req.Spec.BindOptions.FileMode = uint32(mode)
	}
	if f.name != "" {
		if err := registry.ValidateName(f.name); err != nil {
			return nil, err
		}
	}
	for _, e := range endpoints {
		spec, err := parseSpec(e)
		if err != nil {
			return nil, err
		}
		if err := addAddresses(spec, f.addresses); err != nil {
			return nil, err
		}
		if err := f.choice.put(e, spec.GetAny()); err != nil {
			return nil, err
		}
		req.Spec.Endpoints = append(req.Spec.Endpoints, spec)
	}
	return req, nil
}

// reserveHint says what to do where ports cannot be had.
func reserveHint(err error, req *pb.ReserveRequest) error {
	first := req.GetSpec().GetEndpoints()[0]
	var protos []string
	for _, p := range first.GetProtocols() {
		protos = append(protos, protoWord(p))
	}
	why := (*client.Error)(nil)
	errors.As(err, &why)
	switch {
	case errors.Is(err, client.ErrTaken) && why != nil && why.Reason == "NAME_TAKEN":
		return try(err, "portctl show "+req.GetName())
	case errors.Is(err, client.ErrTaken) && why != nil && yours(why.Conflict) != "":
		return try(err, "portctl show "+yours(why.Conflict))
	case req.GetNewLease().GetProcess() != nil && (errors.Is(err, client.ErrNotFound) || errors.Is(err, client.ErrDenied)), why != nil && why.Reason == "PID_NAMESPACE":
		return try(err, "portctl reserve "+strings.Join(protos, ",")+" any --ttl 10m")
	case errors.Is(err, client.ErrNotFound) && req.GetLeaseId() != "":
		return try(err, "portctl leases --mine")
	case first.GetPath() != "": // of paths portd chooses none
		return err
	case errors.Is(err, client.ErrTaken), errors.Is(err, client.ErrDenied):
		return try(err, "portctl reserve "+strings.Join(protos, ",")+" any")
	case errors.Is(err, client.ErrNotFound) && first.GetAny().GetPool() != "":
		return try(err, "portctl pools")
	case errors.Is(err, client.ErrExhausted) && first.GetAny().GetWithin() == nil:
		return try(err, "portctl pools "+cmp.Or(first.GetAny().GetPool(), registry.DefaultPool))
	case cmp.Or(first.GetService(), first.GetAny().GetPreferService()) != "":
		return try(err, "portctl whois "+cmp.Or(first.GetService(), first.GetAny().GetPreferService()))
	}
	return err
}

// yours is a reservation of the caller's own that stands in the way, or empty.
func yours(conflict *pb.PortConflict) string {
	for _, u := range conflict.GetUses() {
		if r := u.GetReservation(); r.GetYours() {
			return cmp.Or(r.GetName(), r.GetId())
		}
	}
	return ""
}

// printReservation prints the endpoints of a reservation, each on a line, with their state or one for all.
func (c *ctl) printReservation(res *pb.Reservation, state string) error {
	t := c.table()
	for _, a := range res.GetAssigned() {
		cells := []string{a.GetEndpoint().GetText(), cmp.Or(state, word(a.GetState())), res.GetId()}
		if res.GetName() != "" {
			cells = append(cells, res.GetName())
		}
		t.row(cells...)
	}
	return t.flush()
}

// printPorts prints the bare port numbers, each on a line and once, and paths.
func (c *ctl) printPorts(res *pb.Reservation) {
	seen := map[uint32]bool{}
	for _, a := range res.GetAssigned() {
		if path := a.GetEndpoint().GetPath(); path != "" {
			fmt.Fprintln(c.out, path)
			continue
		}
		for p := a.GetEndpoint().GetPorts().GetFirst(); p <= a.GetEndpoint().GetPorts().GetLast(); p++ {
			if !seen[p] {
				seen[p] = true
				fmt.Fprintln(c.out, p)
			}
		}
	}
}

// sayReserved tells what has been got, and how to serve on it.
func (c *ctl) sayReserved(res *pb.Reservation, existed bool) {
	_ = c.out.Flush() // first what was given, then what to do with it
	ref := nameOrID(res)
	if len(res.GetAssigned()) == 1 {
		ref = res.GetAssigned()[0].GetEndpoint().GetText()
	}
	again := ""
	if existed {
		again = ", and was yours before"
	}
	if res.GetSpec().GetMode() == pb.Mode_MODE_RECORDED {
		c.say("%s is recorded as yours%s; portd does not bind it, your program does", ref, again)
		c.say("to serve on it: portctl run --record-only %s -- PROGRAM --port {port}", ref)
		return
	}
	if n := res.GetSpec().GetBindOptions().GetGroup(); n > 0 {
		c.say("%s is held by %d sockets, for as many programs%s; only a program of portd's own user could join them", ref, n, again)
	} else {
		c.say("%s is held%s; nobody else can take it", ref, again)
	}
	how := fmt.Sprintf("portctl run %s -- PROGRAM", ref)
	if !slices.ContainsFunc(res.GetAssigned(), func(a *pb.AssignedEndpoint) bool { return !streams(a.GetEndpoint().GetProtocol()) }) {
		how += fmt.Sprintf(", or client.Listen(ctx, %q) in Go", ref)
	}
	c.say("to serve on it: %s", how)
}

// sayLease tells when it all ends, and how that is put off.
func (c *ctl) sayLease(res *pb.Reservation, made *pb.LeaseSpec) {
	switch {
	case made.GetProcess() != nil:
		c.say("until process %d ends", made.GetProcess().GetPid())
	case res.GetExpireTime() != nil:
		c.say("until %s; to keep it longer: portctl renew %s", full(res.GetExpireTime()), nameOrID(res))
	}
}

func endpointsText(res *pb.Reservation) string {
	var texts []string
	for _, a := range res.GetAssigned() {
		texts = append(texts, a.GetEndpoint().GetText())
	}
	return strings.Join(texts, ", ")
}
