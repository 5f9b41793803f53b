package binder

import "github.com/portd/portd/internal/registry"

// in runs f where sockets are made and seen in a network namespace. What is done to a socket once it is made works from
// anywhere. f leaves nothing running.
func (b *Binder) in(netns string, f func() error) error {
	switch {
	case netns == registry.HostNetns:
		return f()
	case b.enter == nil:
		return &registry.UnsupportedError{
			What: "network namespace " + netns, Why: "this portd takes ports in its own network namespace only", Code: "NETNS",
		}
	}
	return b.enter(netns, f)
}
