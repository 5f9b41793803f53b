package registry_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/portd/portd/internal/registry"
)

func TestPrefer(t *testing.T) {
	t.Parallel()
	ci := onePool("ci", registry.StrategyLowest, 0, registry.PortRange{First: 20000, Last: 20009})
	both := spec(t, "tcp/8000")
	tests := []struct {
		name   string
		protos string
		any    registry.AnyPorts
		exact  string // an endpoint of the same reservation
		want   string // what was given
		passed string // why not what was preferred
	}{
		{"free, wherever it lies", "tcp", registry.AnyPorts{Pool: "ci", PreferPort: 8080}, "", "tcp/8080", ""},
		{"on both", "tcp,udp", registry.AnyPorts{Pool: "ci", PreferPort: 8081}, "", "tcp/8081, udp/8081", ""},
		{"out of the range", "tcp", registry.AnyPorts{Within: registry.PortRange{First: 20000, Last: 20000}, PreferPort: 8080}, "", "tcp/8080", ""},
		{"a run", "tcp", registry.AnyPorts{Pool: "ci", Count: 3, PreferPort: 8080}, "", "tcp/8080-8082", ""},
		{"a service", "tcp", registry.AnyPorts{Pool: "ci", PreferService: "postgresql"}, "", "tcp/5432", ""},
		{"another's", "tcp", registry.AnyPorts{Pool: "ci", PreferPort: 8000}, "", "tcp/20000", `tcp/8000 is taken: reserved by "theirs"`},
		{"one of a run is another's", "tcp", registry.AnyPorts{Pool: "ci", Count: 2, PreferPort: 7999}, "", "tcp/20000-20001", `is taken: reserved by "theirs"`},
		{"one protocol is a stranger's", "tcp,udp", registry.AnyPorts{Pool: "ci", PreferPort: 8001}, "", "tcp/20000, udp/20000", "is taken: "},
		{"not the caller's to have", "tcp", registry.AnyPorts{Pool: "ci", PreferService: "https"}, "", "tcp/20000", "ports below 1024 are for root"},
		{"its own", "tcp", registry.AnyPorts{Pool: "ci", PreferPort: 8090}, "tcp/8090", "tcp/8090, tcp/20000", "another endpoint of the same reservation"},
		{"another's, beside one of its own", "tcp", registry.AnyPorts{Pool: "ci", PreferPort: 8000}, "tcp/8090", "tcp/8090, tcp/20000", `reserved by "theirs"`},
	}
	for _, tt := range tests {
		for _, mode := range []registry.Mode{registry.Held, registry.Recorded} {
			t.Run(tt.name+" "+mode.String(), func(t *testing.T) {
				store, pegs := newStandIns()
				r, stop := start(t, store, pegs, registry.Config{Settings: ci})
				if _, err := r.Reserve(t.Context(), bob, registry.ReserveRequest{Spec: both, Name: "theirs"}); err != nil {
					t.Fatal(err)
				}
				pegs.mu.Lock()
				pegs.bound[foreign] = []registry.Endpoint{hostEndpoint(t, "udp/127.0.0.1:8001")}
				pegs.mu.Unlock()
				s := anyOf(t, tt.protos, tt.any)
				s.Mode = mode
				if tt.exact != "" {
					s.Endpoints = append(s.Endpoints, spec(t, tt.exact).Endpoints...)
				}
				req := registry.ReserveRequest{Spec: s, RequestID: "r1"}
				res, err := r.Reserve(t.Context(), alice, req)
				if err != nil {
					t.Fatal(err)
				}
				check := func(res registry.Reserved) {
					t.Helper()
					if res.Endpoints() != tt.want {
						t.Errorf("got %s, want %s", res.Endpoints(), tt.want)
					}
					switch {
					case tt.passed == "" && len(res.Passed) == 0:
					case len(res.Passed) != 1 || res.Passed[0].Preference != registry.PreferredByRequest || tt.passed == "" || !strings.Contains(res.Passed[0].Reason, tt.passed):
						t.Errorf("passed over were %+v, want %q", res.Passed, tt.passed)
					}
				}
				check(res)
				if n := pegs.count() - 2; mode == registry.Held && n != len(res.Assigned) {
					t.Errorf("%d endpoints are held, want %d", n, len(res.Assigned))
				}
				stop()
				_, pegs = newStandIns()
				r, _ = start(t, store, pegs, registry.Config{Settings: ci})
				if res, err = r.Reserve(t.Context(), alice, req); err != nil {
					t.Fatal(err)
				}
				check(res) // the same answer again
			})
		}
	}
}

func TestPreferenceRefused(t *testing.T) {
	t.Parallel()
	store, pegs := newStandIns()
	r, _ := start(t, store, pegs, registry.Config{})
	tests := []struct {
		any  registry.AnyPorts
		want error
		says string
	}{
		{registry.AnyPorts{PreferPort: 80, PreferService: "http"}, registry.ErrInvalid, "a port and a service"},
		{registry.AnyPorts{PreferService: "htttp"}, registry.ErrNotFound, `no port for "htttp" over tcp`},
		{registry.AnyPorts{PreferService: "http-alt"}, registry.ErrInvalid, "several ports"},
		{registry.AnyPorts{PreferPort: 65535, Count: 2}, registry.ErrInvalid, "2 contiguous ports do not begin at 65535"},
	}
	for _, tt := range tests {
		_, err := r.Reserve(t.Context(), alice, registry.ReserveRequest{Spec: anyOf(t, "tcp", tt.any)})
		if !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%+v: got %v, want %v: %s", tt.any, err, tt.want, tt.says)
		}
	}
}
