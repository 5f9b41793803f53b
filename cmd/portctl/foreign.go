package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/portd/portd/client"
	"github.com/portd/portd/internal/registry"
	pb "github.com/portd/portd/proto/portd/v1"
)

const foreignHelp = `With --foreign it shows every port that is bound here, by portd or by anybody else: what is
done with it, by whom, and which reservation it is of. Of other users' processes you see
what /proc would show you; what is hidden is said. Connections are counted, and listed
with --connections. What NAT rules (Docker's, kube-proxy's, your own) send elsewhere before any
socket sees it comes last, as "redirected". With -q the endpoints alone.`

func (c *ctl) listForeign(ctx context.Context, args []string, connections bool) error {
	req, err := toUsesRequest(args)
	if err != nil {
		return err
	}
	req.Connections, req.Netns = connections, c.netns
	cl, err := c.dial(ctx)
	if err != nil {
		return err
	}
	defer cl.Close()
	all, err := listUses(ctx, cl, req)
	if err != nil || c.json() {
		return c.jsonUnless(err, all)
	}
	t := c.listing(len(all.GetUses())+len(all.GetRedirects()), "ENDPOINT", "STATE", "USER", "PROCESS", "OF", "RESERVATION")
	for _, u := range all.GetUses() {
		if c.quiet {
			t.row(u.GetEndpoint().GetText())
			continue
		}
		if h := u.GetHolder(); h != nil {
			t.row(holderCells(u.GetEndpoint().GetText(), h)...)
		}
		r := u.GetReservation()
		if r == nil {
			continue
		}
		by := "portd"
		if r.GetState() == "recorded" || r.GetState() == "lost" {
			by = ""
		}
		t.row(u.GetEndpoint().GetText(), r.GetState(), ownerName(r.GetOwner()), by, "", firstOf(r.GetName(), r.GetId()))
		for _, h := range r.GetHolders() {
			t.row(holderCells("  "+h.GetEndpoint().GetText(), h)...)
		}
	}
	for _, r := range all.GetRedirects() {
		if c.quiet {
			t.row(redirectedPorts(r))
		} else {
			t.row(redirectedPorts(r), "redirected", "", redirectedTo(r), r.GetRule(), "")
		}
	}
	if err := t.flush(); err != nil {
		return err
	}
	if n := int(all.GetConnections() + all.GetLeftovers()); n > 0 && !connections && !c.quiet {
		c.say("and %s, %s; --connections lists them", count(int(all.GetConnections()), "connection"),
			count(int(all.GetLeftovers()), "closed one")+" that the kernel still remembers")
	}
	for _, h := range all.GetHidden() {
		c.say("%s", h)
	}
	return nil
}

// holderCells is a socket that is not portd's as a row.
func holderCells(endpoint string, h *pb.Holder) []string {
	state := word(h.GetState())
	if h.GetMultipath() {
		state += " (mptcp)"
	}
	if h.Uid == nil {
		return []string{endpoint, state, "", "", "", ""}
	}
	uid, user, process, of := h.GetUid(), h.GetUser(), "hidden", ""
	if all := h.GetProcesses(); len(all) > 0 {
		p := all[0]
		uid, user, of = p.GetUid(), p.GetUser(), processPlace(p)
		process = fmt.Sprintf("%s (%d)", p.GetCommand(), p.GetPid())
		if len(all) > 1 {
			process += fmt.Sprintf(" +%d", len(all)-1)
		}
	}
	if user == "" {
		user = fmt.Sprintf("uid:%d", uid)
	}
	return []string{endpoint, state, user, process, of, ""}
}

func firstOf(name, id string) string {
	if name != "" {
		return name
	}
	return id
}

// listUses is all parts of the answer as one.
func listUses(ctx context.Context, cl *client.Client, req *pb.ListPortUsesRequest) (*pb.ListPortUsesResponse, error) {
	stream, err := cl.Ports.ListPortUses(ctx, req)
	if err != nil {
		return nil, err
	}
	all := &pb.ListPortUsesResponse{}
	for {
		part, err := stream.Recv()
		switch {
		case errors.Is(err, io.EOF):
			return all, nil
		case err != nil:
			return nil, err
		}
		all.Uses = append(all.Uses, part.GetUses()...)
		all.Hidden = append(all.Hidden, part.GetHidden()...)
		all.Redirects = append(all.Redirects, part.GetRedirects()...)
		all.Connections += part.GetConnections()
		all.Leftovers += part.GetLeftovers()
	}
}

// toUsesRequest reads "tcp", "8080", "tcp,udp 8000-8999", "tcp/8000-8999" and nothing at all.
func toUsesRequest(args []string) (*pb.ListPortUsesRequest, error) {
	req := &pb.ListPortUsesRequest{}
	for _, a := range args {
		protos, ports := registry.SplitProtocol(a)
		if isProtocols(a) {
			protos, ports = a, ""
		}
		if protos != "" && len(req.GetProtocols()) > 0 {
			return nil, usagef("%q: the protocols are said already; write them together, as in tcp,udp", a)
		}
		if protos != "" {
			for w := range strings.SplitSeq(protos, ",") {
				p, ok := parseProtocol(w)
				if !ok || strings.ContainsAny(w, "46") {
					return nil, usagef("%q: a protocol like tcp or udp is wanted; both address families are shown", w)
				}
				req.Protocols = append(req.Protocols, p)
			}
		}
		var err error
		switch {
		case ports == "" && protos != "":
		case ports == "" || ports[0] < '0' || ports[0] > '9':
			return nil, usagef("%q is neither a protocol nor ports like 8080 or 8000-8999", a)
		case req.Ports != nil:
			return nil, usagef("%q is a second range; one is wanted", a)
		default:
			if req.Ports, err = parseRange(ports); err != nil {
				return nil, err
			}
		}
	}
	return req, nil
}
