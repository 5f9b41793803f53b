package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/portd/portd/client"
	pb "github.com/portd/portd/proto/portd/v1"
)

// A server is something that can be visited: its port, and the processes that serve there. Where connections are handed over, the
// first one is who hands them over.
type server struct {
	port      int
	kind      string // of answers: echo or http
	processes []*process
}

// A stage has all servers, which are idle unless they are visited.
type stage struct {
	o       options
	dir     string
	portd   *process
	api     *client.Client
	servers map[string]*server
	running []*process
}

func newStage(ctx context.Context, o options) (_ *stage, err error) {
	s := &stage{o: o, servers: map[string]*server{}}
	if s.dir, err = os.MkdirTemp("", "portd"); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	if err := s.startPortd(ctx); err != nil {
		return nil, err
	}
	for _, step := range []func(context.Context) error{s.startDirect, s.startWorkers, s.startDaemon, s.startProxies} {
		if err := step(ctx); err != nil {
			return nil, err
		}
	}
	return s, nil
}

func (s *stage) close() {
	for _, p := range s.running {
		p.stop()
	}
	if s.api != nil {
		_ = s.api.Close()
	}
	if s.portd != nil {
		s.portd.stop()
	}
	_ = os.RemoveAll(s.dir)
}

func (s *stage) bin(name string) string { return filepath.Join(s.o.bin, name) }

func (s *stage) start(ctx context.Context, env []string, name string, args ...string) (*process, error) {
	p, err := start(ctx, env, s.bin(name), args...)
	if err == nil {
		s.running = append(s.running, p)
	}
	return p, err
}

// startPortd waits until portd answers.
func (s *stage) startPortd(ctx context.Context) (err error) {
	socket := filepath.Join(s.dir, "s")
	cmd := exec.CommandContext(ctx, s.o.portd, "--socket", socket, "--state", filepath.Join(s.dir, "state"), "--log-level", "warn")
	cmd.Stderr = os.Stderr
	if s.portd, err = spawn(cmd); err != nil {
		return err
	}
	for patience := 0; ; patience++ {
		if s.api, err = client.Dial(ctx, client.Options{Socket: socket}); err == nil || patience == 500 {
			return err
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// listen makes portd listen under a name, and returns the port.
func (s *stage) listen(ctx context.Context, name string) (int, error) {
	spec, err := client.ParseSpec("tcp/127.0.0.1:any")
	if err != nil {
		return 0, err
	}
	got, err := s.api.Reservations.Reserve(ctx, &pb.ReserveRequest{
		Spec: &pb.ReservationSpec{Endpoints: []*pb.EndpointSpec{spec}}, Name: name,
	})
	if err != nil {
		return 0, err
	}
	_, err = s.api.Reservations.Listen(ctx, &pb.ListenRequest{Reservation: name})
	return int(got.GetReservation().GetAssigned()[0].GetEndpoint().GetPorts().GetFirst()), err
}

func (s *stage) startDirect(ctx context.Context) error {
	for name, args := range map[string][]string{"C direct": {"c-direct"}, "Go direct": {"server", "echo"}, "http direct": {"server", "http"}} {
		p, err := s.start(ctx, nil, args[0], args[1:]...)
		if err != nil {
			return err
		}
		port, err := p.port()
		if err != nil {
			return err
		}
		s.servers[name] = &server{port, kindOf(args), []*process{p}}
	}
	return nil
}

func kindOf(args []string) string {
	if len(args) > 1 && args[1] == "http" {
		return "http"
	}
	return "echo"
}

func (s *stage) startWorkers(ctx context.Context) error {
	for name, w := range map[string]struct {
		env  []string
		args []string
	}{
		"C worker":         {nil, []string{"c-worker"}},
		"Go worker":        {nil, []string{"server", "echo"}},
		"Go worker, 1 P":   {[]string{"GOMAXPROCS=1"}, []string{"server", "echo"}},
		"http worker":      {nil, []string{"server", "http"}},
		"http worker, 1 P": {[]string{"GOMAXPROCS=1"}, []string{"server", "http"}},
	} {
		reference := fmt.Sprintf("bench-%d", len(s.servers))
		port, err := s.listen(ctx, reference)
		if err != nil {
			return err
		}
		p, err := s.start(ctx, w.env, w.args[0], append(w.args[1:], s.api.HandoffPath(), reference)...)
		if err != nil {
			return err
		}
		s.servers[name] = &server{port, kindOf(w.args), []*process{s.portd, p}}
	}
	return nil
}

// startDaemon starts the least that hands over as portd does, each with a worker of the kinds that portd has.
func (s *stage) startDaemon(ctx context.Context) error {
	for name, args := range map[string][]string{"C daemon, C worker": {"c-worker"}, "C daemon, Go worker": {"server", "echo"}} {
		dir := filepath.Join(s.dir, fmt.Sprintf("c%d", len(s.servers)))
		if err := os.Mkdir(dir, 0o700); err != nil {
			return err
		}
		socket := filepath.Join(dir, "handoff.sock") // as portd's is called
		d, err := s.start(ctx, nil, "c-daemon", socket)
		if err != nil {
			return err
		}
		port, err := d.port()
		if err != nil {
			return err
		}
		w, err := s.start(ctx, nil, args[0], append(args[1:], socket, "r")...)
		if err != nil {
			return err
		}
		s.servers[name] = &server{port, "echo", []*process{d, w}}
	}
	return nil
}

const haproxyConfig = `global
	maxconn 4000
defaults
	mode tcp
	timeout connect 5s
	timeout client 30s
	timeout server 30s
frontend f
	bind 127.0.0.1:%d
	default_backend b
backend b
	server s 127.0.0.1:%d
`

// startProxies puts HAProxy in front of the Go servers, with what its package sets unless told otherwise.
func (s *stage) startProxies(ctx context.Context) error {
	if !s.o.haproxy {
		return nil
	}
	for name, behind := range map[string]string{"HAProxy, Go": "Go direct", "HAProxy, http": "http direct"} {
		to := s.servers[behind]
		port, err := freePort()
		if err != nil {
			return err
		}
		config := filepath.Join(s.dir, fmt.Sprintf("haproxy-%d.cfg", port))
		if err := os.WriteFile(config, fmt.Appendf(nil, haproxyConfig, port, to.port), 0o600); err != nil {
			return err
		}
		cmd := exec.CommandContext(ctx, "haproxy", "-db", "-f", config)
		p, err := spawn(cmd)
		if err != nil {
			return err
		}
		s.running = append(s.running, p)
		if err := answers(ctx, port); err != nil {
			return fmt.Errorf("haproxy: %w", err)
		}
		s.servers[name] = &server{port, to.kind, append([]*process{p}, to.processes...)}
	}
	return nil
}
