package rpc_test

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/portd/portd/internal/registry"
	"github.com/portd/portd/internal/rpc"
	pb "github.com/portd/portd/proto/portd/v1"
)

func TestRefusedEndpointSpecs(t *testing.T) {
	tests := []struct{ spec, field, says string }{
		{`protocols: 1`, "f", "says no port"},
		{`protocols: 99 exact {first: 1}`, "f.protocols[0]", "99 is unknown"},
		{`protocols: [1, 0] exact {first: 1}`, "f.protocols[1]", "is unspecified"},
		{`exact {}`, "f.exact.first", "0 is not a port"},
		{`exact {first: 65536}`, "f.exact.first", "65536 is not a port"},
		{`exact {first: 1 last: 4294967295}`, "f.exact.last", "4294967295 is not a port"},
		{`exact {first: 80 last: 70}`, "f.exact", "80-70 runs backwards"},
		{`exact {last: 70}`, "f.exact.first", "0 is not a port"},
		{`any {within {first: 80 last: 70}}`, "f.any.within", "runs backwards"},
		{`any {within {first: 70000}}`, "f.any.within.first", "70000"},
		{`any {prefer_port: 0}`, "f.any.prefer_port", "0 is not a port"},
		{`any {prefer_port: 65536}`, "f.any.prefer_port", "65536 is not a port"},
		{`any {prefer_service: ""}`, "f.any.prefer_service", "is empty"},
		{`service: ""`, "f.service", "is empty"},
		{`addresses: "localhost" exact {first: 1}`, "f.addresses[0]", `"localhost" is not an IP address`},
		{`addresses: ["::1", ""] exact {first: 1}`, "f.addresses[1]", `"" is not an IP address`},
		{`addresses: "::ffff:1.2.3.4%eth0" exact {first: 1}`, "f.addresses[0]", "no zone"},
	}
	for _, tt := range tests {
		t.Run(tt.spec, func(t *testing.T) {
			var spec pb.EndpointSpec
			if err := prototext.Unmarshal([]byte(tt.spec), &spec); err != nil {
				t.Fatal(err)
			}
			_, err := rpc.ToEndpointSpec("f", &spec)
			var invalid *registry.InvalidError
			if !errors.As(err, &invalid) || invalid.Field != tt.field || !strings.Contains(invalid.Reason, tt.says) {
				t.Errorf("got %v, want %s: …%s…", err, tt.field, tt.says)
			}
		})
	}
}

