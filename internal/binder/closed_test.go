package binder_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/portd/portd/internal/binder"
	"github.com/portd/portd/internal/ianadb"
	"github.com/portd/portd/internal/registry"
	"github.com/portd/portd/internal/registry/boltstore"
)

// counted are Closings that count what they tell, and keep to themselves that somebody should look: a port that was taken again was
// told of.
type counted struct {
	registry.Closings
	began chan []uint16
	told  atomic.Int64
}

func (c *counted) WatchClosed(ctx context.Context, ports []uint16, _ func(), closed func(registry.Protocol, uint16)) error {
	look := func() { c.began <- ports }
	return c.Closings.WatchClosed(ctx, ports, look, func(p registry.Protocol, port uint16) {
		c.told.Add(1)
		closed(p, port)
	})
}

// TestTakenAgainWhenClosed has strangers take reserved ports while the registry is away, and close them. Nobody looks again within an
// hour: what the registry takes, it takes because the kernel has told of it.
func TestTakenAgainWhenClosed(t *testing.T) {
	first := ports(3)
	path := filepath.Join(t.TempDir(), "portd.db")
	told := &counted{began: make(chan []uint16, 100)}
	run := func() (r *registry.Registry, stop func()) {
		b := open(t, binder.Config{})
		needFeature(t, b, "closed-sockets-told")
		store, err := boltstore.Open(path, boltstore.Options{})
		if err != nil {
			t.Fatal(err)
		}
		told.Closings = b
		r = registry.New(registry.Config{
			Store: store, Binder: b, Closings: told, RetryLost: time.Hour, Services: ianadb.Embedded(),
			Policy: registry.Policy{UID: uint32(os.Geteuid())}, BootID: "this one",
		})
		if err := r.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- r.Run(ctx) }()
		return r, func() {
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
			b.Close()
			if err := store.Close(); err != nil {
				t.Error(err)
			}
		}
	}

	r, stop := run()
	me := registry.Caller{UID: uint32(os.Geteuid()), Netns: registry.HostNetns}
	for i, text := range []string{"tcp/127.0.0.1:%d", "udp/127.0.0.1:%d", "tcp/%d"} {
		spec, err := registry.ParseSpec(fmt.Sprintf(text, int(first)+i))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := r.Reserve(t.Context(), me, registry.ReserveRequest{Spec: registry.Spec{Endpoints: []registry.EndpointSpec{spec}}}); err != nil {
			t.Fatal(err)
		}
	}
	stop()

	listener := taker(t, "tcp4", first)
	packets := taker(t, "udp4", first+1)
	dual := taker(t, "tcp", first+2)
	r, stop = run()
	defer stop()
	if n := r.Status().Lost; n != 3 {
		t.Fatalf("%d are lost, want 3", n)
	}
	ctx, end := context.WithTimeout(t.Context(), 10*time.Second)
	defer end()
	recovered := make(chan registry.Change)
	watching := make(chan error, 1)
	go func() {
		watching <- r.Watch(ctx, me, registry.WatchRequest{}, func(_ string, ch registry.Change) error {
			select {
			case recovered <- ch:
			case <-ctx.Done():
			}
			return nil
		})
	}()
	<-recovered // it watches
	for i, had := range []io.Closer{listener, packets, dual} {
		for ports := range told.began {
			if len(ports) == 3-i {
				break
			}
		}
		before, began := told.told.Load(), time.Now()
		if err := had.Close(); err != nil {
			t.Fatal(err)
		}
		var ch registry.Change
		select {
		case ch = <-recovered:
		case <-ctx.Done():
			t.Fatal("a port that is free was not taken again")
		}
		t.Logf("taken again %v after it was closed", time.Since(began))
		if len(ch.Events) != 1 || ch.Events[0].Type != registry.EventRecovered {
			t.Errorf("got %+v, want one EventRecovered", ch.Events)
		}
		if told.told.Load() == before {
			t.Error("it was taken again without being told of")
		}
		if n := r.Status().Lost; n != 2-i {
			t.Errorf("%d are lost, want %d", n, 2-i)
		}
	}
	end()
	<-watching
}

// taker is a socket of a program that knows nothing of portd.
func taker(t *testing.T, network string, port uint16) (had io.Closer) {
	t.Helper()
	var err error
	switch network {
	case "tcp":
		had, err = net.Listen(network, fmt.Sprintf(":%d", port))
	case "tcp4":
		had, err = net.Listen(network, fmt.Sprintf("127.0.0.1:%d", port))
	default:
		had, err = net.ListenPacket(network, fmt.Sprintf("127.0.0.1:%d", port))
	}
	if err != nil {
		t.Fatal(err)
	}
	return had
}
