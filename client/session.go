package client

import (
	"context"
	"errors"
	"log/slog"
	"time"

	pb "github.com/portd/portd/proto/portd/v1"
	"google.golang.org/grpc"
)

// A Session is a lease that lasts as long as this process follows it, and a grace beyond: what is reserved with it ends
// when the process does, however that comes about. It must be ended.
type Session struct {
	cl    *Client
	lease string
	token string
	log   *slog.Logger
	stop  context.CancelFunc
	done  chan struct{} // closed when nothing follows the stream any more
	err   error         // why portd ended it; to be read after done
}

type sessionStream = grpc.ServerStreamingClient[pb.OpenSessionResponse]

// OpenSession opens a session; ctx bounds that and nothing after it. The session goes on when portd restarts.
func (c *Client) OpenSession(ctx context.Context) (*Session, error) {
	return openSession(ctx, c, slog.New(slog.DiscardHandler))
}

// LeaseID is what reservations name to end with the session.
func (s *Session) LeaseID() string { return s.lease }

// Done is closed when the session is over: by End, or because portd does not know it any more.
func (s *Session) Done() <-chan struct{} { return s.done }

// Err is why portd ended the session; nil before Done, and after End.
func (s *Session) Err() error {
	select {
	case <-s.done:
		return s.err
	default:
		return nil
	}
}

func openSession(ctx context.Context, cl *Client, log *slog.Logger) (*Session, error) {
	life, stop := context.WithCancel(context.WithoutCancel(ctx))
	unbound := context.AfterFunc(ctx, stop)
	var stream sessionStream
	var first *pb.OpenSessionResponse
	var err error
	for wait := firstRetry; ; wait *= 2 {
		if stream, err = cl.Leases.OpenSession(life, &pb.OpenSessionRequest{}); err == nil {
			first, err = stream.Recv()
		}
		if !handedOver(err) || wait > lastRetry {
			break
		}
		select {
		case <-time.After(wait):
		case <-life.Done():
		}
	}
	if !unbound() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		stop()
		return nil, err
	}
	s := &Session{cl: cl, lease: first.GetLease().GetId(), token: first.GetResumeToken(), log: log, stop: stop, done: make(chan struct{})}
	go func() {
		defer close(s.done)
		s.follow(life, stream)
	}()
	return s, nil
}

// follow resumes the session whenever its stream ends, as when portd restarts, until portd does not know it any more. What hung
// on it is then gone, of which listeners hear at the hand-off.
func (s *Session) follow(ctx context.Context, stream sessionStream) {
	for {
		var err error
		for err == nil {
			_, err = stream.Recv()
		}
		for wait := shortestWait; err != nil; wait = min(2*wait, longestWait) {
			if ctx.Err() != nil {
				return
			}
			if errors.Is(err, ErrNotFound) {
				s.err = err
				s.log.Warn("the session has ended, and its reservation with it", "lease", s.lease, "err", err)
				return
			}
			s.log.Debug("the session's stream ended; resuming it", "lease", s.lease, "err", err)
			select {
			case <-time.After(wait):
			case <-ctx.Done():
				return
			}
			if stream, err = s.cl.Leases.OpenSession(ctx, &pb.OpenSessionRequest{ResumeToken: s.token}); err == nil {
				_, err = stream.Recv()
			}
		}
	}
}

// End ends the session, the lease and all that hangs on it. Without portd that happens by itself, after the grace.
func (s *Session) End() error {
	s.stop()
	<-s.done
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	_, err := s.cl.Leases.EndLease(ctx, &pb.EndLeaseRequest{LeaseId: s.lease})
	if errors.Is(err, ErrNotFound) || errors.Is(err, ErrNoDaemon) {
		return nil
	}
	return err
}
