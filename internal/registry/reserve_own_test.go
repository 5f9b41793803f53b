package registry_test

import (
	"testing"
	"testing/synctest"

	"github.com/portd/portd/internal/ianadb"
	"github.com/portd/portd/internal/registry"
)

// TestServiceMovesMeanwhile has a service move to a privileged port while somebody's reservation of it waits for its name: what
// was checked is what is taken.
func TestServiceMovesMeanwhile(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store, pegs := newStandIns()
		r, stop := start(t, store, pegs, registry.Config{Services: edition(t, "2026-01-01", small()), BootTime: fakeBoot()})
		defer stop()
		if _, _, err := r.AddServices(t.Context(), root, []ianadb.Entry{own("myapp", 8123, ianadb.TCP, "")}, false); err != nil {
			t.Fatal(err)
		}
		if _, err := r.Reserve(t.Context(), bob, registry.ReserveRequest{Spec: spec(t, "tcp/8080"), Name: "web"}); err != nil {
			t.Fatal(err)
		}
		waited := make(chan string, 1)
		pegs.releasing = func() { // the name is still bob's
			pegs.releasing = nil
			go func() {
				res, err := r.Reserve(t.Context(), bob, registry.ReserveRequest{Spec: spec(t, "tcp/myapp"), Name: "web"})
				if err != nil {
					waited <- err.Error()
					return
				}
				waited <- res.Endpoints()
			}()
			synctest.Wait()
			_, _, err := r.EditServices(t.Context(), root, registry.ServiceSelector{Name: "myapp"}, func(e *ianadb.Entry) {
				e.First, e.Last = 443, 443
			}, true)
			if err != nil {
				t.Error(err)
			}
		}
		if _, err := r.Release(t.Context(), bob, "web", ""); err != nil {
			t.Fatal(err)
		}
		if got := <-waited; got != "tcp/8123" {
			t.Errorf("bob, who may not have tcp/443, gets %s", got)
		}
	})
}

// TestRepeatedAfterTheServiceIsGone: a request that was answered gets its answer again.
func TestRepeatedAfterTheServiceIsGone(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	if _, _, err := d.AddServices(t.Context(), root, []ianadb.Entry{own("myapp", 8123, ianadb.TCP, "")}, false); err != nil {
		t.Fatal(err)
	}
	req := registry.ReserveRequest{Spec: spec(t, "tcp/myapp"), RequestID: "1"}
	first, err := d.Reserve(t.Context(), alice, req)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.RemoveServices(t.Context(), root, registry.ServiceSelector{Name: "myapp"}); err != nil {
		t.Fatal(err)
	}
	again, err := d.Reserve(t.Context(), alice, req)
	if err != nil || again.ID != first.ID {
		t.Errorf("repeated: %v, %v; want %v", again, err, first)
	}
}
