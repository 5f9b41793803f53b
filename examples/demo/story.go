package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/portd/portd/client"
	pb "github.com/portd/portd/proto/portd/v1"
)

// A story is the demo while it is told.
type story struct {
	out io.Writer
	dir string // everything lies in here

	daemons []*process // the last one is there
	workers []*process
	port    int
}

type step struct {
	title string
	act   func(context.Context) error
}

func (s *story) steps() []step {
	return []step{
		{"A portd for this demo alone, in DIR=" + s.dir, s.startDaemon},
		{"What is a port meant for, and who has it here?", s.whois},
		{"Take a port, any that is free. It is yours from now on, whether something serves on it or not.", s.reserve},
		{"The kernel holds it: a program that binds by itself is refused.", s.refused},
		{"Two processes serve on it together, and see the client's real address.", s.serve},
		{"One is killed while connections wait for it. They go to the other one; no client sees an error.", s.killWorker},
		{"portd is restarted. The port is held again, and the worker that is left goes on by itself.", s.restart},
	}
}

func (s *story) socket() string { return filepath.Join(s.dir, "portd.sock") }
func (s *story) url() string    { return fmt.Sprintf("http://127.0.0.1:%d/", s.port) }

func (s *story) say(format string, args ...any) { fmt.Fprintf(s.out, format+"\n", args...) }

// end ends every process.
func (s *story) end() {
	for _, p := range slices.Concat(s.workers, s.daemons) {
		p.kill()
	}
}

// logs is what the processes wrote, for when something went wrong.
func (s *story) logs() string {
	var b strings.Builder
	for _, p := range slices.Concat(s.daemons, s.workers) {
		b.WriteString(p.said())
	}
	return b.String()
}

// shell shows a command, runs it and shows what it writes. The error says so where the exit code is not the one that is due.
func (s *story) shell(ctx context.Context, code int, name string, args ...string) (string, error) {
	s.say("$ %s %s", name, strings.Join(args, " "))
	cmd := command(ctx, name, args...)
	text, err := cmd.CombinedOutput()
	for line := range strings.Lines(string(text)) {
		s.say("%s", strings.TrimRight(line, " \n"))
	}
	if cmd.ProcessState == nil {
		return "", err
	}
	if got := cmd.ProcessState.ExitCode(); got != code {
		return "", fmt.Errorf("%s exited with %d instead of %d", name, got, code)
	}
	return string(text), nil
}

func (s *story) startDaemon(ctx context.Context) error {
	s.say("$ portd --socket $DIR/portd.sock --state $DIR/state &")
	var entry struct {
		Msg                           string
		Reservations, Lost, Listeners int
	}
	began := time.Now()
	isReady := func(line string) bool { return json.Unmarshal([]byte(line), &entry) == nil && entry.Msg == "ready" }
	p, _, err := start(ctx, isReady, "portd", "--socket", s.socket(), "--state", filepath.Join(s.dir, "state"))
	if p != nil {
		s.daemons = append(s.daemons, p)
	}
	if err != nil {
		return err
	}
	s.say("portd %d ready after %v; reservations: %d, listening: %d",
		p.pid(), time.Since(began).Round(time.Millisecond), entry.Reservations, entry.Listeners)
	if want := len(s.daemons) - 1; entry.Reservations != want || entry.Listeners != want || entry.Lost != 0 {
		return fmt.Errorf("portd starts with %+v instead of %d reservations", entry, want)
	}
	return nil
}

func (s *story) whois(ctx context.Context) error {
	text, err := s.shell(ctx, 0, "portctl", "whois", "--short", "443")
	if err == nil && !strings.Contains(text, "https") {
		err = errors.New("443 is not known as https")
	}
	return err
}

func (s *story) reserve(ctx context.Context) error {
	if _, err := s.shell(ctx, 0, "portctl", "reserve", "tcp", "any", "--name", "demo"); err != nil {
		return err
	}
	endpoint, err := s.reserved(ctx)
	s.port = int(endpoint.GetEndpoint().GetPorts().GetFirst())
	if err == nil && endpoint.GetState() != pb.EndpointState_ENDPOINT_STATE_HELD {
		err = fmt.Errorf("port %d is in state %v", s.port, endpoint.GetState())
	}
	return err
}

// reserved is the one endpoint of the reservation, as portd has it.
func (s *story) reserved(ctx context.Context) (*pb.AssignedEndpoint, error) {
	cl, err := client.Dial(ctx, client.Options{Socket: s.socket()})
	if err != nil {
		return nil, err
	}
	defer cl.Close()
	got, err := cl.Reservations.GetReservation(ctx, &pb.GetReservationRequest{Reservation: "demo"})
	if err != nil {
		return nil, err
	}
	if n := len(got.GetReservation().GetAssigned()); n != 1 {
		return nil, fmt.Errorf("%d endpoints in the reservation", n)
	}
	return got.GetReservation().GetAssigned()[0], nil
}

