package main

import (
	"context"
	"strings"

	"github.com/portd/portd/client"
	pb "github.com/portd/portd/proto/portd/v1"
)

// redirectText is a NAT rule as a sentence: "tcp/8080 is redirected to 172.17.0.2:80 by nftables ip nat DOCKER; sockets do not see
// it".
func redirectText(r *pb.Redirect) string {
	verb := "is"
	if r.GetPorts().GetLast() > r.GetPorts().GetFirst() {
		verb = "are"
	}
	return strings.Join(strings.Fields(redirectedPorts(r)+" "+verb+" redirected "+redirectedTo(r)+" by "+r.GetRule()), " ") + "; sockets do not see it"
}

// sayInTheWay tells what keeps from a reservation's ports what arrives for them, although they have just been got: NAT rules, and
// where portd does not bind them, whoever has bound them before. Where that is not to be had, nothing is told.
func (c *ctl) sayInTheWay(ctx context.Context, cl *client.Client, res *pb.Reservation) {
	told := map[string]bool{}
	say := func(text string) {
		if !told[text] {
			told[text] = true
			c.say("%s", text)
		}
	}
	for _, a := range res.GetAssigned() {
		ep := a.GetEndpoint()
		answer, err := cl.Ports.Whois(ctx, &pb.WhoisRequest{
			Query: &pb.WhoisRequest_Ports{Ports: ep.GetPorts()}, Protocol: ep.GetProtocol(), Netns: ep.GetNetns(),
		})
		if err != nil {
			return
		}
		for _, r := range answer.GetRedirects() {
			say("but " + redirectText(r))
		}
		for _, u := range answer.GetUses() {
			r := u.GetReservation()
			if who := holdersText(r.GetHolders()); r.GetId() == res.GetId() && r.GetState() == "recorded" && who != "" {
				say("now " + who)
			}
		}
	}
}

// redirectedPorts is "tcp/8080", "tcp/127.0.0.1:8080", or "8080" where it is so for every protocol.
func redirectedPorts(r *pb.Redirect) string {
	text := portsText(r.GetPorts())
	switch addr := r.GetAddress(); {
	case strings.Contains(addr, ":"):
		text = "[" + addr + "]:" + text
	case addr != "":
		text = addr + ":" + text
	}
	if r.GetProtocol() == pb.Protocol_PROTOCOL_UNSPECIFIED {
		return text
	}
	return protoWord(r.GetProtocol()) + "/" + text
}

// redirectedTo is empty where the rule computes it.
func redirectedTo(r *pb.Redirect) string {
	if r.GetTo() == "" {
		return ""
	}
	return "to " + r.GetTo()
}
