// Package rpc is the doors to the registry: gRPC and REST on one unix socket, whose callers the kernel names.
//
// A connection's first bytes say what it speaks. REST goes through the generated gateway into the same services, with the
// same interceptors and the same caller, without another socket in between: a REST caller keeps his own uid.
package rpc

import (
	"context"
	"log/slog"
	"net/http"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/reflection"

	"github.com/portd/portd/internal/registry"
	pb "github.com/portd/portd/proto/portd/v1"
)

// Config is what a Server is made of. Registry and Workers are needed.
type Config struct {
	Registry *registry.Registry
	Workers  Workers
	Policy   func() PolicyStatus // nil: there is no policy file
	Backups  Backups             // nil: the state is not copied in or out
	Info     Info
	Custody  func() Custody // nil: nothing is known of it
	Log      *slog.Logger   // nil: silent
	// Upgrade puts another program in this one's place, and returns when that works; the caller answers and ends. The error is an
	// *UpgradeError where this one goes on. nil: there are no upgrades.
	Upgrade func(ctx context.Context, binary string) (Upgraded, error)
	// Join says in which network namespace the peer of a connection lives, as endpoints spell it, and keeps it known by that name
	// until leave is called; nil: everybody is taken for a caller from portd's own.
	Join func(syscall.Conn) (netns string, leave func(), err error)
}

// Info is what the daemon knows of itself.
type Info struct {
	Version       string
	PID           int
	UID           uint32
	Started       time.Time
	StateDir      string
	ControlSocket string
	HandoffSocket string
	Features      []Feature
	ReadOnly      []string // why callers change nothing, and what is missing of the state; empty: they do
}

// Custody is who has what portd has, and how often that was needed: see the API's CustodyStatus.
type Custody struct {
	Keeper, Holder     int // pids; 0: there is none
	Manager            bool
	Since, Restarted   time.Time
	Restarts, Upgrades int
}

// A Feature is something of the kernel that portd is better with.
type Feature struct {
	Name        string
	Available   bool
	Consequence string // what is weaker without it
}

// PolicyStatus is how it stands with the policy file.
type PolicyStatus struct {
	File   string
	Loaded time.Time // when what applies was read; zero: the file is not there, and portd's own defaults apply
	Err    string    // why the last attempt to read it failed; empty where it did not
	Failed time.Time // when that was
}

// A Server answers the API.
type Server struct {
	log      *slog.Logger
	join     join
	grpc     *grpc.Server
	health   *health.Server
	http     *http.Server
	local    *local
	hold     hold
	stopping context.Context // ended by stop, and streams with it
	stop     context.CancelFunc
}

// maxMessage bounds a request, in bytes: it is the memory that a stranger can ask for. A specification of 10,000 ports is one
// range, so that real ones take a thousandth of it.
const maxMessage = 1 << 20

// window is how much of a call, and of a connection, may be on its way here unread, in bytes: a message. It stays what it is:
// to find a better one gRPC pings at every call, which costs a tenth of it, and a unix socket has no latency to make up for.
const window = maxMessage

// framing is what a chunk of a file has around it in its message, in bytes.
const framing = 16

// New makes a Server; Serve opens its doors.
func New(cfg Config) *Server {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Policy == nil {
		cfg.Policy = func() (none PolicyStatus) { return none }
	}
	s := &Server{log: cfg.Log, join: cfg.Join}
	if s.join == nil {
		s.join = atHome
	}
	s.stopping, s.stop = context.WithCancel(context.Background())
	s.local = newLocal(s.unary, s.stream)
	s.grpc = grpc.NewServer(
		grpc.Creds(settled{}),
		grpc.UnaryInterceptor(s.unary),
		grpc.StreamInterceptor(s.stream),
		grpc.UnknownServiceHandler(unknown(cfg.Info.Version)),
		grpc.MaxRecvMsgSize(maxMessage+framing),
		grpc.MaxHeaderListSize(maxHeader),
		grpc.StaticStreamWindowSize(window),
		grpc.StaticConnWindowSize(window),
		grpc.MaxConcurrentStreams(perConnection),
		grpc.InTapHandle(admitCall),
		grpc.ConnectionTimeout(patience),
		grpc.WaitForHandlers(true),
		grpc.KeepaliveEnforcementPolicy(pings),
	)
	register(cfg, s.grpc, &hot{})
	register(cfg, s.local, nil) // from where answers go on as messages
	s.health = health.NewServer()
	for name := range s.grpc.GetServiceInfo() {
		s.health.SetServingStatus(name, grpc_health_v1.HealthCheckResponse_SERVING)
	}
	grpc_health_v1.RegisterHealthServer(s.grpc, s.health)
	reflection.Register(s.grpc)
	s.http = newREST(s.local, s.log)
	return s
}

func register(cfg Config, to grpc.ServiceRegistrar, hot *hot) {
	pb.RegisterReservationServiceServer(to, &reservations{reg: cfg.Registry, log: cfg.Log})
	pb.RegisterLeaseServiceServer(to, &leases{reg: cfg.Registry})
	pb.RegisterServiceRegistryServiceServer(to, &serviceRegistry{reg: cfg.Registry, hot: hot})
	pb.RegisterPortServiceServer(to, &ports{reg: cfg.Registry, workers: cfg.Workers, policy: cfg.Policy, hot: hot})
	pb.RegisterHandoffServiceServer(to, &handoffs{reg: cfg.Registry, workers: cfg.Workers})
	pb.RegisterUpgradeServiceServer(to, &upgrades{reg: cfg.Registry, upgrade: cfg.Upgrade})
	pb.RegisterBackupServiceServer(to, &backups{reg: cfg.Registry, is: cfg.Backups})
	pb.RegisterDaemonServiceServer(to, &daemon{reg: cfg.Registry, workers: cfg.Workers, policy: cfg.Policy, info: cfg.Info, custody: cfg.Custody})
}
