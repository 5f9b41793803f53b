package rpc_test

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sync/errgroup"
	spb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/portd/portd/internal/binder"
	"github.com/portd/portd/internal/ianadb"
	"github.com/portd/portd/internal/natrules"
	"github.com/portd/portd/internal/netns"
	"github.com/portd/portd/internal/nstest"
	"github.com/portd/portd/internal/registry"
	"github.com/portd/portd/internal/registry/boltstore"
	"github.com/portd/portd/internal/rpc"
	pb "github.com/portd/portd/proto/portd/v1"
)

// A host is a real registry behind real doors.
type host struct {
	socket string
	reg    *registry.Registry
	log    *lockedBuffer
	stop   func() // returns when everything has ended; called at the end of the test too
	served chan struct{}
}

// start opens the doors in a directory of their own.
func start(t testing.TB, workers rpc.Workers) *host {
	t.Helper()
	return startIn(t, t.TempDir(), workers)
}

// startIn opens the doors in a directory that every user may enter.
func startIn(t testing.TB, dir string, workers rpc.Workers) *host {
	t.Helper()
	nstest.Descriptors(t)
	if t, ok := t.(*testing.T); ok {
		ignore := goleak.IgnoreCurrent()
		t.Cleanup(func() { goleak.VerifyNone(t, ignore) })
	}
	for _, d := range []string{dir, filepath.Dir(dir)} {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	h := &host{socket: filepath.Join(dir, "portd.sock"), log: &lockedBuffer{}, served: make(chan struct{})}
	log := slog.New(slog.NewTextHandler(h.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	store, err := boltstore.Open(filepath.Join(dir, "portd.db"), boltstore.Options{})
	if err != nil {
		t.Fatal(err)
	}
	spaces, err := netns.New("this one", log)
	if err != nil {
		t.Fatal(err)
	}
	binds, err := binder.New(binder.Config{Log: log, Enter: spaces.Enter})
	if err != nil {
		t.Fatal(err)
	}
	nat, err := natrules.OpenHost(nil)
	if err != nil {
		t.Fatal(err)
	}
	h.reg = registry.New(registry.Config{
		Redirects: nat,
		Store:     store, Binder: binds, Netns: spaces, Services: ianadb.Embedded(), BootID: "this one", Log: log,
		Policy: registry.Policy{UID: uint32(os.Geteuid())},
	})
	if err := h.reg.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: h.socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(h.socket, 0o666); err != nil {
		t.Fatal(err)
	}
	if workers == nil {
		workers = crew{}
	}
	doors := rpc.New(rpc.Config{
		Registry: h.reg, Workers: workers, Log: log, Join: spaces.Join,
		Info: rpc.Info{
			Version: "v0", PID: os.Getpid(), UID: uint32(os.Geteuid()), Started: time.Now(), ControlSocket: h.socket,
			Features: []rpc.Feature{{Name: "wings", Consequence: "It does not fly."}},
		},
	})
	ctx, cancel := context.WithCancel(context.Background())
	inner, endInner := context.WithCancel(context.Background())
	var running errgroup.Group
	running.Go(func() error { return h.reg.Run(inner) })
	running.Go(func() error {
		defer endInner()
		defer close(h.served)
		return doors.Serve(ctx, ln)
	})
	h.stop = sync.OnceFunc(func() {
		cancel()
		err := running.Wait()
		binds.Close()
		nat.Close()
		spaces.Close()
		if err := errors.Join(err, store.Close()); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(h.stop)
	return h
}

// grpc is a connection that speaks gRPC.
func (h *host) grpc(t testing.TB) *grpc.ClientConn {
	t.Helper()
	conn, err := dialGRPC(h.socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func dialGRPC(socket string, opts ...grpc.DialOption) (*grpc.ClientConn, error) {
	return grpc.NewClient("unix:"+socket, append(opts, grpc.WithTransportCredentials(insecure.NewCredentials()))...)
}

// rest is an HTTP client, as curl --unix-socket is one.
func (h *host) rest(t testing.TB) rest {
	r := newREST(h.socket)
	t.Cleanup(r.CloseIdleConnections)
	return r
}

type rest struct{ *http.Client }

func newREST(socket string) rest {
	return rest{&http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", socket)
		},
	}}}
}

// call makes a request and reads the answer into reply, or returns the error that it is, as gRPC would have it.
func (r rest) call(ctx context.Context, method, path, body string, reply proto.Message) error {
	req, err := http.NewRequestWithContext(ctx, method, "http://portd"+path, strings.NewReader(body))
	if err != nil {
		return err
	}
	resp, err := r.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if typ := resp.Header.Get("Content-Type"); typ != "application/json" {
		return fmt.Errorf("%s %s: an answer of type %q: %s", method, path, typ, text)
	}
	if !bytes.HasSuffix(text, []byte("}\n")) {
		return fmt.Errorf("%s %s: the answer is not a line: %q", method, path, text)
	}
	if resp.StatusCode == http.StatusOK {
		return protojson.Unmarshal(text, reply)
	}
	var st spb.Status
	if err := protojson.Unmarshal(text, &st); err != nil {
		return fmt.Errorf("%s: %w", text, err)
	}
	return &httpError{resp.StatusCode, status.FromProto(&st)}
}

// An httpError is a google.rpc.Status with the HTTP status that it came with.
type httpError struct {
	code   int
	status *status.Status
}

func (e *httpError) Error() string              { return fmt.Sprintf("%d: %v", e.code, e.status.Err()) }
func (e *httpError) GRPCStatus() *status.Status { return e.status }

// crew is a hand-off that shows what it is made of.
type crew struct {
	workers     []rpc.Worker
	connections []rpc.Connection
	totals      map[registry.SocketKey]rpc.Totals
	panics      bool
	drain       func(rpc.Drain) (rpc.Drained, error)
}

func (c crew) Workers() []rpc.Worker {
	if c.panics {
		panic("all hands lost")
	}
	return append([]rpc.Worker(nil), c.workers...)
}

// Drain is what c.drain does, or nothing.
func (c crew) Drain(_ context.Context, d rpc.Drain) (rpc.Drained, error) {
	if c.drain == nil {
		return rpc.Drained{}, nil
	}
	return c.drain(d)
}

// Connections does what handoff.Pool does.
func (c crew) Connections(_ context.Context, q rpc.ConnectionQuery) (some []rpc.Connection, more bool, err error) {
	all := slices.Clone(c.connections)
	slices.SortFunc(all, func(a, b rpc.Connection) int { return cmp.Compare(b.Seq, a.Seq) })
	for _, conn := range all {
		switch {
		case q.Before > 0 && conn.Seq >= q.Before, q.Worker != "" && q.Worker != conn.Worker, q.Open && conn.State == "":
		case !q.Shown(conn.Key.Reservation, conn.Owner):
		case len(some) == q.Most:
			return some, true, nil
		default:
			some = append(some, conn)
		}
	}
	return some, false, nil
}

func (c crew) Sum() (sum rpc.Totals) {
	for _, t := range c.totals {
		sum.HandedOver += t.HandedOver
	}
	return sum
}

func (c crew) Totals(key registry.SocketKey) rpc.Totals { return c.totals[key] }

// reserve reserves a port of portd's choice and returns it.
func reserve(t testing.TB, conn *grpc.ClientConn, name string) *pb.Reservation {
	t.Helper()
	resp, err := pb.NewReservationServiceClient(conn).Reserve(t.Context(), &pb.ReserveRequest{
		Name: name, Spec: spec(&pb.EndpointSpec{Choice: &pb.EndpointSpec_Any{Any: &pb.AnyPorts{}}}),
	})
	if err != nil {
		t.Fatal(err)
	}
	return resp.GetReservation()
}

// spec is for TCP where the endpoint says nothing else.
func spec(e *pb.EndpointSpec) *pb.ReservationSpec {
	if len(e.Protocols) == 0 {
		e.Protocols = []pb.Protocol{pb.Protocol_PROTOCOL_TCP}
	}
	return &pb.ReservationSpec{Endpoints: []*pb.EndpointSpec{e}}
}

type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}
