package binder

import (
	"context"

	"github.com/portd/portd/internal/registry"
	"github.com/portd/portd/internal/sockdiag"
)

var _ registry.Closings = (*Binder)(nil)

// WatchClosed tells of sockets that are gone, those of the Binder included, as registry.Closings says. It does not tell of UDP-Lite, SCTP
// and DCCP, nor of anything where the kernel does not, which is an error.
func (b *Binder) WatchClosed(ctx context.Context, ports []uint16, look func(), closed func(p registry.Protocol, port uint16)) error {
	return sockdiag.WatchClosed(ctx, ports, look, func(p sockdiag.Protocol, port uint16) { closed(registry.Protocol(p), port) })
}