func TestEndpointSpecs(t *testing.T) {
	tests := []struct {
		spec string
		want registry.EndpointSpec
	}{
		{`protocols: [1, 2, 3, 4, 5] exact {first: 80}`, registry.EndpointSpec{
			Protos: []registry.Protocol{registry.TCP, registry.UDP, registry.SCTP, registry.DCCP, registry.UDPLite}, Exact: registry.PortRange{First: 80, Last: 80},
		}},
		{`addresses: ["::ffff:192.0.2.1", "fe80::1%eth0"] exact {first: 1 last: 65535}`, registry.EndpointSpec{
			Addrs: []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("fe80::1%eth0")}, Exact: registry.PortRange{First: 1, Last: 65535},
		}},
		{`any {} netns: "blue" device: "eth1" v6_only: true`, registry.EndpointSpec{Any: &registry.AnyPorts{}, Netns: "blue", Device: "eth1", V6Only: true}},
		{`any {count: 3 within {first: 9000 last: 9999}}`, registry.EndpointSpec{Any: &registry.AnyPorts{Count: 3, Within: registry.PortRange{First: 9000, Last: 9999}}}},
		{`any {pool: "ci" prefer_port: 8080}`, registry.EndpointSpec{Any: &registry.AnyPorts{Pool: "ci", PreferPort: 8080}}},
		{`any {prefer_service: "http"}`, registry.EndpointSpec{Any: &registry.AnyPorts{PreferService: "http"}}},
		{`service: "https"`, registry.EndpointSpec{Service: "https"}},
	}
	for _, tt := range tests {
		t.Run(tt.spec, func(t *testing.T) {
			var spec pb.EndpointSpec
			if err := prototext.Unmarshal([]byte(tt.spec), &spec); err != nil {
				t.Fatal(err)
			}
			got, err := rpc.ToEndpointSpec("f", &spec)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got, cmpopts.EquateComparable(netip.Addr{})); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestOtherRequests(t *testing.T) {
	no := false
	got, err := rpc.ToListenOptions("options", &pb.ListenOptions{Backlog: 4294967295, NoDelay: &no})
	if want := (registry.ListenOptions{Backlog: 1<<31 - 1, NoDelayOff: true}); err != nil || got != want {
		t.Errorf("listen options %+v (%v), want %+v", got, err, want)
	}
	if got, err := rpc.ToListenOptions("options", nil); err != nil || got != (registry.ListenOptions{}) {
		t.Errorf("no listen options are %+v (%v)", got, err)
	}
	for field, req := range map[string]*pb.WatchReservationsRequest{
		"progress_interval":  {ProgressInterval: &durationpb.Duration{Seconds: -1}},
		"filter.protocol":    {Filter: &pb.ReservationFilter{Protocol: 77}},
		"filter.ports.first": {Filter: &pb.ReservationFilter{Ports: &pb.PortRange{First: 70000}}},
		"filter.states[1]":   {Filter: &pb.ReservationFilter{States: []pb.EndpointState{1, 5}}},
		"filter.states[0]":   {Filter: &pb.ReservationFilter{States: []pb.EndpointState{0}}},
		"":                   {ProgressInterval: durationpb.New(time.Hour)},
	} {
		_, err := rpc.ToWatch(req)
		var invalid *registry.InvalidError
		if errors.As(err, &invalid); field == "" && err != nil || field != "" && (invalid == nil || invalid.Field != field) {
			t.Errorf("%v: %v, want it to name %q", req, err, field)
		}
	}
}

// The enums that are converted by number.
func TestSameNumbers(t *testing.T) {
	for s := registry.StateHeld; s <= registry.StateLost; s++ {
		if got := strings.ToLower(short(pb.EndpointState(s))); got != s.String() {
			t.Errorf("%v is %s in the API", s, got)
		}
	}
	for have, want := range map[pb.EventType]registry.EventType{
		pb.EventType_EVENT_TYPE_RESERVED:      registry.EventReserved,
		pb.EventType_EVENT_TYPE_RELEASED:      registry.EventReleased,
		pb.EventType_EVENT_TYPE_LISTENING:     registry.EventListening,
		pb.EventType_EVENT_TYPE_CLOSED:        registry.EventClosed,
		pb.EventType_EVENT_TYPE_LOST:          registry.EventLost,
		pb.EventType_EVENT_TYPE_RECOVERED:     registry.EventRecovered,
		pb.EventType_EVENT_TYPE_EXPIRED:       registry.EventExpired,
		pb.EventType_EVENT_TYPE_LEASE_CREATED: registry.EventLeaseCreated,
		pb.EventType_EVENT_TYPE_LEASE_ENDED:   registry.EventLeaseEnded,

		pb.EventType_EVENT_TYPE_SERVICE_ADDED:     registry.EventServiceAdded,
		pb.EventType_EVENT_TYPE_SERVICE_EDITED:    registry.EventServiceEdited,
		pb.EventType_EVENT_TYPE_SERVICE_REMOVED:   registry.EventServiceRemoved,
		pb.EventType_EVENT_TYPE_REGISTRY_REPLACED: registry.EventRegistryReplaced,
		pb.EventType_EVENT_TYPE_UPDATED:           registry.EventUpdated,
	} {
		if have != pb.EventType(want) {
			t.Errorf("%v is %d in the registry", have, want)
		}
	}
	for have, want := range map[pb.SocketState]registry.SocketState{
		pb.SocketState_SOCKET_STATE_LISTENING: registry.SocketListening,
		pb.SocketState_SOCKET_STATE_BOUND:     registry.SocketBound,
		pb.SocketState_SOCKET_STATE_CONNECTED: registry.SocketConnected,
		pb.SocketState_SOCKET_STATE_LEFTOVER:  registry.SocketLeftover,
	} {
		if have != pb.SocketState(want) {
			t.Errorf("%v is %d in the registry", have, want)
		}
	}
	for have, want := range map[pb.Preference]registry.Preference{
		pb.Preference_PREFERENCE_REQUEST: registry.PreferredByRequest,
		pb.Preference_PREFERENCE_NAME:    registry.PreferredByName,
	} {
		if have != pb.Preference(want) {
			t.Errorf("%v is %d in the registry", have, want)
		}
	}
	for have, want := range map[pb.WorkerState]rpc.WorkerState{
		pb.WorkerState_WORKER_STATE_ATTACHED: rpc.WorkerAttached,
		pb.WorkerState_WORKER_STATE_READY:    rpc.WorkerReady,
		pb.WorkerState_WORKER_STATE_DRAINING: rpc.WorkerDraining,
	} {
		if have != pb.WorkerState(want) {
			t.Errorf("%v is %d in the hand-off", have, want)
		}
	}
}

// Whatever comes over the wire is refused or understood, and what is understood says the same when it is sent back.
func FuzzEndpointSpec(f *testing.F) {
	for _, text := range []string{
		`protocols: [1, 2] addresses: ["127.0.0.1", "::1"] exact {first: 1 last: 65535}`,
		`protocols: 1 any {count: 4294967295 within {first: 9000 last: 9009}}`,
		`protocols: 2 any {pool: "ci" prefer_port: 65536}`,
		`protocols: 2 any {pool: "default" prefer_service: "http"}`,
		`service: "cl/1" netns: "blue" device: "eth0" v6_only: true addresses: "fe80::1%eth0"`,
		`addresses: "::ffff:1.2.3.4" exact {first: 65536}`,
		``,
	} {
		var spec pb.EndpointSpec
		if err := prototext.Unmarshal([]byte(text), &spec); err != nil {
			f.Fatal(err)
		}
		wire, err := proto.Marshal(&spec)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(wire)
	}
	f.Fuzz(func(t *testing.T, wire []byte) {
		var spec pb.EndpointSpec
		if proto.Unmarshal(wire, &spec) != nil {
			return
		}
		in, err := rpc.ToEndpointSpec("f", &spec)
		if err != nil {
			if !errors.Is(err, registry.ErrInvalid) {
				t.Fatalf("%v: %v", &spec, err)
			}
			return
		}
		out := rpc.FromEndpointSpec(in)
		again, err := rpc.ToEndpointSpec("f", out)
		if err != nil {
			t.Fatalf("%v is understood, %v is not: %v", &spec, out, err)
		}
		if diff := cmp.Diff(in, again, cmpopts.EquateComparable(netip.Addr{})); diff != "" {
			t.Fatal(diff)
		}
	})
}
