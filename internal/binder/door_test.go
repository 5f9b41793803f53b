package binder_test

import (
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/binder"
	"github.com/portd/portd/internal/registry"
)

func TestDoor(t *testing.T) {
	for _, c := range []struct {
		name string
		opt  registry.BindOptions
	}{{"tcp", registry.BindOptions{}}, {"mptcp", registry.BindOptions{MPTCP: true}}} {
		t.Run(c.name, func(t *testing.T) { testDoor(t, c.opt) })
	}
}

func testDoor(t *testing.T, opt registry.BindOptions) {
	seen := new(observer)
	b := open(t, binder.Config{Observer: seen})
	ep := at(t, "tcp/1", port())
	target := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), ep.First).String()
	if err := b.Bind(t.Context(), registry.Bind{Key: key(ep), Endpoint: ep, Options: opt}); errors.Is(err, registry.ErrUnsupported) {
		t.Skip(err)
	} else if err != nil {
		t.Fatal(err)
	}
	if _, err := b.Refuse(key(ep)); err != nil {
		t.Fatalf("refuse what does not listen: %v", err)
	}
	listen(t, b, ep)
	admitted := func() {
		t.Helper()
		client := dial(t, target)
		server, _, err := unix.Accept4(seen.last[0].FD, unix.SOCK_CLOEXEC)
		if err != nil {
			t.Fatal(err)
		}
		// A connection that portd closed first leaves the port in TIME_WAIT.
		unix.Close(server)
		client.Close()
	}
	admitted()
	for round := range 3 {
		waiting := dial(t, target)
		reset, err := b.Refuse(key(ep))
		if err != nil {
			t.Fatalf("round %d: refuse: %v", round, err)
		}
		if want := 1; reset != want && !opt.MPTCP {
			t.Errorf("%d connections are reset, want %d", reset, want)
		}
		_ = waiting.SetReadDeadline(time.Now().Add(10 * time.Second))
		if _, err := waiting.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
			t.Errorf("who waited reads: %v", err)
		}
		waiting.Close()
		refused(t, target)
		if reset, err := b.Refuse(key(ep)); reset != 0 || err != nil {
			t.Errorf("refuse again: %d, %v", reset, err)
		}
		// Options change meanwhile, and nobody gets in by that.
		if err := b.Listen(t.Context(), key(ep), registry.ListenOptions{Backlog: 7}); err != nil {
			t.Fatal(err)
		}
		refused(t, target)
		if got, err := b.Options(key(ep)); err != nil || got.Backlog != 7 {
			t.Errorf("the backlog is %d, %v", got.Backlog, err)
		}
		if err := b.Admit(key(ep)); err != nil {
			t.Fatalf("round %d: admit: %v", round, err)
		}
		admitted()
		if got, err := b.Options(key(ep)); err != nil || got.Backlog != 7 {
			t.Errorf("the backlog is %d, %v", got.Backlog, err)
		}
	}
	if opt.MPTCP {
		return
	}

	if err := b.Park(key(ep)); err != nil {
		t.Fatal(err)
	}
	connected := make(chan error, 1)
	go func() {
		c, err := net.DialTimeout("tcp", target, 20*time.Second)
		if err == nil {
			c.Close()
		}
		connected <- err
	}()
	if c, err := net.DialTimeout("tcp", target, 50*time.Millisecond); err == nil {
		c.Close()
		t.Error("a client got in where clients are parked")
	} else if !errors.Is(err, unix.ETIMEDOUT) && !isTimeout(err) {
		t.Errorf("a client who is parked: %v", err)
	}
	if err := b.Admit(key(ep)); err != nil {
		t.Fatal(err)
	}
	if err := <-connected; err != nil {
		t.Errorf("who was parked: %v", err)
	}
	if err := b.Park(key(ep)); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Refuse(key(ep)); err != nil {
		t.Fatal(err)
	}
	refused(t, target)
	if err := b.Unlisten(key(ep)); err != nil {
		t.Fatal(err)
	}
	refused(t, target)
	listen(t, b, ep)
	defer dial(t, target).Close()
	if err := b.Park(key(ep)); err != nil {
		t.Fatal(err)
	}
	if err := b.Unlisten(key(ep)); err != nil {
		t.Fatal(err)
	}
	refused(t, target)
}

func isTimeout(err error) bool {
	var timeout net.Error
	return errors.As(err, &timeout) && timeout.Timeout()
}
