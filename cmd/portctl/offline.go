package main

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/portd/portd/internal/ianadb"
	"github.com/portd/portd/internal/paths"
	"github.com/portd/portd/internal/registry"
	"github.com/portd/portd/internal/registry/boltstore"
	"github.com/portd/portd/internal/services"
)

// offlineServices is the registry for a portctl that has no portd to ask, and where it is from in words: what the last portd
// kept, with the host's own entries, where its state may be read, and the copy inside portctl where it may not.
func (c *ctl) offlineServices() (*registry.Services, string) {
	for _, path := range c.stores() {
		current, own, err := boltstore.ReadServices(context.Background(), path)
		var kept *registry.Services
		if err == nil && current != nil {
			kept, err = registry.Stored(ianadb.Embedded(), current, own)
		}
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case errors.Is(err, fs.ErrPermission):
			c.warn("%s, where portd keeps the registry, is not for you to read", path)
		case err != nil:
			c.warn("the registry that portd keeps cannot be read: %v", err)
		case kept == nil:
		case kept.Current.Origin == registry.Embedded && len(kept.Own) == 0:
			return services.Embedded(), "the copy inside portctl"
		default:
			return kept, "what portd last kept in " + path
		}
	}
	return services.Embedded(), "the copy inside portctl"
}

// stores are the files that the portd may have left which does not answer. One whose socket was named has its state beside it,
// if anywhere that is known.
func (c *ctl) stores() (all []string) {
	socket := c.socket
	if socket == "" {
		socket = os.Getenv(paths.SocketEnv)
	}
	if socket != "" {
		all = append(all, paths.Paths{State: filepath.Dir(socket)}.Store())
	}
	if own, err := paths.Of(os.Geteuid(), os.Getenv); err == nil {
		all = append(all, own.Store())
	}
	if system := paths.System().Store(); len(all) == 0 || all[len(all)-1] != system {
		all = append(all, system)
	}
	return all
}
