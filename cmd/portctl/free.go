package main

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/portd/portd/client"
	"github.com/portd/portd/internal/ianadb"
	"github.com/portd/portd/internal/registry"
	"github.com/portd/portd/internal/services"
	pb "github.com/portd/portd/proto/portd/v1"
)

const freeHelp = `With --free it finds ports that IANA has assigned to nobody, that no service of this
host's own has, and that nobody has reserved or bound here; for several protocols, or
--both (tcp and udp), those that are free for each of them. It shows the 20 largest
ranges, the largest first; with --all all of them, in order; with --count N the first N
ports in a row, from 1024 on unless PORTS says otherwise. With -q the bare ranges, all of
them. Ports from which the kernel serves outgoing connections are marked as ephemeral:
what is free there may not be for long; and those that are for root alone as privileged.
Without a portd the registry alone is asked, which is said with -q too.

It holds nothing: "portctl reserve tcp 8009" does. And unassigned is not permission:
ports SHOULD NOT be used without or prior to IANA registration, as the registry says,
and what is assigned to nobody today may be assigned tomorrow.`

type freeFlags struct {
	free, both, all bool
	count           int
}

// mostFree is how many ranges are shown unless all are asked for.
const mostFree = 20

func (c *ctl) listFree(ctx context.Context, args []string, f freeFlags, countSet bool) error {
	req, err := f.toRequest(args)
	switch {
	case err != nil:
		return err
	case countSet && (f.count < 1 || f.count > 65535):
		return usagef("--count %d: 1 to 65535 ports are wanted", f.count)
	case countSet && f.all:
		return usagef("--all and --count: it is one or the other")
	case countSet && req.Within == nil: // not everybody may have the others
		req.Within = &pb.PortRange{First: 1024, Last: 65535}
	}
	req.Netns = c.netns
	if countSet && req.GetCount() > size(req.GetWithin()) {
		return usagef("--count %d: so many ports do not fit into %s", f.count, portsText(req.GetWithin()))
	}
	source := c.openSource(ctx)
	defer source.close()
	answer, err := source.free(ctx, req)
	if err != nil {
		return err
	}
	if !source.alone() && !answer.GetHostChecked() && (c.quiet || c.json()) {
		c.warn("this kernel does not say which ports are bound")
	}
	if f.count > 0 && len(answer.GetRanges()) == 0 {
		return source.exhausted(ctx, req)
	}
	if c.json() {
		return c.printJSON(answer)
	}
	ranges := answer.GetRanges()
	switch {
	case f.count > 0:
		first := ranges[0].GetFirst()
		ranges = []*pb.PortRange{{First: first, Last: first + uint32(f.count) - 1}}
	case !f.all && !c.quiet: // a script has no use for a part
		ranges = slices.Clone(ranges)
		slices.SortStableFunc(ranges, func(a, b *pb.PortRange) int { return cmp.Compare(size(b), size(a)) })
		ranges = ranges[:min(len(ranges), mostFree)]
	}
	return source.printFree(ctx, answer, ranges, req)
}

// exhausted is the error where no run of ports is long enough. It says how long the longest is.
func (s *source) exhausted(ctx context.Context, req *pb.ListFreePortsRequest) error {
	n := req.GetCount()
	req.Count = 1
	where := strings.Join(protoWords(req.GetProtocols()), " and ")
	if req.GetWithin() != nil {
		where += " in " + portsText(req.GetWithin())
	}
	text := fmt.Sprintf("no %d ports in a row are free for %s", n, where)
	if n == 1 {
		text = "no port is free for " + where
	}
	answer, err := s.free(ctx, req)
	switch {
	case err != nil:
	case len(answer.GetRanges()) == 0:
		text += "; " + s.whyNone(ctx, answer, req)
	default:
		longest := slices.MaxFunc(answer.GetRanges(), func(a, b *pb.PortRange) int { return cmp.Compare(size(a), size(b)) })
		text += fmt.Sprintf("; the longest range is %s, %s", portsText(longest), count(int(size(longest)), "port"))
	}
	return try(noneLeft(text), "portctl list --free "+strings.Join(protoWords(req.GetProtocols()), ","))
}

