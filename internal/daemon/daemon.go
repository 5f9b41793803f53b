// Package daemon is portd whole: it knows all the other packages, introduces them to one another, and starts and stops
// them in the right order.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	sd "github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sync/errgroup"

	"github.com/portd/portd/internal/binder"
	"github.com/portd/portd/internal/fdstore"
	"github.com/portd/portd/internal/handoff"
	"github.com/portd/portd/internal/ianadb"
	"github.com/portd/portd/internal/keeper"
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

// MostAcceptors is how many threads can hand over connections.
const MostAcceptors = handoff.MostAcceptors

// Config is all that can be set. The zero Config is a good one: the places of the user who runs it.
type Config struct {
	Socket   string // control socket; the hand-off socket and the lock lie beside it
	StateDir string // of the store
	Policy   string // policy file, which must be there; empty: that of the user who runs it, where there is one
	Version  string
	Log      *slog.Logger     // nil: silent
	Ready    func()           // called once everything answers; nil: nobody is told
	Reload   <-chan os.Signal // at each the policy file is read again; nil: never

	// ReadOnly serves what is whole of the state, and changes nothing there: held is what it says, callers change nothing, and there are
	// no upgrades.
	ReadOnly bool

	// NoHolder: no process shares portd's descriptors. What it has in hand when it is killed is lost then, some connections at most.
	NoHolder bool

	// Acceptors is how many threads hand over connections, MostAcceptors at most; 0: one for each four processors.
	Acceptors int

	// Args are what a successor is started with, the program's name first; nil: there are no upgrades.
	Args    []string
	Upgrade <-chan os.Signal // at each another portd takes over, as by the API; nil: never

	// Step is told how far a start or an upgrade has come; nil: nobody is. docs/ARCHITECTURE.md has the names.
	Step func(name string)
}

func (cfg Config) step(name string) {
	cfg.Log.Debug("step", "name", name, "pid", os.Getpid())
	if cfg.Step != nil {
		cfg.Step(name)
	}
}

// Run is a portd from start to stop. It returns nil when ctx has ended and everything has been put away, or when another portd has taken
// over, else why it could not start or go on. Ports close with it, unless they are kept elsewhere; programs that have a socket itself
// keep it.
func Run(ctx context.Context, cfg Config) (err error) {
	started := time.Now()
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	before, err := predecessor()
	if err != nil {
		return err
	}
	if before != nil {
		defer func() {
			if err != nil {
				_ = before.say("FAILED=1", "REASON="+err.Error()) // it may have ended itself
			}
			before.close()
		}()
	}
	standBy()
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
	if before != nil {
		cfg.step("hello")
	}
	d := &daemon{cfg: cfg, policy: policy, started: started, ballast: make([]byte, ballast)}
	d.nice, d.hurried = keeper.Hurried()
	late := time.AfterFunc(mostHurried, d.calm)
	defer late.Stop()
	if d.origin, err = begin(before, cfg.Version, cfg.Log); err != nil {
		return err
	}
	defer d.origin.close()
	if err := d.origin.check(); err != nil {
		return err
	}
	d.holding = hold(d.origin.keep, !cfg.NoHolder, cfg.Log)
	defer d.holding.close()
	if before == nil {
		d.origin.rescue(d.holding)
	} else {
		d.holders = d.origin.takeAll(ofHolder)
	}
	cfg.step("items")
	// What is opened here is closed in reverse order, by the deferred calls.
	if err := cfg.makeDirs(); err != nil {
		return err
	}
	if d.locked, err = d.origin.takeLock(paths.Lock(cfg.Socket)); err != nil {
		return err
	}
	defer d.locked.Close()
	if before == nil {
		if err := writePID(d.locked); err != nil {
			return err
		}
		cfg.removeTrials()
	}
	// To open the store and to look at what was kept takes as long, and clients wait for both.
	gathered := make(chan error, 1)
	go func() {
		var err error
		d.parts, err = cfg.gather(d.origin)
		gathered <- err
	}()
	state, err := d.openState(ctx)
	failed := <-gathered
	if err == nil {
		defer func() { err = errors.Join(err, cfg.unwritten(state.Close())) }()
	}
	served := false
	if failed == nil {
		defer func() { d.parts.close(served) }()
	}
	switch {
	case err != nil:
		return cfg.advise(err)
	case failed != nil:
		return failed
	}
	d.parts.introduce(cfg, state, settings)
	d.parts.policy = policy
	features := d.parts.features()
	tellWeaknesses(cfg.Log, features)
	if err := d.comeBack(ctx); err != nil {
		return cfg.advise(err)
	}
	control, err := d.origin.openDoor("control", "unix", cfg.Socket)
	if err != nil {
		return err
	}
	defer control.close()
	attach, err := d.origin.openDoor("handoff", "unixpacket", paths.Handoff(cfg.Socket))
	if err != nil {
		return err
	}
	defer attach.close()
	d.doors = rpc.New(rpc.Config{
		Registry: d.parts.registry,
		Workers:  workers{d.parts.pool},
		Policy:   policy.state,
		Upgrade:  d.upgrades(),
		Backups:  d.backups(),
		Custody:  d.custody,
		Log:      cfg.Log,
		Join:     d.parts.netns.Join,
		Info: rpc.Info{
			Version: cfg.Version, PID: os.Getpid(), UID: uint32(os.Geteuid()), Started: started,
			StateDir: cfg.StateDir, ControlSocket: cfg.Socket, HandoffSocket: paths.Handoff(cfg.Socket),
			Features: features, ReadOnly: d.readOnly,
		},
	})
	if before != nil {
		if err := d.takeOver(ctx); err != nil {
			return err
		}
	}
	d.life = d.origin.live(started, before != nil)
	defer d.life.close()
	served = true
	return d.serve(ctx, control, attach)
}

