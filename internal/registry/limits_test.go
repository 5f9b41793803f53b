package registry_test

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"

	"github.com/portd/portd/internal/registry"
)

// countedSpaces count how often a namespace was looked for.
type countedSpaces struct {
	*spaces
	looks int
}

func (s *countedSpaces) Keep(c registry.Caller, text string) (registry.Namespace, uint32, error) {
	s.looks++
	return s.spaces.Keep(c, text)
}

// Too much at once is refused before anything is done for it.
func TestTooMuchAtOnce(t *testing.T) {
	t.Parallel()
	all := &countedSpaces{spaces: newSpaces()}
	store, pegs := newStandIns()
	r, _ := start(t, store, pegs, registry.Config{Netns: all})

	many := spec(t, "tcp/8080")
	for range 10_000 {
		s := many.Endpoints[0]
		s.Netns = "blue"
		many.Endpoints = append(many.Endpoints, s)
	}
	if _, err := r.Reserve(t.Context(), root, registry.ReserveRequest{Spec: many}); !errors.Is(err, registry.ErrInvalid) {
		t.Errorf("10,001 endpoints: got %v, want ErrInvalid", err)
	}
	if all.looks > 0 {
		t.Errorf("%d namespaces were looked for", all.looks)
	}

	wide := anyOf(t, "tcp", registry.AnyPorts{Within: registry.PortRange{First: 1024, Last: 65535}, Count: 4096})
	wide.Mode = registry.Recorded
	for i := range 17 {
		wide.Endpoints[0].Addrs = append(wide.Endpoints[0].Addrs, netip.MustParseAddr(fmt.Sprintf("127.0.0.%d", i+1)))
	}
	if _, err := r.Reserve(t.Context(), alice, registry.ReserveRequest{Spec: wide}); !errors.Is(err, registry.ErrInvalid) {
		t.Errorf("17 times 4096 ports: got %v, want ErrInvalid", err)
	}
}
