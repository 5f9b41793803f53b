package handoff_test

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"

	"github.com/portd/portd/client"
	"github.com/portd/portd/internal/handoff"
	"github.com/portd/portd/internal/registry"
	"golang.org/x/sys/unix"
)

// A host is a Pool with its doors, and in place of registry and binder a table of sockets with an owner each.
type host struct {
	*handoff.Pool
	t      testing.TB
	socket string
	ln     *net.UnixListener
	stop   func()

	mu    sync.Mutex
	table map[string]*registry.Reservation
	lent  map[registry.SocketKey]int
	fds   map[registry.SocketKey]int
	count int
}

func newHost(t testing.TB) *host {
	t.Helper()
	dir, err := os.MkdirTemp("", "handoff") // t.TempDir's names may not fit into a socket address
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	h := &host{
		t: t, socket: filepath.Join(dir, "handoff.sock"),
		table: make(map[string]*registry.Reservation), lent: make(map[registry.SocketKey]int), fds: make(map[registry.SocketKey]int),
	}
	h.ln, err = net.ListenUnix("unixpacket", &net.UnixAddr{Net: "unixpacket", Name: h.socket})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(h.socket, 0o666); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		h.ln.Close()
		for _, fd := range h.fds {
			unix.Close(fd)
		}
	})
	h.start(handoff.Config{})
	return h
}

// start starts a Pool on the listeners that there are, as a restart of the daemon would.
func (h *host) start(cfg handoff.Config) {
	h.t.Helper()
	h.startWith(cfg, func(*handoff.Pool) {})
}

func (h *host) startWith(cfg handoff.Config, prepare func(*handoff.Pool)) {
	h.t.Helper()
	cfg.Attacher, cfg.Lender = h, h
	cfg.Acceptors = acceptors()
	if cfg.Log == nil && testing.Verbose() {
		cfg.Log = slog.New(slog.NewTextHandler(h.t.Output(), nil))
	}
	pool, err := handoff.New(cfg)
	if err != nil {
		h.t.Fatal(err)
	}
	prepare(pool)
	h.Pool = pool
	for id, res := range h.table {
		for i, a := range res.Assigned {
			if key := (registry.SocketKey{Reservation: id, Index: i}); a.Listen != nil {
				pool.Listening(key, []registry.Socket{{Endpoint: a.Endpoint, FD: h.fds[key]}}, registry.ListenOptions{})
			}
		}
	}
	_ = h.ln.SetDeadline(noDeadline)
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if err := pool.Run(ctx); err != nil {
			h.t.Errorf("Run: %v", err)
		}
	})
	running.Go(func() {
		if err := pool.Serve(ctx, h.ln); err != nil {
			h.t.Errorf("Serve: %v", err)
		}
	})
	h.stop = sync.OnceFunc(func() {
		cancel()
		running.Wait()
	})
	h.t.Cleanup(h.stop)
}

// envAcceptors is how many acceptors each portd has, also in processes that a test starts.
const envAcceptors = "HANDOFF_ACCEPTORS"

func acceptors() int {
	n, _ := strconv.Atoi(os.Getenv(envAcceptors))
	return n
}

// reserve makes a reservation of one endpoint at addr with a socket of its own, which listens where the protocol does.
func (h *host) reserve(proto registry.Protocol, addr string) *registry.Reservation {
	h.t.Helper()
	kind := unix.SOCK_STREAM
	if proto == registry.UDP {
		kind = unix.SOCK_DGRAM
	}
	ip := netip.MustParseAddr(addr)
	family, sa := unix.AF_INET6, unix.Sockaddr(&unix.SockaddrInet6{Addr: ip.As16()})
	if ip.Is4() {
		family, sa = unix.AF_INET, &unix.SockaddrInet4{Addr: ip.As4()}
	}
	fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		h.t.Fatal(err)
	}
	if err := unix.Bind(fd, sa); err != nil {
		unix.Close(fd)
		h.t.Skipf("needs %s: %v", addr, err)
	}
	e := registry.Endpoint{Netns: registry.HostNetns, Proto: proto, Addr: ip}
	e.First = portOf(h.t, fd)
	e.Last = e.First
	h.mu.Lock()
	h.count++
	res := &registry.Reservation{
		ID: fmt.Sprintf("rsv_%020d", h.count), Name: fmt.Sprintf("web%d", h.count),
		Owner: registry.UIDPrincipal(uint32(os.Getuid())), Assigned: []registry.Assigned{{Endpoint: e}},
	}
	h.table[res.ID] = res
	h.fds[keyOf(res)] = fd
	h.mu.Unlock()
	return res
}

