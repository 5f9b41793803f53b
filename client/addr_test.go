package client_test

import (
	"net"
	"testing"

	"github.com/portd/portd/client"
	"github.com/portd/portd/internal/nstest"
)

// Addr is the first address of what portd listens on, however the endpoint is spelt.
func TestListenerAddr(t *testing.T) {
	nstest.Need(t) // for its ports
	p := newPortd(t)
	tests := map[string]string{
		"tcp4/20124":                "0.0.0.0:20124",
		"tcp/127.0.0.1:20126-20127": "127.0.0.1:20126",
		"tcp/127.0.0.1%lo:20128":    "127.0.0.1:20128",
	}
	if ln, err := net.Listen("tcp", "[::1]:0"); err == nil {
		ln.Close()
		tests["tcp/20123"], tests["tcp/[::1]:20125"] = "[::]:20123", "[::1]:20125"
	}
	for endpoint, want := range tests {
		l := p.listen(client.ListenConfig{}, endpoint)
		if got := l.Addr().String(); got != want {
			t.Errorf("%s: %s, want %s", endpoint, got, want)
		}
		l.Close()
	}
}
