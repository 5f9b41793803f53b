package main

import (
	"context"
	"errors"
	"time"

	"github.com/portd/portd/client"
	pb "github.com/portd/portd/proto/portd/v1"
)

// A session keeps a lease alive: what is reserved with it ends when this process does, however that comes about.
type session struct {
	cl    *client.Client
	lease string
	token string
	stop  context.CancelFunc
	done  chan struct{} // closed when nothing follows the stream any more
}

// openSession opens one and follows it until end; lost is called, once, if portd ends it or is gone for good.
func openSession(ctx context.Context, cl *client.Client, lost func(error)) (*session, error) {
	ctx, stop := context.WithCancel(ctx)
	stream, first, err := opened(cl.Leases.OpenSession(ctx, &pb.OpenSessionRequest{}))
	if err != nil {
		stop()
		return nil, err
	}
	s := &session{cl: cl, lease: first.GetLease().GetId(), token: first.GetResumeToken(), stop: stop, done: make(chan struct{})}
	go func() {
		defer close(s.done)
		if err := s.follow(ctx, stream); err != nil && ctx.Err() == nil {
			lost(err)
		}
	}()
	return s, nil
}

type sessionStream interface {
	Recv() (*pb.OpenSessionResponse, error)
}

// opened waits for the answer that has the lease.
func opened(stream sessionStream, err error) (sessionStream, *pb.OpenSessionResponse, error) {
	if err != nil {
		return nil, nil, err
	}
	first, err := stream.Recv()
	return stream, first, err
}

// follow resumes the session whenever its stream ends, as when portd restarts, until portd does not know it any more.
func (s *session) follow(ctx context.Context, stream sessionStream) error {
	for {
		var err error
		for err == nil {
			_, err = stream.Recv()
		}
		for wait := 50 * time.Millisecond; err != nil; wait = min(2*wait, 2*time.Second) {
			if ctx.Err() != nil || errors.Is(err, client.ErrNotFound) {
				return err
			}
			select {
			case <-time.After(wait):
			case <-ctx.Done():
				return ctx.Err()
			}
			stream, _, err = opened(s.cl.Leases.OpenSession(ctx, &pb.OpenSessionRequest{ResumeToken: s.token}))
		}
	}
}

// end ends the lease and all that hangs on it.
func (s *session) end() error {
	s.stop()
	<-s.done
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	_, err := s.cl.Leases.EndLease(ctx, &pb.EndLeaseRequest{LeaseId: s.lease})
	if errors.Is(err, client.ErrNotFound) || errors.Is(err, client.ErrNoDaemon) {
		return nil // it has ended already, or does when portd is back
	}
	return err
}