func (s *story) refused(ctx context.Context) error {
	text, err := s.shell(ctx, 1, "http-worker", "--direct", fmt.Sprintf(":%d", s.port))
	if err == nil && !strings.Contains(text, syscall.EADDRINUSE.Error()) {
		err = errors.New("it was refused for another reason")
	}
	return err
}

func (s *story) serve(ctx context.Context) error {
	for range 2 {
		endpoint := fmt.Sprintf("tcp/%d", s.port)
		s.say("$ http-worker %s &", endpoint)
		p, line, err := start(ctx, func(line string) bool { return strings.Contains(line, "serves") }, "http-worker", endpoint)
		if p != nil {
			s.workers = append(s.workers, p)
		}
		if err != nil {
			return err
		}
		s.say("%s", line)
	}
	const n = 300
	served, err := askMany(ctx, s.url(), n, 4)
	if err != nil {
		return err
	}
	a, b := s.workers[0].pid(), s.workers[1].pid()
	s.say("%d requests, a new connection each: %d answered by %d, %d by %d; right address %d times",
		n, served[a], a, served[b], b, n)
	if served[a] == 0 || served[b] == 0 || served[a]+served[b] != n {
		return fmt.Errorf("the work was not shared: %v", served)
	}
	return nil
}

// killWorker stops a worker first, so that it dies with connections in its queue for certain.
func (s *story) killWorker(ctx context.Context) error {
	const n = 100
	victim, heir := s.workers[0], s.workers[1].pid()
	before, err := s.listener(ctx)
	if err != nil {
		return err
	}
	s.say("$ kill -STOP %d", victim.pid())
	if err := victim.freeze(); err != nil {
		return err
	}
	type result struct {
		served map[int]int
		err    error
	}
	results := make(chan result, 1)
	go func() {
		served, err := askMany(ctx, s.url(), n, n)
		results <- result{served, err}
	}()
	handedOver := func(l *pb.Listener) bool { return l.GetHandedOver() >= before.GetHandedOver()+n }
	if err := s.until(ctx, handedOver); err != nil {
		return fmt.Errorf("hand over %d connections: %w", n, err)
	}
	s.say("$ kill -KILL %d", victim.pid())
	victim.kill()
	r := <-results
	if r.err != nil {
		return r.err
	}
	if r.served[heir] != n {
		return fmt.Errorf("%d of %d requests answered by %d", r.served[heir], n, heir)
	}
	after, err := s.listener(ctx)
	if err != nil {
		return err
	}
	s.say("%d requests sent meanwhile: no error, all answered by %d; %d had waited for the dead one",
		n, heir, after.GetRedelivered())
	if after.GetRedelivered() == 0 {
		return errors.New("no connection waited for the worker that was killed")
	}
	return nil
}

// listener is what portd knows of the port while it listens.
func (s *story) listener(ctx context.Context) (*pb.Listener, error) {
	cl, err := client.Dial(ctx, client.Options{Socket: s.socket()})
	if err != nil {
		return nil, err
	}
	defer cl.Close()
	got, err := cl.Handoff.ListListeners(ctx, &pb.ListListenersRequest{Reservation: "demo"})
	if err != nil {
		return nil, err
	}
	if n := len(got.GetListeners()); n != 1 {
		return nil, fmt.Errorf("%d listeners", n)
	}
	return got.GetListeners()[0], nil
}

// until asks again and again, for ten seconds at most, until what portd knows of the port is as told.
func (s *story) until(ctx context.Context, told func(*pb.Listener) bool) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for {
		l, err := s.listener(ctx)
		if err != nil {
			return err
		}
		if told(l) {
			return nil
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("%w at %v", ctx.Err(), l)
		}
	}
}

func (s *story) restart(ctx context.Context) error {
	old := s.daemons[len(s.daemons)-1]
	s.say("$ kill %d", old.pid())
	if err := old.stop(); err != nil {
		return fmt.Errorf("stop portd: %w", err)
	}
	if err := s.startDaemon(ctx); err != nil {
		return err
	}
	if _, err := s.shell(ctx, 0, "portctl", "list"); err != nil {
		return err
	}
	endpoint, err := s.reserved(ctx)
	if err != nil {
		return err
	}
	if p, state := endpoint.GetEndpoint().GetPorts().GetFirst(), endpoint.GetState(); int(p) != s.port ||
		state != pb.EndpointState_ENDPOINT_STATE_LISTENING {
		return fmt.Errorf("port %d is now %d in state %v", s.port, p, state)
	}
	if err := s.refused(ctx); err != nil {
		return err
	}
	pid, err := ask(ctx, s.url())
	if err != nil {
		return err
	}
	s.say("1 request: answered by %d", pid)
	if want := s.workers[1].pid(); pid != want {
		return fmt.Errorf("answered by %d instead of %d", pid, want)
	}
	return nil
}