// A noneLeft is a wish for more free ports than there are.
type noneLeft string

func (e noneLeft) Error() string        { return string(e) }
func (e noneLeft) Is(target error) bool { return target == client.ErrExhausted }

func protoWords(protos []pb.Protocol) (words []string) {
	for _, p := range protos {
		words = append(words, protoWord(p))
	}
	return words
}

// toRequest reads "tcp", "tcp,udp 8000-8999", "tcp/8000-8999" and "8000-8999/tcp".
func (f freeFlags) toRequest(args []string) (*pb.ListFreePortsRequest, error) {
	req := &pb.ListFreePortsRequest{Count: uint32(max(f.count, 0))}
	var list []string
	if f.both {
		list = []string{"tcp", "udp"}
	}
	for _, a := range args {
		protos, ports := registry.SplitProtocol(a)
		if isProtocols(a) {
			protos, ports = a, ""
		}
		switch {
		case protos == "":
		case len(list) > 0:
			return nil, usagef("%q: the protocols are said already; write them together, as in tcp,udp", a)
		default:
			list = strings.Split(protos, ",")
		}
		switch {
		case ports == "" && protos != "":
			continue
		case ports == "" || ports[0] < '0' || ports[0] > '9':
			return nil, usagef("%q is neither a protocol nor ports like 8000-8999", a)
		case req.Within != nil:
			return nil, usagef("%q is a second range; one is wanted", a)
		}
		var err error
		if req.Within, err = parseRange(ports); err != nil {
			return nil, err
		}
	}
	if len(list) == 0 {
		return nil, usagef("--free: for which protocol? Say tcp, udp, or --both")
	}
	for _, w := range list {
		p, ok := parseProtocol(w)
		if !ok || strings.ContainsAny(w, "46") {
			return nil, usagef("%q: a protocol like tcp or udp is wanted; IANA assigns ports for both address families", w)
		}
		req.Protocols = append(req.Protocols, p)
	}
	return req, nil
}

func (s *source) free(ctx context.Context, req *pb.ListFreePortsRequest) (*pb.ListFreePortsResponse, error) {
	return ask(ctx, s, func(ctx context.Context) (*pb.ListFreePortsResponse, error) {
		return s.cl.Ports.ListFreePorts(ctx, req)
	}, func() (*pb.ListFreePortsResponse, error) {
		return s.unassigned(req)
	})
}

const firstDynamic = 49152 // RFC 6335 section 6

// unassigned is the answer without portd, which only the registry stands for.
func (s *source) unassigned(req *pb.ListFreePortsRequest) (*pb.ListFreePortsResponse, error) {
	within := ianadb.Range{First: 1, Last: 65535}
	if r := req.GetWithin(); r != nil {
		var err error
		if within, err = services.ToRange("within", r); err != nil {
			return nil, err
		}
	}
	var protos []ianadb.Protocol
	for _, p := range req.GetProtocols() {
		as, err := services.ToProtocol("protocols", p)
		if err != nil {
			return nil, err
		}
		protos = append(protos, as)
	}
	out := &pb.ListFreePortsResponse{RegistryDate: s.own.Current.Date, Ephemeral: ephemeralPorts()}
	for _, r := range s.own.Free(within, protos...) {
		run := &pb.PortRange{First: uint32(r.First), Last: uint32(r.Last)}
		out.Free += size(run)
		if size(run) >= req.GetCount() {
			out.Ranges = append(out.Ranges, run)
		}
	}
	out.Assigned = uint32(within.Last) - uint32(within.First) + 1 - out.Free
	return out, nil
}

// ephemeralPorts is where the kernel takes local ports from (ip(7)), or nil where it does not say.
func ephemeralPorts() *pb.PortRange {
	text, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range")
	r := &pb.PortRange{}
	if _, scanErr := fmt.Sscan(string(text), &r.First, &r.Last); err != nil || scanErr != nil {
		return nil
	}
	return r
}
