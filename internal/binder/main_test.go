package binder_test

import (
	"log/slog"
	"net/netip"
	"os"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/binder"
	"github.com/portd/portd/internal/nstest"
	"github.com/portd/portd/internal/registry"
)

func TestMain(m *testing.M) {
	if os.Getenv(envHost) != "" {
		os.Exit(beHost())
	}
	if os.Getenv(envWarden) != "" {
		os.Exit(beWarden())
	}
	if os.Getenv(envVictim) != "" {
		os.Exit(beVictim())
	}
	nstest.Main(m)
}

// open makes a Binder in a network namespace of the test's own. A descriptor that is left behind fails the test.
func open(t testing.TB, cfg binder.Config) *binder.Binder {
	t.Helper()
	nstest.Need(t)
	nstest.Descriptors(t)
	cfg.Log = slog.New(slog.NewTextHandler(t.Output(), nil))
	b, err := binder.New(cfg)
	if err != nil {
		t.Fatalf("New: %v", err)
	}
	t.Cleanup(b.Close)
	return b
}

var lastPort atomic.Uint32

// port is one below the ephemeral range that nothing is on, not even a connection left over from another test.
func port() uint16 { return ports(1) }

// ports is the first of n such ports.
func ports(n int) uint16 {
	for {
		last := lastPort.Add(uint32(n)) % 12000
		first := 20000 + int(last) - n + 1
		if int(last) >= n && allFree(first, n) {
			return uint16(first)
		}
	}
}

func allFree(first, n int) bool {
	for p := first; p < first+n; p++ {
		fd, err := stranger{Type: unix.SOCK_STREAM, At: netip.AddrPortFrom(netip.IPv6Unspecified(), uint16(p))}.try()
		if isInUse(err) {
			return false
		}
		if err == nil {
			_ = unix.Close(fd)
		}
	}
	return true
}

// at parses an endpoint and puts it on port.
func at(t testing.TB, text string, port uint16) registry.Endpoint {
	t.Helper()
	e, err := registry.ParseEndpoint(text)
	if err != nil {
		t.Fatal(err)
	}
	e.Netns = registry.HostNetns
	return e.At(port)
}

// key names what is bound to ep: tests hold an endpoint under its own text.
func key(ep registry.Endpoint) registry.SocketKey {
	return registry.SocketKey{Reservation: ep.String()}
}

func hold(t testing.TB, b *binder.Binder, ep registry.Endpoint) {
	t.Helper()
	if err := b.Bind(t.Context(), registry.Bind{Key: key(ep), Endpoint: ep}); err != nil {
		t.Fatal(err)
	}
}

func listen(t testing.TB, b *binder.Binder, ep registry.Endpoint) {
	t.Helper()
	if err := b.Listen(t.Context(), key(ep), registry.ListenOptions{}); err != nil {
		t.Fatal(err)
	}
}

func release(t testing.TB, b *binder.Binder, ep registry.Endpoint) {
	t.Helper()
	if err := b.Release(key(ep)); err != nil {
		t.Fatal(err)
	}
}
