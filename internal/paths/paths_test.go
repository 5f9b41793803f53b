package paths_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/portd/portd/internal/paths"
)

func TestOf(t *testing.T) {
	tests := []struct {
		name string
		uid  int
		env  map[string]string
		want paths.Paths
		fail string
	}{
		{
			name: "root, whatever its environment says",
			env:  map[string]string{"XDG_RUNTIME_DIR": "/run/user/0", "HOME": "/root"},
			want: paths.Paths{Sockets: "/run/portd", State: "/var/lib/portd", Policy: "/etc/portd/policy.yaml"},
		},
		{
			name: "a user with a session", uid: 1000,
			env:  map[string]string{"XDG_RUNTIME_DIR": "/run/user/1000", "HOME": "/home/ann"},
			want: paths.Paths{Sockets: "/run/user/1000/portd", State: "/home/ann/.local/state/portd", Policy: "/home/ann/.config/portd/policy.yaml"},
		},
		{
			name: "a user without one", uid: 1000,
			env:  map[string]string{"HOME": "/home/ann"},
			want: paths.Paths{Sockets: "/home/ann/.local/state/portd", State: "/home/ann/.local/state/portd", Policy: "/home/ann/.config/portd/policy.yaml"},
		},
		{
			name: "all said", uid: 1000,
			env:  map[string]string{"XDG_RUNTIME_DIR": "/r", "XDG_STATE_HOME": "/s", "XDG_CONFIG_HOME": "/c"},
			want: paths.Paths{Sockets: "/r/portd", State: "/s/portd", Policy: "/c/portd/policy.yaml"},
		},
		{
			name: "relative paths are ignored", uid: 1000,
			env:  map[string]string{"XDG_RUNTIME_DIR": "run", "XDG_STATE_HOME": "state", "XDG_CONFIG_HOME": ".", "HOME": "/h"},
			want: paths.Paths{Sockets: "/h/.local/state/portd", State: "/h/.local/state/portd", Policy: "/h/.config/portd/policy.yaml"},
		},
		{name: "nowhere", uid: 1000, fail: "neither $XDG_STATE_HOME nor $HOME is an absolute path"},
		{name: "no configuration", uid: 1000, env: map[string]string{"XDG_STATE_HOME": "/s"}, fail: "neither $XDG_CONFIG_HOME nor $HOME is an absolute path"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := paths.Of(tt.uid, func(name string) string { return tt.env[name] })
			if fail := text(err); fail != tt.fail {
				t.Errorf("error %q, want %q", fail, tt.fail)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestControls(t *testing.T) {
	const system = "/run/portd/portd.sock"
	tests := []struct {
		name string
		uid  int
		env  map[string]string
		want []string
	}{
		{"root", 0, map[string]string{"XDG_RUNTIME_DIR": "/run/user/0", "HOME": "/root"}, []string{system}},
		{
			"with a session", 1000,
			map[string]string{"XDG_RUNTIME_DIR": "/r", "HOME": "/h"},
			[]string{"/r/portd/portd.sock", "/h/.local/state/portd/portd.sock", system},
		},
		{"without one", 1000, map[string]string{"HOME": "/h"}, []string{"/h/.local/state/portd/portd.sock", system}},
		{"homeless", 1000, nil, []string{system}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, paths.Controls(tt.uid, func(name string) string { return tt.env[name] })); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestFiles(t *testing.T) {
	p := paths.System()
	got := []string{p.Control(), p.Store(), paths.Handoff(p.Control()), paths.Lock(p.Control())}
	want := []string{"/run/portd/portd.sock", "/var/lib/portd/portd.db", "/run/portd/handoff.sock", "/run/portd/lock"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
