package natrules

import (
	"context"

	"github.com/portd/portd/internal/registry"
)

// A Host is a registry.Redirects. It must be closed.
type Host struct {
	own   *Reader
	enter func(netns string, f func() error) error
}

// OpenHost makes a Host for the network namespace of the calling thread, which is portd's, and for others by enter, which runs f on
// a thread that is in the one named.
func OpenHost(enter func(netns string, f func() error) error) (*Host, error) {
	own, err := Open()
	if err != nil {
		return nil, err
	}
	return &Host{own, enter}, nil
}

// Close closes the Host.
func (h *Host) Close() { h.own.Close() }

// Redirects are those of one namespace. Those of others than portd's own are read anew each time.
func (h *Host) Redirects(ctx context.Context, netns string, proto registry.Protocol, ports registry.PortRange) (all []registry.Redirect, hidden string, err error) {
	if netns == registry.HostNetns {
		return h.own.Redirects(ctx, proto, ports)
	}
	err = h.enter(netns, func() error {
		r, err := Open()
		if err != nil {
			return err
		}
		defer r.Close()
		all, hidden, err = r.Redirects(ctx, proto, ports)
		return err
	})
	return all, hidden, err
}
