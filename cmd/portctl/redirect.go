package main

import (
	"strings"

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
