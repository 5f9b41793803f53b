package rpc

import (
	"context"
	"errors"
	"net"
	"syscall"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"

	"github.com/portd/portd/internal/peercred"
	"github.com/portd/portd/internal/registry"
)

// A caller is settled once, when his connection is accepted, and travels with it as gRPC's AuthInfo; for REST it is in the
// connection's context in the same form. Nothing that a request says can change it.
type caller struct {
	credentials.CommonAuthInfo
	registry.Caller
	account *account // of what he has of portd; nil where that is bounded otherwise
	counted bool     // his calls are
	refused error    // what every call is answered; nil where it is served
}

func (caller) AuthType() string { return "peercred" }

func withCaller(ctx context.Context, c *conn) context.Context {
	return peer.NewContext(ctx, &peer.Peer{Addr: c.RemoteAddr(), LocalAddr: c.LocalAddr(), AuthInfo: c.settled()})
}

// A unix socket does not leave the host.
var onHost = credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity}

// callerOf is who asks. It panics where nobody does: the zero Caller would be root.
func callerOf(ctx context.Context) registry.Caller {
	c, ok := findCaller(ctx)
	if !ok {
		panic("a call without a caller")
	}
	return c
}

func findCaller(ctx context.Context) (registry.Caller, bool) {
	c, ok := peerOf(ctx)
	return c.Caller, ok
}

func peerOf(ctx context.Context) (c caller, ok bool) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return c, false
	}
	c, ok = p.AuthInfo.(caller)
	return c, ok
}

// settled is the caller as he goes with his connection.
func (c *conn) settled() caller { return caller{onHost, c.caller, c.account, c.counted, c.refused} }

// A join says in which network namespace the peer of a connection lives, and keeps that known until leave is called.
type join func(syscall.Conn) (netns string, leave func(), err error)

// atHome takes everybody for a caller from portd's own network namespace.
func atHome(syscall.Conn) (string, func(), error) { return registry.HostNetns, func() {}, nil }

// identify asks the kernel who is at the other end, and joins his network namespace.
func (j join) identify(c *net.UnixConn) (who registry.Caller, leave func(), err error) {
	cred, err := peercred.Of(c)
	if err != nil {
		return who, nil, err
	}
	who = registry.Caller{UID: cred.UID, GID: cred.GID, PID: cred.PID}
	who.Netns, leave, err = j(c)
	return who, leave, err
}

// settled are the transport credentials of connections whose caller is known already.
type settled struct{}

func (settled) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	c, ok := raw.(*conn)
	if !ok {
		return nil, nil, errors.New("a connection without a caller")
	}
	return c, c.settled(), nil
}

func (settled) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("these credentials are a server's")
}

func (settled) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: caller{}.AuthType()}
}
func (c settled) Clone() credentials.TransportCredentials { return c }
func (settled) OverrideServerName(string) error           { return nil }
