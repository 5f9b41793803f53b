package client_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/portd/portd/client"
	"github.com/portd/portd/internal/daemon"
	"github.com/portd/portd/internal/nstest"
	pb "github.com/portd/portd/proto/portd/v1"
	"go.uber.org/goleak"
)

// A portd is a whole daemon in a directory of its own, which can be stopped and started again.
type portd struct {
	t    *testing.T
	cfg  daemon.Config
	stop func()
}

func newPortd(t *testing.T) *portd {
	t.Helper()
	dir, err := os.MkdirTemp("", "portd") // t.TempDir's names may not fit into a socket address
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	p := &portd{t: t, cfg: daemon.Config{Socket: filepath.Join(dir, "portd.sock"), StateDir: filepath.Join(dir, "state")}}
	if testing.Verbose() {
		p.cfg.Log = slog.New(slog.NewTextHandler(t.Output(), nil))
	}
	p.start()
	return p
}

func (p *portd) start() {
	p.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ready, ended := make(chan struct{}), make(chan error, 1)
	cfg := p.cfg
	cfg.Ready = func() { close(ready) }
	go func() { ended <- daemon.Run(ctx, cfg) }()
	p.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			p.t.Errorf("portd: %v", err)
		}
	})
	p.t.Cleanup(p.stop)
	select {
	case <-ready:
	case err := <-ended:
		ended <- err
		p.t.Fatalf("portd does not start: %v", err)
	}
}

func (p *portd) options() client.Options { return client.Options{Socket: p.cfg.Socket} }

func (p *portd) listen(cfg client.ListenConfig, endpoint string) *client.Listener {
	p.t.Helper()
	cfg.Portd = p.options()
	l, err := cfg.Listen(p.t.Context(), endpoint)
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { l.Close() })
	return l
}

func (p *portd) reservations() []*pb.Reservation {
	p.t.Helper()
	c, err := client.Dial(p.t.Context(), p.options())
	if err != nil {
		p.t.Fatal(err)
	}
	defer c.Close()
	got, err := c.Reservations.ListReservations(p.t.Context(), &pb.ListReservationsRequest{})
	if err != nil {
		p.t.Fatal(err)
	}
	return got.GetReservations()
}

func fetch(addr net.Addr) error {
	_, port, _ := net.SplitHostPort(addr.String())
	user := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 20 * time.Second}
	resp, err := user.Get("http://127.0.0.1:" + port)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && string(body) != "hello" {
		err = fmt.Errorf("it says %q", body)
	}
	return err
}

func hello(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "hello") }

// Listen reserves, listens and attaches; Close takes all of it back.
func TestListen(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	nstest.Descriptors(t)
	p := newPortd(t)
	defer p.stop()
	l := p.listen(client.ListenConfig{}, "tcp/127.0.0.1:any")
	srv := &http.Server{Handler: http.HandlerFunc(hello)}
	var serving sync.WaitGroup
	serving.Go(func() {
		if err := srv.Serve(l); err != http.ErrServerClosed {
			t.Errorf("Serve: %v", err)
		}
	})
	for range 10 {
		if err := fetch(l.Addr()); err != nil {
			t.Error(err)
		}
	}
	if got := p.reservations(); len(got) != 1 || got[0].GetLeaseId() == "" {
		t.Errorf("while it listens: %v", got)
	}
	if err := srv.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	serving.Wait()
	if got := p.reservations(); len(got) != 0 {
		t.Errorf("after Close: %v", got)
	}
}

// A second Listen joins the first one's pool, by endpoint or by name, and leaves the reservation alone when it goes.
func TestListenJoins(t *testing.T) {
	p := newPortd(t)
	first := p.listen(client.ListenConfig{Name: "web", Keep: true}, "tcp/127.0.0.1:any")
	byName := p.listen(client.ListenConfig{}, "web")
	byEndpoint := p.listen(client.ListenConfig{}, "tcp/"+first.Addr().String())
	served := make(chan int, 30)
	for i, l := range []net.Listener{first, byName, byEndpoint} {
		go func() {
			_ = http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				served <- i
				hello(w, r)
			}))
		}()
	}
	for range 30 {
		if err := fetch(first.Addr()); err != nil {
			t.Fatal(err) // the count below would wait for it
		}
	}
	var share [3]int
	for range 30 {
		share[<-served]++
	}
	if share[0] == 0 || share[1] == 0 || share[2] == 0 {
		t.Errorf("who served how many: %v", share)
	}
	for _, l := range []net.Listener{byName, byEndpoint, first} {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		if got := p.reservations(); len(got) != 1 || got[0].GetName() != "web" || got[0].GetLeaseId() != "" {
			t.Errorf("with Keep the reservation stays: %v", got)
		}
	}
}

// portd restarts: the listener goes on with the same port, and its session too.
func TestListenSurvivesRestart(t *testing.T) {
	p := newPortd(t)
	l := p.listen(client.ListenConfig{}, "tcp/127.0.0.1:any")
	go func() { _ = http.Serve(l, http.HandlerFunc(hello)) }()
	for range 3 {
		if err := fetch(l.Addr()); err != nil {
			t.Fatal(err)
		}
		p.stop()
		p.start()
		if err := fetch(l.Addr()); err != nil {
			t.Fatal(err)
		}
		if got := p.reservations(); len(got) != 1 {
			t.Fatalf("%v", got)
		}
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if got := p.reservations(); len(got) != 0 {
		t.Errorf("after Close: %v", got)
	}
}

// A reservation that is released under its workers ends their Accept, and says so.
func TestListenReleased(t *testing.T) {
	p := newPortd(t)
	l := p.listen(client.ListenConfig{Keep: true}, "tcp/127.0.0.1:any")
	c, err := client.Dial(t.Context(), p.options())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Reservations.Release(t.Context(), &pb.ReleaseRequest{Reservation: p.reservations()[0].GetId()}); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Accept(); err == nil || errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept: %v", err)
	}
}

func TestListenErrors(t *testing.T) {
	p := newPortd(t)
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	for endpoint, want := range map[string]error{
		"tcp/" + taken.Addr().String(): client.ErrTaken,
		"udp/127.0.0.1:any":            client.ErrUnsupported,
		"nobody":                       client.ErrNotFound,
		"tcp/65536":                    client.ErrInvalid,
	} {
		l, err := client.ListenConfig{Portd: p.options()}.Listen(t.Context(), endpoint)
		if !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", endpoint, err, want)
		}
		if err == nil {
			l.Close()
		}
	}
	if got := p.reservations(); len(got) != 0 {
		t.Errorf("left behind: %v", got)
	}
	p.stop()
	if _, err := (client.ListenConfig{Portd: p.options()}).Listen(t.Context(), "tcp/8080"); !errors.Is(err, client.ErrNoDaemon) {
		t.Errorf("without portd: %v", err)
	}
}
