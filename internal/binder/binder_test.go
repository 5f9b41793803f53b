package binder_test

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/binder"
	"github.com/portd/portd/internal/registry"
)

func TestFeatures(t *testing.T) {
	b := open(t, binder.Config{})
	var names []string
	for _, f := range b.Features() {
		names = append(names, f.Name)
		if f.Consequence == "" {
			t.Errorf("%s: nothing said of what is weaker without it", f.Name)
		}
		if f.Name == "exclusive-hold" && !f.Available {
			t.Error("a hold is not exclusive on this kernel, it says")
		}
	}
	want := []string{"exclusive-hold", "bound-sockets-shown", "hold-over-leftovers", "processes-of-others", "closed-sockets-told", "ipv6"}
	if diff := cmp.Diff(want, names); diff != "" {
		t.Errorf("features (-want +got):\n%s", diff)
	}
	if r := b.Ephemeral(registry.HostNetns); r.First == 0 || r.Last < r.First {
		t.Errorf("ephemeral ports are %v", r)
	}
	if p := b.FirstUnprivileged(registry.HostNetns); p == 0 {
		t.Error("the first unprivileged port is 0")
	}
}

// Trying out the kernel leaves nothing behind that others could trip over.
func TestNewLeavesNothing(t *testing.T) {
	first := open(t, binder.Config{})
	everything := at(t, "tcp/1", 1)
	everything.Last = 65535
	before := len(holders(t, first, everything))
	for range 10 {
		b, err := binder.New(binder.Config{})
		if err != nil {
			t.Fatal(err)
		}
		b.Close()
	}
	if after := holders(t, first, everything); len(after) > before {
		t.Errorf("there are %d sockets, before there were %d: %v", len(after), before, after)
	}
}

// A kernel without IPv6 has IPv4 for all addresses.
func TestWithoutIPv6(t *testing.T) {
	b := open(t, binder.Config{})
	b.Without(true, false)
	if b.HasIPv6() {
		t.Error("HasIPv6 is true")
	}
	ep := at(t, "tcp/1", port())
	hold(t, b, ep)
	for addr, free := range map[string]bool{"0.0.0.0": false, "127.0.0.1": false, "::1": true} {
		s := stranger{Type: unix.SOCK_STREAM, At: netip.AddrPortFrom(netip.MustParseAddr(addr), ep.First), RA: true}
		fd, err := s.try()
		if err == nil {
			_ = unix.Close(fd)
		}
		if free != (err == nil) {
			t.Errorf("%v: %v; free there: %t", s, err, free)
		}
	}
}

// All addresses are both families, whatever the host's settings for IPv6 are.
func TestDualStackBySysctl(t *testing.T) {
	b := open(t, binder.Config{})
	if !b.HasIPv6() {
		t.Skip("needs a kernel with IPv6")
	}
	for _, name := range []string{"net/ipv6/bindv6only", "net/ipv6/conf/all/disable_ipv6"} {
		t.Run(name, func(t *testing.T) {
			setSysctl(t, name, "1")
			ep := at(t, "tcp/1", port())
			hold(t, b, ep)
			listen(t, b, ep)
			_ = dial(t, at4(ep.First).String()).Close()
			release(t, b, ep)
		})
	}
}

// After a SIGKILL all that the kernel would give out may still be reserved: what is tried out goes by other ports.
func TestFeaturesWithoutPorts(t *testing.T) {
	available := func() []bool {
		var all []bool
		for _, f := range open(t, binder.Config{}).Features() {
			all = append(all, f.Available)
		}
		return all
	}
	want := available()
	setSysctl(t, "net/ipv4/ip_local_reserved_ports", "1024-65535")
	if diff := cmp.Diff(want, available()); diff != "" {
		t.Errorf("features where all ports are reserved (-want +got):\n%s", diff)
	}
}

// setSysctl is for the test's own network namespace, until the test ends.
func setSysctl(t testing.TB, name, value string) {
	t.Helper()
	path := "/proc/sys/" + name
	was, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(value), 0); err != nil {
		t.Skipf("needs to set %s: %v", name, err)
	}
	t.Cleanup(func() {
		if err := os.WriteFile(path, was, 0); err != nil {
			t.Error(err)
		}
	})
}

// Where strangers cannot be seen, or a hold over leftovers can be stolen, none is made.
func TestWithoutFallback(t *testing.T) {
	b := open(t, binder.Config{})
	b.Without(false, true)
	ep := at(t, "tcp/127.0.0.1:1", port())
	leftover(t, ep, true)
	if err := b.Bind(t.Context(), registry.Bind{Key: key(ep), Endpoint: ep}); !errors.Is(err, registry.ErrTaken) {
		t.Errorf("bind over leftovers: %v, want ErrTaken", err)
	}
}

// TestAtTheSameTime does everything to several keys at once, and to one key what may come at any time.
func TestAtTheSameTime(t *testing.T) {
	b := open(t, binder.Config{})
	var all sync.WaitGroup
	defer all.Wait()
	for worker := range 8 {
		proto := []string{"tcp/127.0.0.1:1", "udp/127.0.0.1:1"}[worker%2]
		ep := at(t, proto, ports(2))
		ep.Last++
		key := registry.SocketKey{Reservation: fmt.Sprint(worker)}
		stop := make(chan struct{})
		all.Go(func() {
			defer close(stop)
			for range 30 {
				err := b.Bind(t.Context(), registry.Bind{Key: key, Endpoint: ep})
				for deadline := time.Now().Add(10 * time.Second); errors.Is(err, registry.ErrTaken) && time.Now().Before(deadline); {
					runtime.Gosched() // what was lent a moment ago is not closed yet, and has the port
					err = b.Bind(t.Context(), registry.Bind{Key: key, Endpoint: ep})
				}
				if err != nil {
					t.Error(err)
					return
				}
				if ep.Proto.Streams() {
					if err := b.Listen(t.Context(), key, registry.ListenOptions{}); err != nil {
						t.Error(err)
					}
					if err := b.Unlisten(key); err != nil {
						t.Error(err)
					}
				}
				if err := b.Release(key); err != nil {
					t.Error(err)
				}
			}
		})
		all.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if _, err := b.Options(key); err != nil && !errors.Is(err, registry.ErrNotFound) {
					t.Error(err)
				}
				lent, err := b.Lend(key)
				if err != nil && !errors.Is(err, registry.ErrNotFound) {
					t.Error(err)
				}
				for _, l := range lent {
					_ = unix.Close(l.FD)
				}
				if err == nil {
					b.Return(key)
				}
				if _, err := b.Holders(t.Context(), ep); err != nil {
					t.Error(err)
				}
			}
		})
	}
}
