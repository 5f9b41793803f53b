package main

import (
	"fmt"
	"strconv"
	"strings"

	pb "github.com/portd/portd/proto/portd/v1"
)

func size(r *pb.PortRange) uint32 { return r.GetLast() - r.GetFirst() + 1 }

func (c *ctl) printFree(answer *pb.ListFreePortsResponse, ranges []*pb.PortRange, req *pb.ListFreePortsRequest, alone bool) error {
	t := c.table()
	if len(ranges) > 0 && !c.quiet {
		t.row("PORTS", "COUNT", "")
	}
	marked := false
	for _, r := range ranges {
		if c.quiet {
			t.row(portsText(r))
			continue
		}
		mark := ephemeralText(r, answer.GetEphemeral())
		marked = marked || mark != ""
		t.row(portsText(r), strconv.Itoa(int(size(r))), mark)
	}
	if err := t.flush(); err != nil || c.quiet {
		return err
	}
	if marked {
		fmt.Fprintf(c.out, "ephemeral: outgoing connections take ports from %s\n", portsText(answer.GetEphemeral()))
	}
	if len(ranges) == 0 {
		fmt.Fprintf(c.out, "none: %s\n", whyNone(answer, req))
	}
	basis := ", and neither reserved nor bound here"
	switch {
	case alone:
		basis = "; without a portd nothing was looked at here"
	case !answer.GetHostChecked():
		basis = ", and not reserved here; this kernel does not say which are bound"
	}
	fmt.Fprintf(c.out, "free: unassigned by IANA (%s)%s\n", registryDate(answer.GetRegistryDate()), basis)
	if n := len(answer.GetRanges()) - len(ranges); n > 0 && req.GetCount() == 0 {
		if err := c.out.Flush(); err != nil {
			return err
		}
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

// whyNone says what is with the ports that are not free.
func whyNone(answer *pb.ListFreePortsResponse, req *pb.ListFreePortsRequest) string {
	within := req.GetWithin()
	if within == nil {
		within = &pb.PortRange{First: 1, Last: 65535}
	}
	if within.GetFirst() >= firstDynamic {
		return fmt.Sprintf("%s is never assigned, nor unassigned; portctl reserve tcp any chooses for you", portsText(within))
	}
	var parts []string
	for _, p := range []struct {
		n    uint32
		text string
	}{
		{answer.GetAssigned(), "assigned or kept by IANA"},
		{answer.GetReserved(), "reserved here"},
		{answer.GetInUse(), "in use here"},
	} {
		if p.n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", p.n, p.text))
		}
	}
	return fmt.Sprintf("of %s, %s", count(int(size(within)), "port"), strings.Join(parts, ", "))
}
