package rpc

import (
	"context"
	"errors"
	"net"
	"net/http"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"
)

// farewell is how long calls that are being answered may take when the doors close.
const farewell = 2 * time.Second

// pings are how often clients may ping. portd itself pings nobody: the kernel tells when the other end of a unix socket is
// gone, and one that is merely stopped keeps what it has.
var pings = keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}

// Serve answers on ln until ctx ends; then streams end at once and other calls have two seconds. It closes ln, returns after
// all its goroutines, and is called once.
func (s *Server) Serve(ctx context.Context, ln *net.UnixListener) error {
	sort := &sorter{
		join: s.join, h1: newLane(ln.Addr()), h2: newLane(ln.Addr()),
		log: s.log, most: mostPerUser(), open: map[uint32]*account{}, hold: &s.hold,
	}
	s.hold.serves(ln)
	work, ctx := errgroup.WithContext(ctx)
	work.Go(func() error {
		// As with HTTP, the end may come before the beginning.
		if err := s.grpc.Serve(sort.h2); !errors.Is(err, grpc.ErrServerStopped) {
			return err
		}
		return nil
	})
	work.Go(func() error {
		if err := s.http.Serve(sort.h1); !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return nil
	})
	work.Go(func() error { return sort.run(ctx, ln) })
	work.Go(func() error {
		<-ctx.Done()
		_ = ln.Close() // ends sort.run
		s.end()
		return nil
	})
	err := work.Wait()
	s.local.running.Wait()
	return err
}

// end ends both servers, by force where they take too long.
func (s *Server) end() {
	s.stop()
	s.health.Shutdown()
	ctx, cancel := context.WithTimeout(context.Background(), farewell)
	defer cancel()
	var ending errgroup.Group
	ending.Go(func() error {
		defer context.AfterFunc(ctx, s.grpc.Stop)()
		s.grpc.GracefulStop()
		return nil
	})
	ending.Go(func() error {
		if s.http.Shutdown(ctx) != nil {
			return s.http.Close()
		}
		return nil
	})
	_ = ending.Wait() // closing what is closed: nobody is left to tell
}
