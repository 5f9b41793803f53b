package main

import (
	"context"
	"fmt"
	"net"
	"os/exec"
	"strconv"
	"time"
)

// A visit is a server under so many connections at a time.
type visit struct {
	server  string
	atATime int
}

// A result is what one visit found.
type result struct {
	done, failed int
	rate         float64 // connections per second
	p50, p99     time.Duration
	first, all   time.Duration // processor time for a connection: of the server's first process, and of all
}

// load visits a server for so long.
func (s *stage) load(ctx context.Context, v visit, length time.Duration) (r result, err error) {
	to := s.servers[v.server]
	before := usage(to)
	cmd := exec.CommandContext(ctx, s.bin("c-load"), strconv.Itoa(to.port), strconv.Itoa(v.atATime), strconv.FormatInt(length.Milliseconds(), 10), to.kind)
	said, err := cmd.Output()
	if err != nil {
		if exit, ok := err.(*exec.ExitError); ok {
			err = fmt.Errorf("%w: %s", err, exit.Stderr)
		}
		return r, fmt.Errorf("%s, %d at a time: %w", v.server, v.atATime, err)
	}
	after := usage(to)
	var took time.Duration
	if _, err := fmt.Sscan(string(said), &r.done, &r.failed, (*int64)(&took), (*int64)(&r.p50), (*int64)(&r.p99)); err != nil {
		return r, fmt.Errorf("load says %q: %w", said, err)
	}
	if r.done == 0 {
		return r, fmt.Errorf("%s, %d at a time: not one connection of %d was answered", v.server, v.atATime, r.failed)
	}
	r.rate = float64(r.done) / took.Seconds()
	for i := range after {
		used := (after[i] - before[i]) / time.Duration(r.done)
		if i == 0 {
			r.first = used
		}
		r.all += used
	}
	return r, nil
}

func usage(to *server) []time.Duration {
	u := make([]time.Duration, len(to.processes))
	for i, p := range to.processes {
		u[i] = p.cpu()
	}
	return u
}

// freePort is one that nobody has at this moment.
func freePort() (int, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer ln.Close()
	return ln.Addr().(*net.TCPAddr).Port, nil
}

// answers waits until somebody listens on the port.
func answers(ctx context.Context, port int) error {
	var d net.Dialer
	for patience := 0; ; patience++ {
		c, err := d.DialContext(ctx, "tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		if err == nil {
			return c.Close()
		}
		if patience == 500 {
			return err
		}
		time.Sleep(10 * time.Millisecond)
	}
}
