// Package localports keeps reserved ports from programs that ask the kernel for any port: net.ipv4.ip_local_reserved_ports of
// portd's network namespace has the administrator's entries and portd's.
//
// The sysctl is one set of ports that everybody writes whole, and nothing in it says whose an entry is. So portd remembers
// which ones it added, before it adds them; all others are the administrator's. What it did not add it never takes away.
// docs/KERNEL.md says how the file behaves.
package localports

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/registry"
)

// lookEvery is how often the sysctl is compared with what it should be, while there is anything that it should be; and how late
// a port comes that nobody waits for.
const lookEvery = time.Second

// Config is what a Keeper is made of.
type Config struct {
	// Record is the file in which a Keeper remembers what it has added.
	Record string
	// BootID and Netns say which kernel and network namespace this is; with any other a record is worth nothing.
	BootID, Netns string
	Log           *slog.Logger // silent where nil
}

// A Keeper is a registry.LocalPorts. Run does its work.
type Keeper struct {
	cfg     Config
	refused error         // why the sysctl cannot be written
	hurry   chan struct{} // somebody waits; capacity 1
	left    atomic.Bool   // another portd has it from now on
	ended   chan struct{} // closed when Run has

	mu      sync.Mutex // guards the next four
	times   [1 << 16]uint32
	want    portSet
	changes int           // of want
	told    int           // changes that the kernel knows
	news    chan struct{} // closed and made anew when told moves

	// The rest is Run's.
	has     record  // what portd has added
	seen    string  // the sysctl when nothing was to be done,
	seenFor portSet // with this in want
	failed  string  // the last error, which is logged once
	tooLong bool    // nothing can be taken out, which is logged once
}

var _ registry.LocalPorts = (*Keeper)(nil)

// New looks what an earlier portd has left. It changes nothing.
func New(cfg Config) *Keeper {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	k := &Keeper{cfg: cfg, hurry: make(chan struct{}, 1), ended: make(chan struct{}), news: make(chan struct{})}
	s, err := open(unix.O_RDWR)
	if err != nil {
		k.refused = err
		return k
	}
	s.close()
	old, err := load(cfg.Record)
	switch {
	case err != nil:
		cfg.Log.Warn("what portd has added to a sysctl is forgotten, and taken for the administrator's", "sysctl", Path, "err", err)
	case old.boot == cfg.BootID && old.netns == cfg.Netns:
		k.has = *old
	}
	k.has.boot, k.has.netns = cfg.BootID, cfg.Netns
	return k
}

// Refused is why the sysctl cannot be written, or nil. Where it cannot, nothing is kept and nobody waits.
func (k *Keeper) Refused() error { return k.refused }

// Keep has the ports be in the sysctl, within a second.
func (k *Keeper) Keep(ports registry.PortRange) {
	k.count(ports, func(port int) (changed bool) {
		k.times[port]++
		k.want.add(port)
		return k.times[port] == 1
	})
}

// LetGo takes back one Keep.
func (k *Keeper) LetGo(ports registry.PortRange) {
	k.count(ports, func(port int) (changed bool) {
		k.times[port]--
		if k.times[port] == 0 {
			k.want.remove(port)
		}
		return k.times[port] == 0
	})
}

func (k *Keeper) count(ports registry.PortRange, one func(port int) (changed bool)) {
	k.mu.Lock()
	defer k.mu.Unlock()
	changed := false
	for port := int(ports.First); port <= int(ports.Last); port++ {
		changed = one(port) || changed
	}
	if changed {
		k.changes++
	}
}

// Settle returns when the kernel knows every Keep and LetGo before it, or it has turned out that it will not for now: then the log
// says why. The error is that ctx has ended.
func (k *Keeper) Settle(ctx context.Context) error {
	if k.refused != nil {
		return nil
	}
	k.mu.Lock()
	mine := k.changes
	for k.told < mine {
		news := k.news
		k.mu.Unlock()
		select {
		case k.hurry <- struct{}{}:
		default:
		}
		select {
		case <-news:
		case <-k.ended:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
		k.mu.Lock()
	}
	k.mu.Unlock()
	return nil
}

// Leave leaves what was added to another Keeper with the same Record, which has it already: Run does not give it back.
func (k *Keeper) Leave() { k.left.Store(true) }

// Run keeps the sysctl as it should be until ctx ends, and then gives back what was added. The error is always nil: the ports
// are reserved all the same.
func (k *Keeper) Run(ctx context.Context) error {
	defer close(k.ended)
	if k.refused != nil {
		<-ctx.Done()
		return nil
	}
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		want, changes := k.wanted()
		if err := k.settle(want); err != nil {
			k.complain(err)
		} else {
			k.failed = ""
		}
		k.tell(changes)
		select {
		case <-ctx.Done():
			if !k.left.Load() {
				k.giveBack()
			}
			return nil
		case <-k.hurry:
		case <-tick.C:
		}
	}
}

func (k *Keeper) wanted() (*portSet, int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	want := k.want
	return &want, k.changes
}

func (k *Keeper) tell(changes int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.told == changes {
		return
	}
	k.told = changes
	close(k.news)
	k.news = make(chan struct{})
}

// complain logs an error that was not there a second ago.
func (k *Keeper) complain(err error) {
	if text := err.Error(); text != k.failed {
		k.failed = text
		k.cfg.Log.Warn("a sysctl is not as it should be; portd tries again", "sysctl", Path, "err", err)
	}
}

// giveBack takes what was added out of the sysctl. What cannot be taken out is remembered for the next portd.
func (k *Keeper) giveBack() {
	err := k.settle(new(portSet))
	for tries := 20; tries > 0 && errors.Is(err, errBusy); tries-- {
		err = k.settle(new(portSet))
	}
	if err != nil {
		k.cfg.Log.Warn("portd's entries stay in a sysctl", "sysctl", Path, "ports", k.has.sure.with(&k.has.maybe).count(), "err", err)
	}
}

func (k *Keeper) save(sure, maybe *portSet) error {
	k.has.sure, k.has.maybe = *sure, *maybe
	if err := k.has.save(k.cfg.Record); err != nil {
		return fmt.Errorf("remember what portd adds to %s: %w", Path, err)
	}
	return nil
}
