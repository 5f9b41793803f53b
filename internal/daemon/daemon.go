// Package daemon is portd whole: it knows all the other packages, introduces them to one another, and starts and stops
// them in the right order.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	sd "github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sync/errgroup"

	"github.com/portd/portd/internal/binder"
	"github.com/portd/portd/internal/handoff"
	"github.com/portd/portd/internal/ianadb"
	"github.com/portd/portd/internal/localports"
	"github.com/portd/portd/internal/natrules"
	"github.com/portd/portd/internal/netns"
	"github.com/portd/portd/internal/paths"
	"github.com/portd/portd/internal/peercred"
	"github.com/portd/portd/internal/pidwatch"
	"github.com/portd/portd/internal/registry"
	"github.com/portd/portd/internal/registry/boltstore"
	"github.com/portd/portd/internal/rpc"
)

// Config is all that can be set. The zero Config is a good one: the places of the user who runs it.
type Config struct {
	Socket   string // control socket; the hand-off socket and the lock lie beside it
	StateDir string // of the store
	Policy   string // policy file, which must be there; empty: that of the user who runs it, where there is one
	Version  string
	Log      *slog.Logger     // nil: silent
	Ready    func()           // called once everything answers; nil: nobody is told
	Reload   <-chan os.Signal // at each the policy file is read again; nil: never
}