// listen reserves a TCP endpoint and makes it listen.
func (h *host) listen(addr string) *registry.Reservation {
	h.t.Helper()
	res := h.reserve(registry.TCP, addr)
	if err := unix.Listen(h.fds[keyOf(res)], 1024); err != nil {
		h.t.Fatal(err)
	}
	h.mu.Lock()
	res.Assigned[0].Listen = &registry.ListenOptions{}
	h.mu.Unlock()
	h.Listening(keyOf(res), []registry.Socket{{Endpoint: res.Assigned[0].Endpoint, FD: h.fds[keyOf(res)]}}, registry.ListenOptions{})
	return res
}

// release ends a reservation the way that the daemon does.
func (h *host) release(res *registry.Reservation, reason string) {
	h.mu.Lock()
	delete(h.table, res.ID)
	fd := h.fds[keyOf(res)]
	delete(h.fds, keyOf(res))
	h.mu.Unlock()
	h.Closing(keyOf(res))
	unix.Close(fd)
	h.Released(res.ID, reason)
}

func keyOf(res *registry.Reservation) registry.SocketKey {
	return registry.SocketKey{Reservation: res.ID}
}

func addrOf(res *registry.Reservation) string {
	e := res.Assigned[0].Endpoint
	if e.Addr.IsUnspecified() {
		return netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), e.First).String()
	}
	return netip.AddrPortFrom(e.Addr, e.First).String()
}

// Attach is the policy: what is in the table may be had by its owner and root.
func (h *host) Attach(_ context.Context, c registry.Caller, ref string) (*registry.Reservation, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, r := range h.table {
		if r.ID != ref && r.Name != ref && r.Endpoints() != ref {
			continue
		}
		return r, registry.Policy{UID: uint32(os.Getuid())}.Change(c, r.Owner, "attach to "+r.Endpoints())
	}
	return nil, fmt.Errorf("%s: %w", ref, registry.ErrNotFound)
}

func (h *host) Lend(key registry.SocketKey) ([]registry.Socket, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	fd, err := unix.FcntlInt(uintptr(h.fds[key]), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	h.lent[key]++
	return []registry.Socket{{Endpoint: h.table[key.Reservation].Assigned[key.Index].Endpoint, FD: fd}}, nil
}

func (h *host) Relend(key registry.SocketKey, lent ...registry.Socket) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.lent[key]++
	return nil
}

func (h *host) Return(key registry.SocketKey, _ ...registry.Socket) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.lent[key]--
}

func (h *host) Drain(registry.SocketKey, bool, ...registry.Socket) {}

// loans is how many loans of a key have not been returned.
func (h *host) loans(key registry.SocketKey) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.lent[key]
}

func portOf(t testing.TB, fd int) uint16 {
	sa, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return uint16(sa.Port)
	case *unix.SockaddrInet6:
		return uint16(sa.Port)
	}
	t.Fatalf("%T", sa)
	return 0
}

// join makes this process a worker.
func (h *host) join(res *registry.Reservation) *client.Listener {
	h.t.Helper()
	l, err := client.Join(h.t.Context(), client.AttachConfig{Socket: h.socket, Wishes: []client.Wish{{Reference: res.ID}}}, nil)
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { l.Close() })
	return l
}