// A daemon is a portd that runs.
type daemon struct {
	cfg      Config
	started  time.Time
	origin   *origin
	locked   *os.File
	ballast  []byte              // until it is ready
	nice     int                 // to go back to once ports are served
	hurried  bool                // it is another one now
	store    *store              // nil where portd is read-only
	salvaged *boltstore.ReadOnly // nil where it is not
	parts    *parts
	policy   *policy
	doors    *rpc.Server
	binary   string // the program that this is, where a predecessor has said so
	holding  *holding
	life     *life
	holders  []fdstore.Item // of the predecessor

	stopping  context.Context // ends when this portd is to stop; there is one once anybody is served
	upgrading sync.Mutex
	readOnly  []string      // what is missing for being damaged, and before that why nothing can be changed; empty: it can
	restoring atomic.Bool   // the upgrade that goes on is to begin with a store that was restored
	leaving   chan struct{} // closed when another portd has taken over
	fate      error         // what this one ends with then
	left      chan struct{} // closed when nothing is open any more that was given to it
}

// ballast is what the collector takes the heap to be larger by while clients wait: it would go through what is being loaded again and again,
// on the processor that asks the kernel of the sockets. Nobody writes there, so that it is not memory.
const ballast = 32 << 20

// openStore opens the store. While it is not sure that this portd goes on, the file stays one that the portd before it reads.
func (d *daemon) openStore() (err error) {
	trial := d.origin.line != nil
	if trial {
		said, err := d.origin.line.hear(frozenFor, "STORE")
		if err != nil {
			return err
		}
		d.binary = said["BINARY"]
	}
	path := paths.Paths{State: d.cfg.StateDir}.Store()
	d.store, err = openStore(func() (*boltstore.Store, error) {
		if err := d.putBack(path); err != nil {
			return nil, err
		}
		return boltstore.Open(path, boltstore.Options{Trial: trial, Copies: copiesEvery, Log: d.cfg.Log.With("part", "store")})
	})
	if err == nil && trial {
		d.cfg.step("opened-store")
	}
	return err
}

// copiesEvery is how often a copy of the store is made beside it.
const copiesEvery = time.Hour

// comeBack brings back what the store knows, with what was kept of it, and closes whatever else was kept.
func (d *daemon) comeBack(ctx context.Context) error {
	start := d.parts.registry.Start
	if d.origin.line != nil { // the predecessor may go on with the store; see settleIn
		start = d.parts.registry.Load
	}
	if err := start(ctx); err != nil {
		return fmt.Errorf("bring back the reservations: %w", err)
	}
	d.cfg.step("loaded")
	d.holding.tells(d.parts.pool.Holder)
	if err := d.restoreWorkers(); err != nil {
		return err
	}
	d.cfg.step("workers")
	for _, ep := range d.parts.binder.Unclaimed() {
		d.cfg.Log.Info("a port that was kept and nobody has reserved is closed", "endpoint", ep)
	}
	d.origin.keep.Settle(ctx)
	d.cfg.step("unclaimed")
	return nil
}

