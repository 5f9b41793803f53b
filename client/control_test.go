package client_test

import (
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"github.com/portd/portd/client"
	"github.com/portd/portd/internal/nstest"
	pb "github.com/portd/portd/proto/portd/v1"
)

func (p *portd) dial() *client.Client {
	p.t.Helper()
	c, err := client.Dial(p.t.Context(), p.options())
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { c.Close() })
	return c
}

func tcp(spec *pb.EndpointSpec) *pb.ReserveRequest {
	spec.Protocols = []pb.Protocol{pb.Protocol_PROTOCOL_TCP}
	return &pb.ReserveRequest{Spec: &pb.ReservationSpec{Endpoints: []*pb.EndpointSpec{spec}}}
}

func anyPort() *pb.ReserveRequest {
	return tcp(&pb.EndpointSpec{Choice: &pb.EndpointSpec_Any{Any: &pb.AnyPorts{}}})
}

func exactly(port uint32) *pb.ReserveRequest {
	return tcp(&pb.EndpointSpec{Choice: &pb.EndpointSpec_Exact{Exact: &pb.PortRange{First: port}}})
}

// Where nobody is, that is known at once; a socket that a dead daemon has left behind is nobody.
func TestNoDaemon(t *testing.T) {
	dir := t.TempDir()
	left := filepath.Join(dir, "left.sock")
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: left, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	ln.SetUnlinkOnClose(false)
	ln.Close()
	for _, path := range []string{left, filepath.Join(dir, "nothing.sock"), filepath.Join(dir, "no", "directory.sock")} {
		begin := time.Now()
		t.Setenv("PORTD_SOCKET", path)
		_, err := client.Dial(t.Context(), client.Options{})
		if !errors.Is(err, client.ErrNoDaemon) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v", path, err)
		}
		if took := time.Since(begin); took > 100*time.Millisecond {
			t.Errorf("%s: known after %v", path, took)
		}
	}
	if os.Geteuid() == 0 {
		return // root looks at the system's place only, which is not the test's to change
	}
	t.Setenv("PORTD_SOCKET", "")
	t.Setenv("XDG_RUNTIME_DIR", filepath.Join(dir, "run"))
	t.Setenv("XDG_STATE_HOME", filepath.Join(dir, "state"))
	_, err = client.Dial(t.Context(), client.Options{})
	for _, tried := range []string{"run/portd/portd.sock", "state/portd/portd.sock"} {
		if err != nil && !strings.Contains(err.Error(), filepath.Join(dir, tried)) {
			t.Errorf("%v; it does not name %s", err, tried)
		}
	}
}

