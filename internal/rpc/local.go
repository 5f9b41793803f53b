package rpc

import (
	"context"
	"io"
	"sync"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// local is a connection to the services in this process (grpc.ClientConnInterface), for the gateway. A call runs through the
// interceptors as one from outside does, with the peer that its context carries, and messages are copied without being
// serialized. grpc-go has no such transport; the gateway's own in-process mode skips interceptors and has no streams.
type local struct {
	onUnary  grpc.UnaryServerInterceptor
	onStream grpc.StreamServerInterceptor
	methods  map[string]method
	streams  map[string]stream
	running  sync.WaitGroup // handlers of streams
}

type method struct {
	impl any
	call grpc.MethodHandler
}

type stream struct {
	impl   any
	info   grpc.StreamServerInfo
	handle grpc.StreamHandler
}

func newLocal(unary grpc.UnaryServerInterceptor, onStream grpc.StreamServerInterceptor) *local {
	return &local{onUnary: unary, onStream: onStream, methods: map[string]method{}, streams: map[string]stream{}}
}

// RegisterService makes local a grpc.ServiceRegistrar. All services are registered before the first call.
func (l *local) RegisterService(desc *grpc.ServiceDesc, impl any) {
	for _, m := range desc.Methods {
		l.methods["/"+desc.ServiceName+"/"+m.MethodName] = method{impl, m.Handler}
	}
	for _, st := range desc.Streams {
		name := "/" + desc.ServiceName + "/" + st.StreamName
		info := grpc.StreamServerInfo{FullMethod: name, IsClientStream: st.ClientStreams, IsServerStream: st.ServerStreams}
		l.streams[name] = stream{impl, info, st.Handler}
	}
}

// Invoke makes a unary call.
func (l *local) Invoke(ctx context.Context, name string, args, reply any, opts ...grpc.CallOption) error {
	m, ok := l.methods[name]
	if !ok {
		return status.Errorf(codes.Unimplemented, "unknown method %s", name)
	}
	var meta runtime.ServerTransportStream
	take := func(in any) error { copyTo(in, args); return nil }
	answer, err := m.call(m.impl, arriving(ctx, &meta), take, l.onUnary)
	for _, opt := range opts {
		switch opt := opt.(type) {
		case grpc.HeaderCallOption:
			*opt.HeaderAddr = meta.Header()
		case grpc.TrailerCallOption:
			*opt.TrailerAddr = meta.Trailer()
		}
	}
	if err != nil {
		return err
	}
	copyTo(reply, answer)
	return nil
}

// NewStream starts a streaming call. Its handler runs until it returns; it should when ctx ends.
func (l *local) NewStream(ctx context.Context, _ *grpc.StreamDesc, name string, _ ...grpc.CallOption) (grpc.ClientStream, error) {
	st, ok := l.streams[name]
	if !ok {
		return nil, status.Errorf(codes.Unimplemented, "unknown method %s", name)
	}
	p := &pipe{requests: make(chan any), answers: make(chan any), begun: make(chan struct{}), ended: make(chan struct{})}
	p.begin = sync.OnceFunc(func() { close(p.begun) })
	p.closeSend = sync.OnceFunc(func() { close(p.requests) })
	p.ctx = arriving(ctx, &p.meta)
	l.running.Go(func() {
		p.err = l.onStream(st.impl, serverEnd{p}, &st.info, st.handle)
		close(p.ended)
	})
	return clientEnd{p}, nil
}

// arriving is the context of a call as the server has it: what the client sends is what has come in.
func arriving(ctx context.Context, meta *runtime.ServerTransportStream) context.Context {
	md, _ := metadata.FromOutgoingContext(ctx)
	return grpc.NewContextWithServerTransportStream(metadata.NewIncomingContext(ctx, md), meta)
}

// copyTo gives dst what src has, and leaves them independent of each other as two ends of a wire are.
func copyTo(dst, src any) { proto.Merge(dst.(proto.Message), src.(proto.Message)) }

// A pipe is a stream between two goroutines. Neither side's messages wait in it: a sender waits for its receiver.
type pipe struct {
	ctx      context.Context
	requests chan any
	answers  chan any
	meta     runtime.ServerTransportStream
	begin    func()
	begun    chan struct{} // closed by begin, when the headers are known
	ended    chan struct{} // closed when the handler has returned err
	err      error

	closeSend func() // closes requests; the gateway does so twice
}

type serverEnd struct{ *pipe }

func (s serverEnd) Context() context.Context       { return s.ctx }
func (s serverEnd) SetHeader(md metadata.MD) error { return s.meta.SetHeader(md) }
func (s serverEnd) SetTrailer(md metadata.MD)      { _ = s.meta.SetTrailer(md) }

func (s serverEnd) SendHeader(md metadata.MD) error {
	defer s.begin()
	return s.meta.SendHeader(md)
}

func (s serverEnd) SendMsg(m any) error {
	s.begin()
	select {
	case s.answers <- m:
		return nil
	case <-s.ctx.Done():
		return status.FromContextError(s.ctx.Err()).Err()
	}
}

func (s serverEnd) RecvMsg(m any) error {
	select {
	case req, ok := <-s.requests:
		if !ok {
			return io.EOF
		}
		copyTo(m, req)
		return nil
	case <-s.ctx.Done():
		return status.FromContextError(s.ctx.Err()).Err()
	}
}

type clientEnd struct{ *pipe }

func (c clientEnd) Context() context.Context { return c.ctx }
func (c clientEnd) Trailer() metadata.MD     { return c.meta.Trailer() }

func (c clientEnd) CloseSend() error {
	c.closeSend()
	return nil
}

// Header waits for the headers or the first answer. A call that failed before is an error here, so that it can still be
// answered like any other.
func (c clientEnd) Header() (metadata.MD, error) {
	select {
	case <-c.begun:
	case <-c.ended:
		if c.err != nil {
			return nil, c.err
		}
	}
	return c.meta.Header(), nil
}

func (c clientEnd) SendMsg(m any) error {
	select {
	case c.requests <- m:
		return nil
	case <-c.ended:
		return io.EOF // as grpc.ClientStream has it: RecvMsg says why
	}
}

func (c clientEnd) RecvMsg(m any) error {
	select {
	case answer := <-c.answers:
		copyTo(m, answer)
		return nil
	case <-c.ended:
		if c.err != nil {
			return c.err
		}
		return io.EOF
	}
}
