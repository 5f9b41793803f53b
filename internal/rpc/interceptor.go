package rpc

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"

	"google.golang.org/grpc"

	"github.com/portd/portd/internal/registry"
)

// errStopping is why streams end when portd does.
var errStopping = fmt.Errorf("%w: portd is stopping", registry.ErrUnavailable)

func (s *Server) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (_ any, err error) {
	defer s.answer(ctx, info.FullMethod, &err)
	arrivalOf(ctx).here()
	if err := refused(ctx); err != nil {
		return nil, err
	}
	if info.FullMethod != upgradeMethod {
		if err := s.hold.enter(ctx, s.stopping); err != nil {
			return nil, err
		}
		defer s.hold.running.Add(-1)
	}
	return handle(ctx, req)
}

func (s *Server) stream(impl any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handle grpc.StreamHandler) (err error) {
	ctx, cancel := context.WithCancelCause(ss.Context())
	defer cancel(nil)
	defer s.answer(ctx, info.FullMethod, &err)
	defer context.AfterFunc(s.stopping, func() { cancel(errStopping) })()
	request := arrivalOf(ctx)
	request.here() // or it would be late while the call is held
	if err := refused(ctx); err != nil {
		return err
	}
	if err := s.hold.pass(ctx, s.stopping); err != nil {
		return err
	}
	return handle(impl, &stoppable{ServerStream: ss, ctx: ctx, request: request})
}

// answer is deferred around every handler: what went wrong becomes a status, and a panic is one call's misfortune.
func (s *Server) answer(ctx context.Context, method string, err *error) {
	if p := recover(); p != nil {
		s.log.Error("panic in a call", "method", method, "err", p, "stack", string(debug.Stack()))
		*err = errInternal
		return
	}
	if cause := context.Cause(ctx); *err != nil && (errors.Is(cause, errStopping) || errors.Is(cause, errLate)) {
		*err = cause
	}
	*err = s.status(ctx, method, *err)
}

// A stoppable stream ends when its caller goes or portd stops.
type stoppable struct {
	grpc.ServerStream
	ctx     context.Context
	request *arrival
	begun   bool // the first request is here
}

func (s *stoppable) Context() context.Context { return s.ctx }

// RecvMsg waits for the first request as for that of any call; further ones may take as long as their caller likes.
func (s *stoppable) RecvMsg(m any) error {
	if s.begun {
		s.request.comes(-1)
	} else {
		s.request.comes(patience)
	}
	defer s.request.here()
	s.begun = true
	return s.ServerStream.RecvMsg(m)
}
