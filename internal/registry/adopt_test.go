package registry_test

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/binder"
	"github.com/portd/portd/internal/ianadb"
	"github.com/portd/portd/internal/registry"
)

func (p *pegboard) Adopt(context.Context, registry.Adopt) (a registry.Adoption, _ error) {
	if p.adoption != nil {
		return *p.adoption, nil
	}
	return a, errors.New("no process has a socket here")
}

// onKernel is a Registry on real sockets whose store is memory, so that it can fail.
func onKernel(t *testing.T) (*registry.Registry, *memory) {
	t.Helper()
	b, err := binder.New(binder.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	store, _ := newStandIns()
	r := registry.New(registry.Config{Store: store, Binder: b, Services: ianadb.Embedded(), BootID: "boot", Policy: registry.Policy{UID: uint32(os.Getuid())}})
	if err := r.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return r, store
}

var me = registry.Caller{UID: uint32(os.Getuid()), GID: uint32(os.Getgid()), Netns: registry.HostNetns}

// service is a program that listens and answers, in this process.
func service(t *testing.T) (*net.TCPListener, registry.AdoptRequest) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, "here")
			c.Close()
		}
	}()
	port := uint16(ln.Addr().(*net.TCPAddr).Port)
	return ln.(*net.TCPListener), registry.AdoptRequest{
		Endpoint: registry.EndpointSpec{Protos: []registry.Protocol{registry.TCP}, Exact: registry.PortRange{First: port, Last: port}},
		PID:      int32(os.Getpid()),
	}
}

func serves(t *testing.T, addr net.Addr) {
	t.Helper()
	c, err := net.Dial("tcp", addr.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if text, err := io.ReadAll(c); err != nil || string(text) != "here" {
		t.Errorf("the program answers %q, %v", text, err)
	}
}

func TestAdopt(t *testing.T) {
	r, _ := onKernel(t)
	ln, req := service(t)
	req.Name, req.RequestID, req.NewLease = "web", "once", &registry.LeaseSpec{Kind: registry.TTLLease, TTL: registry.MinTTL * 60}
	got, err := r.Adopt(t.Context(), me, req)
	if err != nil {
		t.Fatal(err)
	}
	res := got.Reservation
	if a := res.Assigned[0]; a.Endpoint.Addr.String() != "127.0.0.1" || a.Endpoint.First != req.Endpoint.Exact.First || a.State(res.Spec.Mode) != registry.StateListening {
		t.Errorf("adopted %+v, want it listening on %v", a, ln.Addr())
	}
	serves(t, ln.Addr())

	again, err := r.Adopt(t.Context(), me, req)
	if err != nil || again.Reservation.ID != res.ID {
		t.Errorf("the same request again: %v, %v; want %s", again.Reservation, err, res.ID)
	}
	req.RequestID = ""
	var taken *registry.TakenError
	if _, err := r.Adopt(t.Context(), me, req); !errors.As(err, &taken) || len(taken.By) != 1 || taken.By[0].ID != res.ID {
		t.Errorf("adopted again: %v, want it taken by %s", err, res.ID)
	}
	if _, err := r.Release(t.Context(), me, "web", ""); err != nil {
		t.Fatal(err)
	}
	serves(t, ln.Addr())
	if leases, err := r.ListLeases(t.Context(), me, "", registry.Page{}); err != nil || len(leases.Items) > 0 {
		t.Errorf("leases after it was released: %v, %v", leases.Items, err)
	}
}

// What comes to nothing leaves the program as it was, and nothing in the table.
func TestAdoptIsAllOrNothing(t *testing.T) {
	r, store := onKernel(t)
	ln, req := service(t)
	broken := errors.New("the disk is full")
	other, otherReq := service(t)
	otherReq.Name = "other"
	if _, err := r.Adopt(t.Context(), me, otherReq); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name   string
		change func(*registry.AdoptRequest)
		is     error
	}{
		{"the name is taken", func(req *registry.AdoptRequest) { req.Name = "other" }, registry.ErrTaken},
		{"no such lease", func(req *registry.AdoptRequest) { req.Lease = "lse_00000000000000000000" }, registry.ErrNotFound},
		{"the process of its lease is gone", func(req *registry.AdoptRequest) {
			req.NewLease = &registry.LeaseSpec{Kind: registry.ProcessLease, PID: 1 << 22}
		}, registry.ErrUnsupported},
		{"not written", func(*registry.AdoptRequest) {
			store.mu.Lock()
			defer store.mu.Unlock()
			store.fail = broken
		}, broken},
	} {
		t.Run(tt.name, func(t *testing.T) {
			req := req
			tt.change(&req)
			if _, err := r.Adopt(t.Context(), me, req); !errors.Is(err, tt.is) {
				t.Errorf("%v, want %v", err, tt.is)
			}
			serves(t, ln.Addr())
			uses, err := r.Uses(t.Context(), me, "", registry.TCP, req.Endpoint.Exact)
			if err != nil {
				t.Fatal(err)
			}
			for _, u := range uses {
				if u.Reservation != nil {
					t.Errorf("reserved all the same: %v", u.Reservation)
				}
			}
			if len(uses) == 0 || uses[0].Holders[0].State != registry.SocketListening {
				t.Errorf("%v, want the program's socket", uses)
			}
		})
	}
	serves(t, other.Addr())
}

