package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	sd "github.com/coreos/go-systemd/v22/daemon"

	"github.com/portd/portd/internal/fdstore"
	"github.com/portd/portd/internal/paths"
	"github.com/portd/portd/internal/policyfile"
	"github.com/portd/portd/internal/registry"
	"github.com/portd/portd/internal/rpc"
)

// A policy is the policy file as it was last read. It outlives its errors: what was right once applies until something else
// is right.
type policy struct {
	file string // empty: there is none, for nobody knows where it would be
	must bool   // be there, for somebody said so
	log  *slog.Logger

	mu     sync.Mutex // guards status
	status rpc.PolicyStatus
}

// newPolicy finds out which file it is: the one that was said, or that of the user's place. It reads nothing.
func (cfg Config) newPolicy() (*policy, error) {
	p := &policy{file: cfg.Policy, must: cfg.Policy != "", log: cfg.Log}
	if !p.must {
		if places, err := paths.Of(os.Geteuid(), os.Getenv); err == nil {
			p.file = places.Policy
		}
	}
	if p.file != "" {
		var err error
		if p.file, err = filepath.Abs(p.file); err != nil {
			return nil, fmt.Errorf("policy file: %w", err)
		}
	}
	p.status.File = p.file
	return p, nil
}

// read reads the file. found is false where it is not there and need not be; the settings are portd's own then.
func (p *policy) read() (s registry.Settings, found bool, err error) {
	if p.file == "" {
		return s, false, nil
	}
	s, err = policyfile.Load(p.file)
	switch {
	case err == nil:
		return s, true, nil
	case errors.Is(err, fs.ErrNotExist) && !p.must:
		return registry.Settings{}, false, nil
	case errors.Is(err, fs.ErrPermission) && !p.must:
		// Of another user's home, often: a program that became another user and kept HOME.
		return s, false, fmt.Errorf("%w; say which by --policy, or set HOME to your own", err)
	}
	return s, false, err // names the file
}

// load reads the file and has its settings applied, and notes how that went.
func (p *policy) load(apply func(registry.Settings) error) error {
	s, found, err := p.read()
	if err == nil {
		err = apply(s)
	}
	now := time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	if err != nil {
		p.status.Err, p.status.Failed = err.Error(), now
		return err
	}
	p.status = rpc.PolicyStatus{File: p.file}
	if found {
		p.status.Loaded = now
	}
	return nil
}

func (p *policy) state() rpc.PolicyStatus {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.status
}

// loaded is the file that applies; empty where it is portd's own defaults.
func (p *policy) loaded() string {
	if st := p.state(); !st.Loaded.IsZero() {
		return st.File
	}
	return ""
}

// keep reads the file again at every signal, until ctx ends.
func (p *policy) keep(ctx context.Context, again <-chan os.Signal, manager *fdstore.Store, r *registry.Registry) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-again:
		}
		// What systemd wants to hear of a Type=notify-reload service (sd_notify(3)).
		manager.Notify(sd.SdNotifyReloading + "\n" + sd.SdNotifyMonotonicUsec())
		switch err := p.load(r.Apply); {
		case err != nil:
			p.log.Error("the policy is not reloaded; what was loaded before still applies", "err", err)
		case p.loaded() == "":
			p.log.Info("there is no policy file; portd's own defaults apply", "file", p.file)
		default:
			p.log.Info("policy reloaded", "file", p.file, "pools", len(r.Settings().Pools))
		}
		manager.Notify(sd.SdNotifyReady)
	}
}

// Check reads the policy file that Run would, and says in a sentence what is there. The error says all that is wrong with it,
// each with its line.
func Check(cfg Config) (string, error) {
	p, err := cfg.newPolicy()
	if err != nil {
		return "", err
	}
	s, found, err := p.read()
	switch {
	case err != nil:
		return "", err
	case p.file == "":
		return "no policy file: portd goes by its own defaults", nil
	case !found:
		return p.file + " is not there: portd goes by its own defaults", nil
	case len(s.Pools) == 1:
		return p.file + " is right, with 1 pool", nil
	}
	return fmt.Sprintf("%s is right, with %d pools", p.file, len(s.Pools)), nil
}
