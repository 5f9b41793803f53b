package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"
)

// kills lets two workers serve 64 connections at a time, kills one of them with SIGKILL every tenth of a second, and counts the
// connections that did not get their answer.
func (s *stage) kills(ctx context.Context, out io.Writer) error {
	const count = 60
	port, err := s.listen(ctx, "bench-kills")
	if err != nil {
		return err
	}
	var workers [2]*process
	spawn := func(i int) (err error) {
		workers[i], err = s.start(ctx, nil, "server", "echo", s.api.HandoffPath(), "bench-kills")
		return err
	}
	if err := errors.Join(spawn(0), spawn(1)); err != nil {
		return err
	}
	s.servers["kills"] = &server{port, "echo", []*process{s.portd}}
	const every = 100 * time.Millisecond
	type loaded struct {
		result
		err error
	}
	ended := make(chan loaded, 1)
	go func() {
		r, err := s.load(ctx, visit{"kills", 64}, (count+5)*every)
		ended <- loaded{r, err}
	}()
	next := time.NewTicker(every)
	defer next.Stop()
	for i := range count {
		<-next.C
		workers[i%2].stop()
		if err := spawn(i % 2); err != nil {
			return err
		}
	}
	l := <-ended
	if l.err != nil {
		return l.err
	}
	lost := float64(l.failed) / count
	fmt.Fprintf(out, "connections lost per SIGKILL of one of two workers: %.2f (%d of %d, %d kills); pass 1.0, aim 0.3: %s\n",
		lost, l.failed, l.done+l.failed, count, verdict(lost, 1.0, 0.3, true))
	return nil
}

// crowd attaches as many workers to one listener as the issue of descriptors allows, and has a connection served beside them.
func (s *stage) crowd(ctx context.Context, out io.Writer) error {
	const many = 4000
	if _, err := s.listen(ctx, "bench-crowd"); err != nil {
		return err
	}
	p, err := s.start(ctx, nil, "server", "many", s.api.HandoffPath(), "bench-crowd", fmt.Sprint(many))
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "%d workers for one listener (count, milliseconds): %s", many, p.said)
	return nil
}