// restoreWorkers gives the hand-off what was kept of the workers. A predecessor goes on where that is not understood.
func (d *daemon) restoreWorkers() error {
	err := d.parts.pool.Restore(d.origin.takeAll(ofHandoff))
	if err != nil && d.origin.line != nil {
		return fmt.Errorf("bring back the workers: %w", err)
	}
	if err != nil {
		d.cfg.Log.Error("workers have to attach again", "err", err)
	}
	return nil
}

// ended is a context that has.
func ended() context.Context {
	ctx, end := context.WithCancel(context.Background())
	end()
	return ctx
}

// serve runs the parts until ctx ends, one of them fails, or another portd has taken over. The doors close first; what is being answered
// then still finds the registry at work.
func (d *daemon) serve(ctx context.Context, control, attach *door) error {
	p, cfg := d.parts, d.cfg
	inner, endInner := context.WithCancel(context.WithoutCancel(ctx))
	defer endInner()
	octx, giveUp := context.WithCancelCause(ctx)
	defer giveUp(nil)
	var inside errgroup.Group
	start := func(run func(context.Context) error) {
		inside.Go(func() error {
			err := run(inner)
			if err == nil && inner.Err() == nil {
				err = errors.New("a part of portd stopped by itself")
			}
			giveUp(err) // there is no portd without it
			return err
		})
	}
	start(p.pool.Run)
	select {
	case <-p.pool.Begun(): // what the others do at the start takes processors that clients wait for
	case <-octx.Done():
	}
	d.calm()
	start(p.registry.Run)
	start(p.local.Run)
	outside, octx := errgroup.WithContext(octx)
	d.stopping = octx
	attaching, endAttaching := context.WithCancel(octx)
	defer endAttaching()
	attached := make(chan struct{})
	answering := make(chan struct{}) // closed once everything that can be said is on the disk, or nothing is to be said
	unfit := d.settleIn(ctx)
	if unfit != nil {
		giveUp(unfit)
	}
	outside.Go(func() error {
		if <-answering; octx.Err() != nil {
			return nil
		}
		return d.doors.Serve(octx, control.UnixListener)
	})
	outside.Go(func() error {
		defer close(attached)
		if <-answering; octx.Err() != nil {
			return nil
		}
		return p.pool.Serve(attaching, attach.UnixListener)
	})
	outside.Go(func() error {
		p.policy.keep(octx, cfg.Reload, d.origin.keep, p.registry)
		return nil
	})
	outside.Go(func() error {
		d.keepUpgrading(octx)
		return nil
	})
	outside.Go(func() error {
		select {
		case <-octx.Done():
			return nil
		case <-d.leaving:
		}
		// What the successor has is closed here before it answers anybody; who is being answered here may take his time.
		endAttaching()
		<-attached
		endInner()
		_ = inside.Wait()
		d.holding.close()
		p.binder.Close()
		_ = d.locked.Close()
		control.close()
		attach.close()
		d.origin.keep.Close()
		close(d.left)
		giveUp(nil)
		return nil
	})
	if unfit == nil {
		if unfit = d.synced(octx); unfit != nil {
			giveUp(unfit) // before anybody is answered
		}
	}
	close(answering)
	if octx.Err() == nil {
		d.announce()
	}
	err := errors.Join(unfit, outside.Wait())
	select {
	case <-d.leaving:
		if d.fate == nil {
			cfg.Log.Info("stopped")
		}
		return d.fate
	default:
	}
	if ctx.Err() != nil { // a keeper lets go of everything then; for a portd that failed it keeps what there is
		d.origin.keep.Notify(sd.SdNotifyStopping)
	}
	endInner()
	failed := inside.Wait()
	if errors.Is(failed, boltstore.ErrDamaged) { // of what was read last; nothing had been written
		failed = cfg.advise(failed)
	}
	err = errors.Join(err, failed)
	if ctx.Err() != nil && (err == nil || errors.Is(err, context.Canceled)) {
		cfg.Log.Info("stopped")
		return nil
	}
	return err
}

// synced returns once what was loaded is on the disk: nobody may be told before of what a power cut would undo. It also waits until all of
// the store is read, for a portd that finds damage was never ready. Ports are served meanwhile. Where ctx ends first somebody else says why.
func (d *daemon) synced(ctx context.Context) error {
	if d.store != nil { // else portd is read-only: it leaves the disk as it is
		if err := d.store.Synced(); err != nil {
			return err
		}
	}
	select {
	case <-d.parts.registry.Recalled():
	case <-ctx.Done():
	}
	return nil
}

