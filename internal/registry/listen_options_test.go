package registry_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/portd/portd/internal/registry"
)

// What is named changes, and nothing else; without options all stays, without names all is new.
func TestListenChangesWhatIsNamed(t *testing.T) {
	t.Parallel()
	store, pegs := newStandIns()
	r, _ := start(t, store, pegs, registry.Config{})
	if _, err := r.Reserve(t.Context(), alice, registry.ReserveRequest{Spec: spec(t, "tcp/8080"), Name: "web"}); err != nil {
		t.Fatal(err)
	}
	full := registry.ListenOptions{Backlog: 5, NoDelayOff: true, KeepAliveIdle: time.Minute, SendBuffer: 7000}
	for _, step := range []struct {
		how  registry.Listen
		want registry.ListenOptions
	}{
		{registry.Listen{Keep: true}, registry.ListenOptions{}},
		{registry.Listen{Options: full}, full},
		{registry.Listen{Keep: true}, full},
		{
			registry.Listen{Options: registry.ListenOptions{Backlog: 9, SendBuffer: 1}, Keep: true, Fields: []string{"backlog", "no_delay"}},
			registry.ListenOptions{Backlog: 9, KeepAliveIdle: time.Minute, SendBuffer: 7000},
		},
		{registry.Listen{Options: registry.ListenOptions{KeepAliveProbes: 2}}, registry.ListenOptions{KeepAliveProbes: 2}},
		{registry.Listen{}, registry.ListenOptions{}},
	} {
		res, err := r.Listen(t.Context(), alice, "web", step.how, "")
		if err != nil {
			t.Fatalf("%+v: %v", step.how, err)
		}
		if diff := cmp.Diff(&step.want, res.Assigned[0].Listen); diff != "" {
			t.Errorf("%+v: (-want +got)\n%s", step.how, diff)
		}
	}
}

func TestListenRefuses(t *testing.T) {
	t.Parallel()
	store, pegs := newStandIns()
	r, _ := start(t, store, pegs, registry.Config{})
	for name, text := range map[string]string{"web": "tcp/8080", "calls": "sctp/8081", "file": "unix/run/file"} {
		if _, err := r.Reserve(t.Context(), alice, registry.ReserveRequest{Spec: spec(t, text), Name: name}); err != nil {
			t.Fatal(err)
		}
	}
	options := func(o registry.ListenOptions) registry.Listen { return registry.Listen{Options: o} }
	for _, c := range []struct {
		ref  string
		how  registry.Listen
		is   error
		says string
	}{
		{"web", options(registry.ListenOptions{Backlog: -1}), registry.ErrInvalid, "options.backlog"},
		{"web", options(registry.ListenOptions{KeepAliveIdle: 32768 * time.Second}), registry.ErrInvalid, "options.keep_alive_idle: 9h6m8s is not allowed"},
		{"web", options(registry.ListenOptions{KeepAliveInterval: time.Millisecond}), registry.ErrInvalid, "options.keep_alive_interval"},
		{"web", options(registry.ListenOptions{KeepAliveProbes: 128}), registry.ErrInvalid, "allowed are 1 to 127"},
		{"web", options(registry.ListenOptions{UserTimeout: 1<<31*time.Millisecond + 1}), registry.ErrInvalid, "options.user_timeout"},
		{"web", options(registry.ListenOptions{DeferAccept: 2 * time.Hour}), registry.ErrInvalid, "allowed are 1s to 1h"},
		{"web", options(registry.ListenOptions{ReceiveBuffer: 1 << 30}), registry.ErrInvalid, "options.receive_buffer"},
		{"web", options(registry.ListenOptions{SendBuffer: -1}), registry.ErrInvalid, "options.send_buffer"},
		{"web", registry.Listen{Keep: true, Fields: []string{"backlock"}}, registry.ErrInvalid, `update_mask: "backlock" is not an option of a listener; known are backlog`},
		{"web", options(registry.ListenOptions{Mark: 1}), registry.ErrDenied, "marks steer the host's routing"},
		{"calls", options(registry.ListenOptions{UserTimeout: time.Second}), registry.ErrInvalid, "options.user_timeout: is for tcp, not for sctp"},
		{"calls", options(registry.ListenOptions{NoDelayOff: true}), registry.ErrInvalid, "options.no_delay: is for tcp"},
		{"file", options(registry.ListenOptions{SendBuffer: 9}), registry.ErrInvalid, "options.send_buffer: is for ports"},
	} {
		_, err := r.Listen(t.Context(), alice, c.ref, c.how, "")
		if !errors.Is(err, c.is) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s, %+v: %v, want %v that says %q", c.ref, c.how, err, c.is, c.says)
		}
	}
	if res, err := r.Get(t.Context(), alice, "web"); err != nil || res.Assigned[0].Listen != nil {
		t.Errorf("it listens (%v)", err)
	}
}

// A mark is given by who administers portd, and stays when the owner changes something else.
func TestMarkStays(t *testing.T) {
	t.Parallel()
	store, pegs := newStandIns()
	r, _ := start(t, store, pegs, registry.Config{})
	if _, err := r.Reserve(t.Context(), alice, registry.ReserveRequest{Spec: spec(t, "tcp/8080"), Name: "web"}); err != nil {
		t.Fatal(err)
	}
	marked := registry.Listen{Options: registry.ListenOptions{Mark: 5}}
	if _, err := r.Listen(t.Context(), registry.Caller{UID: 0}, "web", marked, ""); err != nil {
		t.Fatal(err)
	}
	other := registry.Listen{Options: registry.ListenOptions{Backlog: 3}, Keep: true, Fields: []string{"backlog"}}
	res, err := r.Listen(t.Context(), alice, "web", other, "")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(&registry.ListenOptions{Backlog: 3, Mark: 5}, res.Assigned[0].Listen); diff != "" {
		t.Error(diff)
	}
	marked.Options.Mark = 6
	if _, err := r.Listen(t.Context(), alice, "web", marked, ""); !errors.Is(err, registry.ErrDenied) {
		t.Errorf("another mark: %v, want ErrDenied", err)
	}
	if _, err := r.Listen(t.Context(), alice, "web", registry.Listen{}, ""); err != nil {
		t.Errorf("without the mark: %v", err)
	}
}

func TestGroupsAreOfOneUDPPort(t *testing.T) {
	t.Parallel()
	store, pegs := newStandIns()
	r, _ := start(t, store, pegs, registry.Config{})
	for _, c := range []struct {
		text  string
		group int
		says  string // empty: it is allowed
	}{
		{"udp/5353", 4, ""},
		{"udp/5354", 1, "1 is not allowed; allowed are 2 to 64 sockets"},
		{"udp/5354", 65, "65 is not allowed"},
		{"udp/5354", -1, "-1 is not allowed"},
		{"udp/5354-5355", 2, "is for one port at a time"},
		{"tcp/5354", 2, "is for udp, not for tcp"},
		{"tcp,udp/5354", 2, "is for udp, not for tcp"},
	} {
		s := spec(t, c.text)
		s.Options.Group = c.group
		_, err := r.Reserve(t.Context(), alice, registry.ReserveRequest{Spec: s})
		if c.says == "" && err != nil || c.says != "" && (!errors.Is(err, registry.ErrInvalid) || !strings.Contains(err.Error(), "spec.bind_options.group: "+c.says)) {
			t.Errorf("%s, %d sockets: %v, want %q", c.text, c.group, err, c.says)
		}
	}
}