// Run is a portd from start to stop. It returns nil when ctx has ended and everything has been put away, else why it
// could not start or go on. Ports close with it; programs that have a socket itself keep it.
func Run(ctx context.Context, cfg Config) (err error) {
	started := time.Now()
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if err := cfg.settle(); err != nil {
		return err
	}
	policy, err := cfg.newPolicy()
	if err != nil {
		return err
	}
	var settings registry.Settings
	if err := policy.load(func(s registry.Settings) error { settings = s; return nil }); err != nil {
		return fmt.Errorf("policy file: %w", err)
	}
	// What is opened here is closed in reverse order, by the deferred calls.
	lns, err := inherited()
	if err != nil {
		return err
	}
	defer func() {
		for _, ln := range lns {
			ln.Close()
		}
	}()
	if err := cfg.makeDirs(); err != nil {
		return err
	}
	locked, err := lock(paths.Lock(cfg.Socket))
	if err != nil {
		return err
	}
	defer locked.Close()
	store, err := boltstore.Open(paths.Paths{State: cfg.StateDir}.Store(), boltstore.Options{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }()

	parts, err := cfg.introduce(store, settings)
	if err != nil {
		return err
	}
	parts.policy = policy
	served := false
	defer func() { parts.close(served) }()
	features := parts.features()
	tellWeaknesses(cfg.Log, features)
	if err := parts.registry.Start(ctx); err != nil {
		return fmt.Errorf("bring back the reservations: %w", err)
	}
	control, err := open(lns, "control", "unix", cfg.Socket)
	if err != nil {
		return err
	}
	attach, err := open(lns, "handoff", "unixpacket", paths.Handoff(cfg.Socket))
	if err != nil {
		return err
	}
	doors := rpc.New(rpc.Config{
		Registry: parts.registry,
		Workers:  workers{parts.pool},
		Policy:   policy.state,
		Log:      cfg.Log,
		Join:     parts.netns.Join,
		Info: rpc.Info{
			Version: cfg.Version, PID: os.Getpid(), UID: uint32(os.Geteuid()), Started: started,
			StateDir: cfg.StateDir, ControlSocket: cfg.Socket, HandoffSocket: paths.Handoff(cfg.Socket),
			Features: features,
		},
	})
	served = true
	return cfg.serve(ctx, parts, doors, control, attach, started)
}

// ended is a context that has.
func ended() context.Context {
	ctx, end := context.WithCancel(context.Background())
	end()
	return ctx
}

// serve runs the parts until ctx ends or one of them fails. The doors close first; what is being answered then still
// finds the registry at work.
func (cfg Config) serve(ctx context.Context, p *parts, doors *rpc.Server, control, attach *net.UnixListener, started time.Time) error {
	inner, endInner := context.WithCancel(context.WithoutCancel(ctx))
	defer endInner()
	octx, giveUp := context.WithCancelCause(ctx)
	defer giveUp(nil)
	var inside errgroup.Group
	for _, run := range []func(context.Context) error{p.registry.Run, p.pool.Run, p.local.Run} {
		inside.Go(func() error {
			err := run(inner)
			if err == nil && inner.Err() == nil {
				err = errors.New("a part of portd stopped by itself")
			}
			giveUp(err) // there is no portd without it
			return err
		})
	}
	outside, octx := errgroup.WithContext(octx)
	outside.Go(func() error { return doors.Serve(octx, control) })
	outside.Go(func() error { return p.pool.Serve(octx, attach) })
	outside.Go(func() error {
		p.policy.keep(octx, cfg.Reload, cfg, p.registry)
		return nil
	})
	cfg.announce(p, started)
	err := outside.Wait()
	cfg.notify(sd.SdNotifyStopping)
	endInner()
	err = errors.Join(err, inside.Wait())
	if ctx.Err() != nil && (err == nil || errors.Is(err, context.Canceled)) {
		cfg.Log.Info("stopped")
		return nil
	}
	return err
}

// announce says that everything answers: in the log, to the service manager, and to whoever started it in a test.
func (cfg Config) announce(p *parts, started time.Time) {
	st := p.registry.Status()
	cfg.Log.Info("ready", "socket", cfg.Socket, "state", cfg.StateDir, "version", cfg.Version, "reservations", st.Reservations,
		"lost", st.Lost, "listeners", st.Listeners, "policy", p.policy.loaded(), "took", time.Since(started).Round(time.Millisecond).String())
	cfg.notify(sd.SdNotifyReady)
	if cfg.Ready != nil {
		cfg.Ready()
	}
}

func (cfg Config) notify(state string) {
	if _, err := sd.SdNotify(false, state); err != nil {
		cfg.Log.Warn("the service manager could not be told", "state", state, "err", err)
	}
}

// settle fills in what is not set.
func (cfg *Config) settle() error {
	if cfg.Socket == "" || cfg.StateDir == "" {
		places, err := paths.Of(os.Geteuid(), os.Getenv)
		if err != nil {
			return fmt.Errorf("where to keep things: %w; say so by --socket and --state", err)
		}
		if cfg.Socket == "" {
			cfg.Socket = places.Control()
		}
		if cfg.StateDir == "" {
			cfg.StateDir = places.State
		}
	}
	var err error
	if cfg.Socket, err = filepath.Abs(cfg.Socket); err != nil {
		return err
	}
	if cfg.StateDir, err = filepath.Abs(cfg.StateDir); err != nil {
		return err
	}
	if filepath.Base(cfg.Socket) == filepath.Base(paths.Handoff(cfg.Socket)) {
		return fmt.Errorf("%s is the name of the hand-off socket beside the control socket; choose another --socket", cfg.Socket)
	}
	return nil
}

// makeDirs makes the state directory, which is portd's alone, and that of the sockets, which others may reach if portd
// is the system's.
func (cfg Config) makeDirs() error {
	if err := makeDir(cfg.StateDir, 0o700); err != nil {
		return fmt.Errorf("state directory: %w", err)
	}
	if err := makeDir(filepath.Dir(cfg.Socket), dirMode()); err != nil {
		return fmt.Errorf("socket directory: %w", err)
	}
	return nil
}

func dirMode() fs.FileMode {
	if os.Geteuid() == 0 {
		return 0o755
	}
	return 0o700
}

func socketMode() fs.FileMode {
	if os.Geteuid() == 0 {
		return 0o666
	}
	return 0o600
}

// open is the inherited socket of that name, or one of portd's own. Serving it closes it.
func open(lns map[string]*net.UnixListener, name, network, path string) (*net.UnixListener, error) {
	if ln := lns[name]; ln != nil {
		return ln, nil
	}
	ln, err := listen(network, path, socketMode())
	if err != nil {
		return nil, fmt.Errorf("%s socket: %w", name, err)
	}
	lns[name] = ln // closed with the others where the start fails
	return ln, nil
}

// parts are what a daemon is made of.
type parts struct {
	pool     *handoff.Pool
	binder   *binder.Binder
	pids     *pidwatch.Watcher
	local    *localports.Keeper
	netns    *netns.Host
	nat      *natrules.Host
	policy   *policy
	registry *registry.Registry
}

// introduce makes the parts and lets each know those it needs.
func (cfg Config) introduce(store registry.Store, settings registry.Settings) (_ *parts, err error) {
	p := &parts{}
	defer func() {
		if err != nil {
			p.close(false)
		}
	}()
	log := func(part string) *slog.Logger { return cfg.Log.With("part", part) }
	asks := &attacher{}
	lends := &lender{}
	bootID, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return nil, err
	}
	if p.netns, err = netns.New(strings.TrimSpace(string(bootID)), log("netns")); err != nil {
		return nil, err
	}
	if p.pool, err = handoff.New(handoff.Config{Attacher: asks, Lender: lends, Doors: lends, Join: p.netns.Join, Enter: p.netns.Enter, Log: log("handoff")}); err != nil {
		return nil, err
	}
	if err := binder.KeepBack(); err != nil {
		return nil, err
	}
	if p.binder, err = binder.New(binder.Config{Log: log("binder"), Observer: p.pool, Enter: p.netns.Enter}); err != nil {
		return nil, err
	}
	lends.Binder = p.binder
	if p.pids, err = pidwatch.New(log("pidwatch")); err != nil {
		return nil, err
	}
	here, err := peercred.OwnNetNS()
	if err != nil {
		return nil, err
	}
	p.local = localports.New(localports.Config{
		Record: filepath.Join(cfg.StateDir, "local-ports"), BootID: strings.TrimSpace(string(bootID)), Netns: fmt.Sprint(here),
		Log: log("localports"),
	})
	if p.nat, err = natrules.OpenHost(p.netns.Enter); err != nil {
		return nil, err
	}
	p.registry = registry.New(registry.Config{
		Store: store, Binder: p.binder, Closings: p.binder, Processes: p.pids, Netns: p.netns, Redirects: p.nat, Services: ianadb.Embedded(), Log: log("registry"),
		Policy: registry.Policy{UID: uint32(os.Geteuid()), FirstUnprivileged: p.binder.FirstUnprivileged(registry.HostNetns)},
		BootID: strings.TrimSpace(string(bootID)), Settings: settings,
		Ended: func(res *registry.Reservation, reason string) { p.pool.Released(res.ID, reason) },

		LocalPorts: p.local,
	})
	asks.Registry = p.registry
	return p, nil
}

