package main

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	pb "github.com/portd/portd/proto/portd/v1"
)

func size(r *pb.PortRange) uint32 { return r.GetLast() - r.GetFirst() + 1 }

func (s *source) printFree(ctx context.Context, answer *pb.ListFreePortsResponse, ranges []*pb.PortRange, req *pb.ListFreePortsRequest) error {
	c := s.c
	t := c.table()
	if len(ranges) > 0 && !c.quiet {
		t.row("PORTS", "COUNT", "")
	}
	ephemeral, privileged := false, uint32(0)
	if !c.quiet {
		privileged = s.privileged(ctx, ranges)
	}
	for _, r := range ranges {
		if c.quiet {
			t.row(portsText(r))
			continue
		}
		mark := ephemeralText(r, answer.GetEphemeral())
		ephemeral = ephemeral || mark != ""
		switch {
		case r.GetLast() < privileged:
			mark = "privileged"
		case r.GetFirst() < privileged:
			mark = fmt.Sprintf("privileged below %d", privileged)
		}
		t.row(portsText(r), strconv.Itoa(int(size(r))), mark)
	}
	if err := t.flush(); err != nil || c.quiet {
		return err
	}
	if privileged > 0 {
		fmt.Fprintf(c.out, "privileged: ports below %d are for root to reserve\n", privileged)
	}
	if ephemeral {
		fmt.Fprintf(c.out, "ephemeral: outgoing connections take ports from %s\n", portsText(answer.GetEphemeral()))
	}
	if len(ranges) == 0 {
		fmt.Fprintf(c.out, "none: %s\n", s.whyNone(ctx, answer, req))
	}
	basis := ", and neither reserved nor bound here"
	switch {
	case s.alone():
		basis = "; without a portd nothing was looked at here"
	case !answer.GetHostChecked():
		basis = ", and not reserved here; this kernel does not say which are bound"
	}
	fmt.Fprintf(c.out, "free: unassigned by IANA (%s)%s\n", registryDate(answer.GetRegistryDate()), basis)
	if n := len(answer.GetRanges()) - len(ranges); n > 0 && req.GetCount() == 0 {
		c.say("%d of %d ranges; --all shows the rest", len(ranges), len(answer.GetRanges()))
	}
	return nil
}

// ephemeralText marks ports of which the kernel gives some to outgoing connections.
func ephemeralText(r, ephemeral *pb.PortRange) string {
	first, last := max(r.GetFirst(), ephemeral.GetFirst()), min(r.GetLast(), ephemeral.GetLast())
	switch {
	case ephemeral.GetLast() == 0 || first > last:
		return ""
	case first == r.GetFirst() && last == r.GetLast():
		return "ephemeral"
	}
	return "ephemeral from " + strconv.Itoa(int(first)) + " on"
}

// privileged is the first port that everybody may have, where some of these are below it and this user may not have them; else 0.
// Root may, of a portd that is root's.
func (s *source) privileged(ctx context.Context, ranges []*pb.PortRange) uint32 {
	first := uint32(1024)
	if text, err := os.ReadFile("/proc/sys/net/ipv4/ip_unprivileged_port_start"); err == nil {
		_, _ = fmt.Sscan(string(text), &first) // ip(7)
	}
	if !slices.ContainsFunc(ranges, func(r *pb.PortRange) bool { return r.GetFirst() < first }) {
		return 0
	}
	root := os.Geteuid() == 0
	if !s.alone() {
		ctx, cancel := context.WithTimeout(ctx, whoisPatience)
		defer cancel()
		st, err := s.cl.Daemon.GetStatus(ctx, &pb.GetStatusRequest{})
		root = err == nil && st.GetAdmin() && st.GetUid() == 0
	}
	if root {
		return 0
	}
	return first
}

// whyNone says what is with the ports that are not free.
func (s *source) whyNone(ctx context.Context, answer *pb.ListFreePortsResponse, req *pb.ListFreePortsRequest) string {
	within := req.GetWithin()
	if within == nil {
		within = &pb.PortRange{First: 1, Last: 65535}
	}
	if within.GetFirst() >= firstDynamic {
		return fmt.Sprintf("%s is never assigned, nor unassigned; portctl reserve tcp any chooses for you", portsText(within))
	}
	if size(within) == 1 && answer.GetAssigned() == 1 {
		if names := s.namesOf(ctx, within.GetFirst(), req.GetProtocols()); names != "" {
			return fmt.Sprintf("%d is %s", within.GetFirst(), names)
		}
	}
	var parts []string
	for _, p := range []struct {
		n    uint32
		text string
	}{
		{answer.GetAssigned(), "assigned or kept by IANA, or of a service of this host's own"},
		{answer.GetReserved(), "reserved here"},
		{answer.GetInUse(), "in use here"},
	} {
		if p.n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", p.n, p.text))
		}
	}
	return fmt.Sprintf("of %s, %s", count(int(size(within)), "port"), strings.Join(parts, ", "))
}

// namesOf is the services that have a port for any of the protocols, in words.
func (s *source) namesOf(ctx context.Context, port uint32, protos []pb.Protocol) string {
	var all []string
	for _, p := range protos {
		answer, err := s.whois(ctx, question{first: uint16(port), last: uint16(port), proto: p})
		if err != nil {
			return ""
		}
		for _, l := range named(answer.GetLookup().GetEntries()) {
			text := l.name
			if l.own {
				text += ", this host's own"
			}
			if !slices.Contains(all, text) {
				all = append(all, text)
			}
		}
	}
	return printable(strings.Join(all, "; "))
}
