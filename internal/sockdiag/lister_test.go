package sockdiag_test

import (
	"slices"
	"testing"

	"golang.org/x/sync/errgroup"

	"github.com/portd/portd/internal/nstest"
	"github.com/portd/portd/internal/sockdiag"
)

// A Lister that many use at the same time tells each of what it asked for, and leaves no descriptor once it is closed.
func TestLister(t *testing.T) {
	nstest.Descriptors(t)
	var l sockdiag.Lister
	t.Cleanup(l.Close)
	type place struct {
		protocol sockdiag.Protocol
		port     uint16
	}
	var places []place
	for _, addr := range []string{v4, any4, any6} {
		places = append(places,
			place{sockdiag.TCP, local(t, listen(t, open(t, stream, 0, addr))).Port()},
			place{sockdiag.UDP, local(t, open(t, datagram, 0, addr)).Port()})
	}
	var asking errgroup.Group
	for range 4 {
		for _, p := range places {
			asking.Go(func() error {
				for range 20 {
					sockets, err := l.List(t.Context(), sockdiag.Filter{First: p.port})
					if err != nil {
						return err
					}
					if !slices.ContainsFunc(sockets, func(s sockdiag.Socket) bool { return s.Protocol == p.protocol && s.Local.Port() == p.port }) {
						t.Errorf("%v %d is not among %v", p.protocol, p.port, sockets)
					}
				}
				return nil
			})
		}
	}
	if err := asking.Wait(); err != nil {
		t.Fatal(err)
	}
}
