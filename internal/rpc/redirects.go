package rpc

import (
	"context"
	"slices"

	"github.com/portd/portd/internal/registry"
	pb "github.com/portd/portd/proto/portd/v1"
)

// A redirections collects the NAT rules that an answer tells of, each once.
type redirections struct {
	all    []registry.Redirect
	hidden []string
}

// add looks for rules that redirect any of some ports.
func (d *redirections) add(ctx context.Context, reg *registry.Registry, me registry.Caller, netns string, w run) error {
	more, hidden, err := reg.Redirects(ctx, me, netns, w.proto, w.ports)
	if err != nil {
		return err
	}
	for _, r := range more {
		if !slices.Contains(d.all, r) {
			d.all = append(d.all, r)
		}
	}
	if hidden != "" && !slices.Contains(d.hidden, hidden) {
		d.hidden = append(d.hidden, hidden)
	}
	return nil
}

func (d *redirections) messages() (out []*pb.Redirect) {
	for _, r := range d.all {
		out = append(out, &pb.Redirect{
			Protocol: fromProtocol(r.Proto), Ports: fromPortRange(r.Ports), Address: r.Address, To: r.To, Rule: r.Rule,
		})
	}
	return out
}
