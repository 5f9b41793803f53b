package registry

import (
	"context"
	"fmt"
)

// A Redirect is a NAT rule of a host that sends what arrives at some ports elsewhere, past the sockets that have them.
type Redirect struct {
	Proto Protocol  // 0: all that have ports
	Ports PortRange // of the destination as it arrives
	// Address is what it must be for: an address, a prefix, or the first and last of several; empty means any.
	Address string
	// To is where it goes: "172.17.0.2:80", ":8443" for another port of this host, "172.17.0.2" for the same port there. Empty
	// where the rule computes it.
	To   string
	Rule string // where it stands: "nftables ip nat DOCKER"
}

// Redirects tells of a host's NAT rules.
type Redirects interface {
	// Redirects are the rules of a network namespace that redirect any of the ports, of a protocol or (0) of any. hidden says in a
	// sentence what kept it from looking, where there may be rules.
	Redirects(ctx context.Context, netns string, proto Protocol, ports PortRange) (all []Redirect, hidden string, err error)
}

// Redirects are the NAT rules that redirect any of the ports before a socket sees what arrives. Everybody may know them.
func (r *Registry) Redirects(ctx context.Context, c Caller, netns string, proto Protocol, ports PortRange) (all []Redirect, hidden string, err error) {
	if r.cfg.Redirects == nil {
		return nil, "", nil
	}
	leave, err := r.visit(c, &netns)
	if err != nil {
		return nil, "", err
	}
	defer leave()
	all, hidden, err = r.cfg.Redirects.Redirects(ctx, netns, proto, ports)
	switch {
	case err == nil:
		return all, hidden, nil
	case ctx.Err() != nil:
		return nil, "", ctx.Err()
	}
	// Who has a port can be told all the same.
	return nil, fmt.Sprintf("NAT rules, which may redirect ports, were not read: %v", err), nil
}
