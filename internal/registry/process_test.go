package registry_test

import (
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/portd/portd/internal/pidwatch"
	"github.com/portd/portd/internal/registry"
)

// sleeper is a process that runs until end is called, which may be done more than once.
func sleeper(t *testing.T) (pid int32, end func()) {
	t.Helper()
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	end = func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
	t.Cleanup(end)
	return int32(cmd.Process.Pid), end
}

func watcher(t *testing.T) *pidwatch.Watcher {
	t.Helper()
	w, err := pidwatch.New(slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	})
	return w
}

// someone is who runs this test.
func someone() registry.Caller {
	return registry.Caller{UID: uint32(os.Getuid()), PID: int32(os.Getpid()), Netns: registry.HostNetns}
}

func byProcess(pid int32) *registry.LeaseSpec {
	return &registry.LeaseSpec{Kind: registry.ProcessLease, PID: pid}
}

// until waits for what another goroutine does.
func until(t *testing.T, what string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("waited in vain: ", what)
		}
	}
}

func TestProcessLease(t *testing.T) {
	t.Parallel()
	store, pegs := newStandIns()
	r, _ := start(t, store, pegs, registry.Config{Processes: watcher(t)})
	pid, end := sleeper(t)
	web, err := r.Reserve(t.Context(), someone(), registry.ReserveRequest{Spec: spec(t, "tcp/8080"), NewLease: byProcess(pid)})
	if err != nil {
		t.Fatal(err)
	}
	both, err := r.CreateLease(t.Context(), someone(), *byProcess(pid), "")
	if err != nil || !both.Expires.IsZero() {
		t.Fatalf("%+v, %v", both, err)
	}
	if _, err := r.Reserve(t.Context(), someone(), registry.ReserveRequest{Spec: spec(t, "tcp/8081"), Lease: both.ID}); err != nil {
		t.Fatal(err)
	}
	if _, err := r.RenewLease(t.Context(), someone(), web.Lease); !errors.Is(err, registry.ErrUnsupported) {
		t.Errorf("renewing it: got %v, want ErrUnsupported", err)
	}
	if n := pegs.count(); n != 2 {
		t.Errorf("%d endpoints are held while it runs, want 2", n)
	}
	end()
	until(t, "for all to be let go", func() bool { return pegs.count() == 0 })
	if _, err := r.Reserve(t.Context(), someone(), registry.ReserveRequest{Spec: spec(t, "tcp/8080"), NewLease: byProcess(pid)}); !errors.Is(err, registry.ErrNotFound) {
		t.Errorf("a process that has ended: got %v, want ErrNotFound", err)
	}
	if n := pegs.count(); n != 0 {
		t.Errorf("%d endpoints are held by what was refused", n)
	}
	other := registry.Caller{UID: someone().UID + 4711, PID: someone().PID, Netns: registry.HostNetns}
	if _, err := r.CreateLease(t.Context(), other, *byProcess(int32(os.Getpid())), ""); !errors.Is(err, registry.ErrDenied) {
		t.Errorf("another's process: got %v, want ErrDenied", err)
	}
	for _, pid := range []int32{0, -1} {
		if _, err := r.CreateLease(t.Context(), someone(), *byProcess(pid), ""); !errors.Is(err, registry.ErrInvalid) {
			t.Errorf("pid %d: got %v, want ErrInvalid", pid, err)
		}
	}
}

// After a restart the process is known again; one that ended meanwhile, or was of another boot, has ended its lease.
func TestProcessLeaseAcrossRestart(t *testing.T) {
	t.Parallel()
	store, pegs := newStandIns()
	r, stop := start(t, store, pegs, registry.Config{Processes: watcher(t)})
	var ends []func()
	for _, text := range []string{"tcp/8080", "tcp/8081", "tcp/8082"} {
		pid, end := sleeper(t)
		ends = append(ends, end)
		if _, err := r.Reserve(t.Context(), someone(), registry.ReserveRequest{Spec: spec(t, text), NewLease: byProcess(pid)}); err != nil {
			t.Fatal(err)
		}
	}
	restart := func(boot string) {
		clear(pegs.bound)
		r, stop = startAt(t, store, pegs, registry.Config{Processes: watcher(t), BootID: boot})
	}
	want := func(n int, when string) {
		t.Helper()
		list, err := r.List(t.Context(), someone(), registry.Filter{}, registry.Page{})
		leases, lerr := r.ListLeases(t.Context(), someone(), "", registry.Page{})
		if err := errors.Join(err, lerr); err != nil {
			t.Fatal(err)
		}
		if len(list.Items) != n || pegs.count() != n || len(leases.Items) != n {
			t.Errorf("%s: %d reservations, %d endpoints, %d leases, want %d", when, len(list.Items), pegs.count(), len(leases.Items), n)
		}
	}
	stop()
	ends[0]()
	restart("boot")
	want(2, "one ended while portd was away")
	ends[1]()
	until(t, "for the second to be let go", func() bool { return pegs.count() == 1 })
	stop()
	restart("another boot")
	want(0, "after a reboot")
	stop()
	reasons := map[registry.EventType][]string{}
	for _, ch := range store.log {
		for _, ev := range ch.Events {
			reasons[ev.Type] = append(reasons[ev.Type], ev.Reason)
		}
	}
	for typ, n := range map[registry.EventType]int{registry.EventLeaseCreated: 3, registry.EventLeaseEnded: 3, registry.EventExpired: 3} {
		if len(reasons[typ]) != n {
			t.Errorf("events of type %d: %q, want %d", typ, reasons[typ], n)
		}
	}
}
