// Package client talks to portd: control calls in the messages of portd's API, and connections as a net.Listener.
//
// A Client reserves ports, makes them listen and asks who has what. A Listener takes connections from a port that portd
// holds, together with other processes, and survives portd's restarts.
package client

import (
	"context"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/portd/portd/internal/paths"
	pb "github.com/portd/portd/proto/portd/v1"
)

// Options say how to reach portd. The zero Options find it.
type Options struct {
	// Socket is the path of portd's control socket. Empty means $PORTD_SOCKET, else your own portd's if there is one, else
	// the system's.
	Socket string
}

// A Client makes control calls. Its methods and those of its services may be called at the same time.
//
// When portd restarts, a call that meets it being away is repeated for about a second, where that is safe: calls that change
// something carry a request id, which the Client makes where the request has none, or change nothing the second time. Streams end, and it is for the caller
// to resume them. Errors match the Err variables of this package with errors.Is, and are an *Error.
type Client struct {
	Reservations pb.ReservationServiceClient
	Leases       pb.LeaseServiceClient
	Ports        pb.PortServiceClient
	Services     pb.ServiceRegistryServiceClient
	Handoff      pb.HandoffServiceClient
	Daemon       pb.DaemonServiceClient
	Upgrades     pb.UpgradeServiceClient
	Backups      pb.BackupServiceClient

	conn   *grpc.ClientConn
	socket string
}

// Dial connects to portd, once; ctx bounds that and nothing after it. The error is ErrNoDaemon where there is none, which is
// known at once, and ErrUntrusted where what is there is neither yours nor root's. Close the Client when done.
func Dial(ctx context.Context, opt Options) (*Client, error) {
	first, path, err := find(ctx, opt.Socket)
	if err != nil {
		return nil, err
	}
	line := &line{path: path, first: first}
	conn, err := grpc.NewClient("passthrough:///portd",
		grpc.WithContextDialer(line.dial),
		grpc.WithTransportCredentials(insecure.NewCredentials()), // the kernel vouches for both sides of a unix socket
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 10 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: time.Second},
			MinConnectTimeout: 5 * time.Second,
		}),
		grpc.WithStaticStreamWindowSize(window),
		grpc.WithStaticConnWindowSize(window),
		grpc.WithDefaultServiceConfig(retries),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxAnswer)),
		grpc.WithUnaryInterceptor(line.unary),
		grpc.WithStreamInterceptor(line.stream),
	)
	if err != nil {
		_ = first.Close()
		return nil, err
	}
	conn.Connect() // takes first, before portd finds it too silent
	return &Client{
		Reservations: pb.NewReservationServiceClient(conn),
		Leases:       pb.NewLeaseServiceClient(conn),
		Ports:        pb.NewPortServiceClient(conn),
		Services:     pb.NewServiceRegistryServiceClient(conn),
		Handoff:      pb.NewHandoffServiceClient(conn),
		Daemon:       pb.NewDaemonServiceClient(conn),
		Upgrades:     pb.NewUpgradeServiceClient(conn),
		Backups:      pb.NewBackupServiceClient(conn),
		conn:         conn,
		socket:       path,
	}, nil
}

// Close ends the connection, and calls and streams with it.
func (c *Client) Close() error { return c.conn.Close() }

// SocketPath is the control socket that answered.
func (c *Client) SocketPath() string { return c.socket }

// HandoffPath is the hand-off socket of the portd that answered.
func (c *Client) HandoffPath() string { return paths.Handoff(c.socket) }

// maxAnswer is in bytes; a page of 1000 reservations is far below it.
const maxAnswer = 64 << 20

// window is how much of an answer may be on its way here unread, in bytes. It stays what it is: to find a better one gRPC
// pings at every call, which costs a tenth of it, and a unix socket has no latency to make up for.
const window = 1 << 20

// retries repeat what may be repeated, while portd is away (about 1.6 s in all). Opening a session is not: the first one
// might have been made. Nor is what would do something else the second time: an import that is undone twice is there again, and
// what was renamed or removed is not found. To add and to import the same again changes nothing.
const retries = `{"methodConfig": [{
	"name": [
		{"service": "portd.v1.ServiceRegistryService", "method": "EditServices"},
		{"service": "portd.v1.ServiceRegistryService", "method": "RemoveServices"},
		{"service": "portd.v1.ServiceRegistryService", "method": "UndoImport"}
	]
}, {
	"name": [
		{"service": "portd.v1.ReservationService"},
		{"service": "portd.v1.LeaseService", "method": "EndLease"},
		{"service": "portd.v1.LeaseService", "method": "GetLease"},
		{"service": "portd.v1.LeaseService", "method": "ListLeases"},
		{"service": "portd.v1.PortService"},
		{"service": "portd.v1.ServiceRegistryService"},
		{"service": "portd.v1.HandoffService"},
		{"service": "portd.v1.DaemonService"}
	],
	"retryPolicy": {
		"maxAttempts": 5, "initialBackoff": "0.05s", "backoffMultiplier": 3, "maxBackoff": "1s",
		"retryableStatusCodes": ["UNAVAILABLE"]
	}
}]}`
