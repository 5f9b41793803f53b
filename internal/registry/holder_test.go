package registry_test

import (
	"strings"
	"testing"

	"github.com/portd/portd/internal/registry"
)

func TestHolderString(t *testing.T) {
	ep, err := registry.ParseEndpoint("tcp/8080")
	if err != nil {
		t.Fatal(err)
	}
	const nobody = 4294967294 // has no name anywhere
	nginx := registry.Process{PID: 812, UID: nobody, Command: "nginx"}
	in := func(unit, container string) registry.Process {
		p := nginx
		p.Unit, p.Container = unit, container
		return p
	}
	id := strings.Repeat("3f2a91c0", 8)
	for _, tt := range []struct {
		processes []registry.Process
		want      string
	}{
		{nil, "a process of uid 4294967294 is listening on [::]:8080"},
		{[]registry.Process{nginx}, "nginx (pid 812, uid 4294967294) is listening on [::]:8080"},
		{[]registry.Process{in("nginx.service", "")}, "nginx (pid 812, uid 4294967294, nginx.service) is listening on [::]:8080"},
		{[]registry.Process{in("session-3.scope", "")}, "nginx (pid 812, uid 4294967294) is listening on [::]:8080"},
		{
			[]registry.Process{in("docker-"+id+".scope", id), nginx},
			"nginx (pid 812, uid 4294967294, container 3f2a91c03f2a) and 1 more are listening on [::]:8080",
		},
		{
			[]registry.Process{{PID: 5, UID: nobody, Command: "portd-keeper"}, {PID: 7, UID: nobody, Command: "portd"}},
			"another portd (pid 7, uid 4294967294) is listening on [::]:8080",
		},
		{
			[]registry.Process{{PID: 5, UID: nobody, Command: "portd-keeper"}, nginx},
			"another portd (pid 5, uid 4294967294) and 1 more are listening on [::]:8080",
		},
	} {
		h := registry.Holder{Endpoint: ep, State: registry.SocketListening, UID: nobody, Processes: tt.processes}
		if got := h.String(); got != tt.want {
			t.Errorf("got  %q\nwant %q", got, tt.want)
		}
	}
}