// A client finds the socket that the environment names, and that of its user where it names none.
func TestFind(t *testing.T) {
	p := newPortd(t)
	t.Setenv("PORTD_SOCKET", p.cfg.Socket)
	find := func() *client.Client {
		t.Helper()
		c, err := client.Dial(t.Context(), client.Options{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	c := find()
	st, err := c.Daemon.GetStatus(t.Context(), &pb.GetStatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if c.SocketPath() != p.cfg.Socket || st.GetControlSocket() != p.cfg.Socket || st.GetHandoffSocket() != c.HandoffPath() {
		t.Errorf("found %s and %s, want %s and %s", c.SocketPath(), c.HandoffPath(), st.GetControlSocket(), st.GetHandoffSocket())
	}
	if os.Geteuid() == 0 {
		return
	}
	t.Setenv("PORTD_SOCKET", "")
	dir := t.TempDir()
	t.Setenv("XDG_RUNTIME_DIR", filepath.Join(dir, "none"))
	t.Setenv("XDG_STATE_HOME", dir)
	own := filepath.Join(dir, "portd", "portd.sock")
	if err := errors.Join(os.Mkdir(filepath.Dir(own), 0o700), os.Symlink(p.cfg.Socket, own)); err != nil {
		t.Fatal(err)
	}
	if got := find().SocketPath(); got != own {
		t.Errorf("found %s, want %s", got, own)
	}
}

// Somebody else's socket is not spoken to.
func TestUntrusted(t *testing.T) {
	attr := nstest.As(t, 65534, 65534)
	dir := t.TempDir()
	for _, d := range []string{dir, filepath.Dir(dir)} {
		if err := os.Chmod(d, 0o777); err != nil {
			t.Fatal(err)
		}
	}
	path := filepath.Join(dir, "portd.sock")
	// nc and its kin differ from host to host; this binary is there and listens when it is told to.
	stranger := exec.Command("/proc/self/exe")
	stranger.Env = append(os.Environ(), envListen+"="+path)
	stranger.SysProcAttr = attr
	stranger.Stderr = os.Stderr
	in, err := stranger.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := stranger.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := stranger.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		in.Close()
		_ = stranger.Wait()
	}()
	if n, err := out.Read(make([]byte, 1)); n != 1 {
		t.Fatal(err)
	}
	_, err = client.Dial(t.Context(), client.Options{Socket: path})
	if !errors.Is(err, client.ErrUntrusted) || !strings.Contains(err.Error(), path+" is served by uid 65534") {
		t.Errorf("a stranger's server: %v", err)
	}
	if err := os.Chown(dir, 65534, 65534); err != nil {
		t.Fatal(err)
	}
	_, err = client.Dial(t.Context(), client.Options{Socket: path})
	if !errors.Is(err, client.ErrUntrusted) || !strings.Contains(err.Error(), dir+" belongs to uid 65534") {
		t.Errorf("a stranger's directory: %v", err)
	}
}

func TestErrors(t *testing.T) {
	p := newPortd(t)
	c := p.dial()
	mine, err := c.Reservations.Reserve(t.Context(), anyPort())
	if err != nil {
		t.Fatal(err)
	}
	port := mine.GetReservation().GetAssigned()[0].GetEndpoint().GetPorts().GetFirst()
	foreign, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer foreign.Close()
	foreignPort := uint32(foreign.Addr().(*net.TCPAddr).Port)
	elsewhere := anyPort()
	elsewhere.Spec.Endpoints[0].Netns = "elsewhere"
	once := anyPort()
	once.RequestId = "once"
	if _, err := c.Reservations.Reserve(t.Context(), once); err != nil {
		t.Fatal(err)
	}
	again := anyPort()
	again.RequestId, again.Name = "once", "other"
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	late, cancel := context.WithTimeout(t.Context(), 1)
	defer cancel()
	reserve := func(ctx context.Context, req *pb.ReserveRequest) error {
		_, err := c.Reservations.Reserve(ctx, req)
		return err
	}
	tests := []struct {
		name   string
		err    error
		is     error
		reason string
	}{
		{"reserved", reserve(t.Context(), exactly(port)), client.ErrTaken, "RESERVED"},
		{"in use", reserve(t.Context(), exactly(foreignPort)), client.ErrTaken, "IN_USE"},
		{"port 70000", reserve(t.Context(), exactly(70000)), client.ErrInvalid, "INVALID_ARGUMENT"},
		{"a request id again", reserve(t.Context(), again), client.ErrInvalid, "REQUEST_ID_REUSED"},
		{"no network namespace", reserve(t.Context(), elsewhere), client.ErrNotFound, "NOT_FOUND"},
		{"canceled", reserve(ended, anyPort()), context.Canceled, ""},
		{"too late", reserve(late, anyPort()), context.DeadlineExceeded, ""},
		{"not found", func() error {
			_, err := c.Reservations.Release(t.Context(), &pb.ReleaseRequest{Reservation: "nobody"})
			return err
		}(), client.ErrNotFound, "NOT_FOUND"},
		{"a stream of another store", func() error {
			s, err := c.Reservations.WatchReservations(t.Context(), &pb.WatchReservationsRequest{StartRevision: 1, StoreId: "gone"})
			if err == nil {
				_, err = s.Recv()
			}
			return err
		}(), client.ErrStoreChanged, "STORE_CHANGED"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var e *client.Error
			if !errors.Is(tt.err, tt.is) || !errors.As(tt.err, &e) || e.Reason != tt.reason {
				t.Fatalf("got %v (%+v), want %v, %s", tt.err, e, tt.is, tt.reason)
			}
			if strings.Contains(e.Error(), "rpc error") {
				t.Errorf("not portd's own sentence: %v", e)
			}
			if (e.Conflict != nil) != (tt.is == client.ErrTaken) {
				t.Errorf("with the conflict %v", e.Conflict)
			}
		})
	}
	var e *client.Error
	errors.As(tests[0].err, &e)
	if got := e.Conflict.GetUses()[0].GetReservation().GetId(); got != mine.GetReservation().GetId() {
		t.Errorf("the conflict is with %q, want %s", got, mine.GetReservation().GetId())
	}
	errors.As(tests[1].err, &e)
	if got := e.Conflict.GetUses()[0].GetHolder().GetProcesses(); len(got) != 1 || int(got[0].GetPid()) != os.Getpid() {
		t.Errorf("the conflict is with %v, want this process", got)
	}

	p.stop()
	err = reserve(t.Context(), anyPort())
	if !errors.Is(err, client.ErrNoDaemon) || !errors.Is(err, client.ErrUnavailable) || !strings.Contains(err.Error(), p.cfg.Socket) {
		t.Errorf("without portd: %v", err)
	}
}

// Where somebody has the socket and says nothing there is a portd, and that is known as soon as the socket is full.
func TestNoAnswer(t *testing.T) {
	path := filepath.Join(t.TempDir(), "mute.sock")
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(fd, 3); err != nil {
		t.Fatal(err)
	}
	c, err := client.Dial(t.Context(), client.Options{Socket: path})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_, err = c.Daemon.GetStatus(t.Context(), &pb.GetStatusRequest{})
	silent(t, err, path)
	for range 8 {
		full, err := client.Dial(t.Context(), client.Options{Socket: path})
		if err != nil {
			silent(t, err, path)
			return
		}
		defer full.Close()
	}
	t.Error("a socket that is full takes connections")
}

func silent(t *testing.T, err error, path string) {
	t.Helper()
	for _, is := range []error{client.ErrNoAnswer, client.ErrNoDaemon, client.ErrUnavailable} {
		if !errors.Is(err, is) {
			t.Errorf("%v is not %v", err, is)
		}
	}
	if err == nil || err.Error() != "portd at "+path+" does not answer" {
		t.Errorf("said: %v", err)
	}
}

// A client that is there before and after a restart of portd need not know of it, and what it asks for is done once.
func TestRestart(t *testing.T) {
	p := newPortd(t)
	c := p.dial()
	var calling sync.WaitGroup
	var mu sync.Mutex
	got := map[string]bool{}
	begun := make(chan struct{}, 4) // those that may be in flight while portd is away
	stop := make(chan struct{})
	for i := range 4 {
		calling.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				case begun <- struct{}{}:
				}
				resp, err := c.Reservations.Reserve(t.Context(), anyPort())
				if err != nil {
					t.Errorf("caller %d, call %d: %v", i, n, err)
					return
				}
				mu.Lock()
				if got[resp.GetReservation().GetId()] {
					t.Errorf("the same reservation twice: %v", resp)
				}
				got[resp.GetReservation().GetId()] = true
				mu.Unlock()
			}
		})
	}
	gone := make(chan struct{})
	go func() {
		calling.Wait()
		close(gone)
	}()
	some := func() {
		t.Helper()
		for range 20 {
			select {
			case <-begun:
			case <-gone:
				t.Fatal("nobody calls any more")
			}
		}
	}
	for range 3 {
		some()
		p.stop()
		p.start()
	}
	some()
	close(stop)
	<-gone
	for token, n := "", 0; ; {
		list, err := c.Reservations.ListReservations(t.Context(), &pb.ListReservationsRequest{PageToken: token})
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range list.GetReservations() {
			n++
			if !got[r.GetId()] {
				t.Errorf("%s was made and never answered for", r.GetId())
			}
		}
		if token = list.GetNextPageToken(); token == "" {
			if n != len(got) {
				t.Errorf("%d reservations were answered for, %d are there", len(got), n)
			}
			return
		}
	}
}

// The client's own request ids stay its own: a message can be sent again.
func TestSameMessageTwice(t *testing.T) {
	c := newPortd(t).dial()
	req := anyPort()
	before := proto.Clone(req)
	ids := map[string]bool{}
	for range 2 {
		resp, err := c.Reservations.Reserve(t.Context(), req)
		if err != nil {
			t.Fatal(err)
		}
		ids[resp.GetReservation().GetId()] = true
	}
	if len(ids) != 2 || !proto.Equal(req, before) {
		t.Errorf("got %v by %v", ids, req)
	}
}