// close puts away the parts that there are. ran says that the pool has been, by its Run.
func (p *parts) close(ran bool) {
	if p.pool != nil && !ran {
		_ = p.pool.Run(ended())
	}
	if p.pids != nil {
		_ = p.pids.Close()
	}
	if p.nat != nil {
		p.nat.Close()
	}
	if p.netns != nil {
		p.netns.Close()
	}
	if p.binder != nil {
		p.binder.Close()
	}
}

// attacher is the registry as the hand-off asks it. The hand-off is made first, so it gets the registry later.
type attacher struct{ *registry.Registry }

// lender is the binder as the hand-off knows it; likewise.
type lender struct{ *binder.Binder }

func (p *parts) features() []rpc.Feature {
	var all []rpc.Feature
	for _, f := range p.binder.Features() {
		all = append(all, rpc.Feature(f))
	}
	has, err := peercred.HasPeerPIDFD()
	all = append(all, rpc.Feature{
		Name: "network-namespaces", Available: netns.MayEnter(),
		Consequence: "Ports of containers and other network namespaces cannot be reserved: that takes CAP_SYS_ADMIN.",
	})
	return append(all, rpc.Feature{
		Name: "peer-pidfd", Available: has && err == nil,
		Consequence: "A worker that dies in the instant it attaches may be taken for another process that got its number.",
	}, rpc.Feature{
		Name: "local-reserved-ports", Available: p.local.Refused() == nil,
		Consequence: "The kernel may give a port that is only recorded, or lost, to a program that asks for any: to keep it from that " +
			"portd must write " + localports.Path + ", which takes CAP_NET_ADMIN and a writable /proc/sys.",
	})
}

// tellWeaknesses says at the start what this kernel lacks.
func tellWeaknesses(log *slog.Logger, features []rpc.Feature) {
	for _, f := range features {
		if !f.Available {
			log.Warn("the kernel, or a right of portd's, falls short", "feature", f.Name, "consequence", f.Consequence)
		}
	}
}