// A caller may have what the kernel would let him take by himself, and never more.
func TestPolicyAdopt(t *testing.T) {
	p := registry.Policy{UID: 0}
	web := registry.Program{Process: registry.Process{PID: 812, UID: 1000, Viewer: 1000}, GID: 1000}
	change := func(f func(*registry.Program)) registry.Program {
		q := web
		f(&q)
		return q
	}
	for _, tt := range []struct {
		name   string
		policy registry.Policy
		c      registry.Caller
		from   registry.Program
		rule   string // empty: allowed
	}{
		{"his own", p, registry.Caller{UID: 1000, GID: 1000}, web, ""},
		{"root's, of anybody", p, registry.Caller{}, change(func(q *registry.Program) { q.Changed, q.Privileged, q.Scope, q.Viewer = true, true, 3, 0 }), ""},
		{"another user's", p, registry.Caller{UID: 1001, GID: 1000}, web, "it is "},
		{"portd's user's, of another", registry.Policy{UID: 1001}, registry.Caller{UID: 1001, GID: 1001}, web, "it is "},
		{"another group", p, registry.Caller{UID: 1000, GID: 1001}, web, "another group"},
		{"has changed its user", p, registry.Caller{UID: 1000, GID: 1000}, change(func(q *registry.Program) { q.Changed = true }), "has changed"},
		{"guards itself", p, registry.Caller{UID: 1000, GID: 1000}, change(func(q *registry.Program) { q.Viewer = 0 }), "PR_SET_DUMPABLE"},
		{"has capabilities", p, registry.Caller{UID: 1000, GID: 1000}, change(func(q *registry.Program) { q.Privileged = true }), "capabilities"},
		{"has portd's own", registry.Policy{UID: 1000}, registry.Caller{UID: 1000, GID: 1000}, change(func(q *registry.Program) { q.Privileged = true }), ""},
		{"Yama", p, registry.Caller{UID: 1000, GID: 1000}, change(func(q *registry.Program) { q.Scope = 1 }), "ptrace_scope = 1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := tt.policy.Adopt(tt.c, tt.from, registry.Endpoint{Proto: registry.TCP, Addr: registry.AnyAddr, First: 8080, Last: 8080})
			var denied *registry.DeniedError
			if errors.As(err, &denied) != (tt.rule != "") || tt.rule != "" && !strings.Contains(denied.Rule, tt.rule) {
				t.Errorf("%v, want a rule that says %q", err, tt.rule)
			}
		})
	}
}

// A low port is reserved for whom it may be, however it is to be had.
func TestAdoptGoesThroughPolicy(t *testing.T) {
	r, _ := onKernel(t)
	_, req := service(t)
	req.Endpoint.Exact = registry.PortRange{First: 81, Last: 81}
	stranger := registry.Caller{UID: me.UID + 1000, GID: me.GID, Netns: registry.HostNetns}
	var denied *registry.DeniedError
	if _, err := r.Adopt(t.Context(), stranger, req); !errors.As(err, &denied) || !strings.HasPrefix(denied.Act, "reserve") {
		t.Errorf("tcp/81 by a stranger: %v", err)
	}
	_, req = service(t)
	if _, err := r.Adopt(t.Context(), stranger, req); !errors.As(err, &denied) || !strings.HasPrefix(denied.Act, "adopt") {
		t.Errorf("another user's: %v", err)
	}
}

// Freebind and transparent are how a socket is bound, and are its own again after a restart.
func TestAdoptReadsBack(t *testing.T) {
	r, _ := onKernel(t)
	lc := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) (err error) {
		cerr := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_FREEBIND, 1) })
		return errors.Join(cerr, err)
	}}
	lc.SetMultipathTCP(false)
	ln, err := lc.Listen(t.Context(), "tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	_, req := service(t)
	port := uint16(ln.Addr().(*net.TCPAddr).Port)
	req.Endpoint.Exact = registry.PortRange{First: port, Last: port}
	got, err := r.Adopt(t.Context(), me, req)
	if err != nil {
		t.Fatal(err)
	}
	if want := (registry.BindOptions{Freebind: true}); got.Reservation.Spec.Options != want {
		t.Errorf("bound with %+v, want %+v", got.Reservation.Spec.Options, want)
	}
}

// Who owns a network namespace adopts there what he may reserve there.
func TestAdoptInOwnNetns(t *testing.T) {
	t.Parallel()
	store, pegs := newStandIns()
	r, _ := start(t, store, pegs, registry.Config{Netns: newSpaces()})
	s := spec(t, "tcp/81").Endpoints[0]
	ep := hostEndpoint(t, "tcp/81")
	for ns, want := range map[string]error{"green": nil, "host": registry.ErrDenied} {
		s.Netns, ep.Netns = ns, ns
		pegs.adoption = &registry.Adoption{Endpoint: ep}
		if _, err := r.Adopt(t.Context(), alice, registry.AdoptRequest{Endpoint: s, PID: 812}); !errors.Is(err, want) {
			t.Errorf("%v: got %v, want %v", ep, err, want)
		}
	}
}

// A pid of another pid namespace is not taken for portd's process of that number.
func TestAdoptByForeignPID(t *testing.T) {
	t.Parallel()
	store, pegs := newStandIns()
	r, _ := start(t, store, pegs, registry.Config{Processes: watcher(t)})
	pegs.adoption = &registry.Adoption{Endpoint: hostEndpoint(t, "tcp/8080")}
	req := registry.AdoptRequest{Endpoint: spec(t, "tcp/8080").Endpoints[0], PID: int32(os.Getpid())}
	unseen := alice // whose pid the kernel does not show to portd
	unseen.PID = 0
	var refused *registry.UnsupportedError
	if _, err := r.Adopt(t.Context(), unseen, req); !errors.As(err, &refused) || refused.Code != "PID_NAMESPACE" {
		t.Errorf("got %v, want that pids are others there", err)
	}
	here := alice
	here.PID = int32(os.Getpid())
	if _, err := r.Adopt(t.Context(), here, req); err != nil {
		t.Errorf("beside portd: %v", err)
	}
}