// announce says that everything answers: in the log, to the service manager, and to whoever started it in a test.
func (d *daemon) announce() {
	cfg, st := d.cfg, d.parts.registry.Status()
	cfg.Log.Info("ready", "socket", cfg.Socket, "state", cfg.StateDir, "version", cfg.Version, "reservations", st.Reservations,
		"lost", st.Lost, "listeners", st.Listeners, "policy", d.policy.loaded(), "took", time.Since(d.started).Round(time.Millisecond).String())
	d.origin.keep.Notify(sd.SdNotifyReady)
	d.ballast = nil
	cfg.step("ready")
	if cfg.Ready != nil {
		cfg.Ready()
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
	if err := cfg.makeStateDir(); err != nil {
		return err
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

// parts are what a daemon is made of.
type parts struct {
	pool     *handoff.Pool
	binder   *binder.Binder
	pids     *pidwatch.Watcher
	local    *localports.Keeper
	netns    *netns.Host
	nat      *natrules.Host
	policy   *policy
	registry *registry.Registry // nil until introduce

	asks   *attacher
	bootID string
}

// gather makes the parts that need no store, with what was kept.
func (cfg Config) gather(o *origin) (_ *parts, err error) {
	p := &parts{asks: &attacher{}}
	defer func() {
		if err != nil {
			p.close(false)
		}
	}()
	log := func(part string) *slog.Logger { return cfg.Log.With("part", part) }
	lends := &lender{}
	bootID, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return nil, fmt.Errorf("%w: portd needs a whole /proc (proc(5)), to which hidepid may be set and subset=pid, systemd's ProcSubset=, not", err)
	}
	p.bootID = strings.TrimSpace(string(bootID))
	if p.netns, err = netns.New(p.bootID, log("netns")); err != nil {
		return nil, err
	}
	if p.pool, err = handoff.New(handoff.Config{Attacher: p.asks, Lender: lends, Doors: lends, Join: p.netns.Join, Enter: p.netns.Enter, Keep: o.keep, Log: log("handoff"), Acceptors: cfg.Acceptors}); err != nil {
		return nil, err
	}
	if err := binder.KeepBack(); err != nil {
		return nil, err
	}
	if p.binder, err = binder.New(binder.Config{
		Log: log("binder"), Observer: p.pool, Enter: p.netns.Enter, Keep: o.keep, Items: o.takeAll(ofBinder),
	}); err != nil {
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
		Record: cfg.localPorts(), BootID: p.bootID, Netns: fmt.Sprint(here),
		Log: log("localports"),
	})
	if p.nat, err = natrules.OpenHost(p.netns.Enter); err != nil {
		return nil, err
	}
	return p, nil
}

// introduce makes the registry, and lets the parts know each other.
func (p *parts) introduce(cfg Config, store registry.Store, settings registry.Settings) {
	p.registry = registry.New(registry.Config{
		Store: store, Binder: p.binder, Closings: p.binder, Processes: p.pids, Netns: p.netns, Redirects: p.nat, Services: ianadb.Embedded(), Log: cfg.Log.With("part", "registry"),
		Policy: registry.Policy{UID: uint32(os.Geteuid()), FirstUnprivileged: p.binder.FirstUnprivileged(registry.HostNetns)},
		BootID: p.bootID, Settings: settings,
		Ended: func(res *registry.Reservation, reason string) { p.pool.Released(res.ID, reason) },

		LocalPorts: p.local, ReadOnly: cfg.whyReadOnly(),
	})
	p.asks.Registry = p.registry
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

// tellWeaknesses says at the start what this kernel lacks, all on one line: for an ordinary user's portd it is the usual case, and
// portctl status says what follows.
func tellWeaknesses(log *slog.Logger, features []rpc.Feature) {
	var lacking []string
	for _, f := range features {
		if !f.Available {
			lacking = append(lacking, f.Name)
			log.Debug("the kernel, or a right of portd's, falls short", "feature", f.Name, "consequence", f.Consequence)
		}
	}
	if len(lacking) > 0 {
		log.Info("the kernel, or a right of portd's, falls short; portctl status says what follows", "features", strings.Join(lacking, ", "))
	}
}
