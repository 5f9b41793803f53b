package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/fdstore"
	"github.com/portd/portd/internal/keeper"
	"github.com/portd/portd/internal/registry"
	"github.com/portd/portd/internal/rpc"
)

// How long the other one may take, each time. None of it is anything to a client of a port: connections go on being handed over until the
// last two.
const (
	helloFor     = 10 * time.Second // to start
	freezeFor    = 2 * time.Second  // for what is under way to end
	frozenFor    = 10 * time.Second // to hear of that
	preparedFor  = 15 * time.Second // to load everything, while changes wait
	suspendedFor = 5 * time.Second  // to become the daemon, while clients wait in the backlogs
)

// upgrades is how the API upgrades; nil where this portd cannot.
func (d *daemon) upgrades() func(context.Context, string) (rpc.Upgraded, error) {
	d.leaving, d.left = make(chan struct{}), make(chan struct{})
	if d.cfg.Args == nil {
		return nil
	}
	return d.upgrade
}

// keepUpgrading upgrades at every signal, until ctx ends.
func (d *daemon) keepUpgrading(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-d.cfg.Upgrade:
		}
		if _, err := d.upgrade(ctx, ""); err != nil {
			d.cfg.Log.Error("portd is not upgraded", "err", err)
		}
	}
}

// upgrade puts another portd in the place of this one, which ends after that. The error says why this one goes on.
func (d *daemon) upgrade(_ context.Context, binary string) (rpc.Upgraded, error) {
	if err := d.beginUpgrade(); err != nil {
		return rpc.Upgraded{}, err
	}
	return d.upgradeBegun(binary)
}

// beginUpgrade lets no other upgrade begin until upgradeBegun has failed.
func (d *daemon) beginUpgrade() error {
	if !d.upgrading.TryLock() {
		return fmt.Errorf("%w: an upgrade is under way", registry.ErrConflict)
	}
	return nil
}

func (d *daemon) upgradeBegun(binary string) (rpc.Upgraded, error) {
	if binary == "" {
		var err error
		if binary, err = keeper.File(); err != nil {
			d.upgrading.Unlock()
			return rpc.Upgraded{}, err
		}
	}
	u := &upgrade{daemon: d, began: time.Now(), out: rpc.Upgraded{
		OldVersion: d.cfg.Version, OldPID: os.Getpid(), Binary: binary,
	}}
	d.cfg.Log.Info("another portd is to take over", "binary", binary)
	err := u.run()
	if err == nil {
		return u.out, nil // and nobody begins another one
	}
	if u.fate != nil {
		u.cfg.Log.Error("portd ends, so that the service manager starts one", "err", err)
		return rpc.Upgraded{}, &rpc.UpgradeError{Step: u.at, Why: err.Error(), Binary: binary}
	}
	d.upgrading.Unlock()
	why := strings.ReplaceAll(err.Error(), "\n", "; ")
	d.cfg.Log.Warn("the other portd does not take over; this one goes on", "binary", binary, "step", u.at, "err", why)
	return rpc.Upgraded{}, &rpc.UpgradeError{Step: u.at, Why: why, Binary: binary}
}

// An upgrade is one attempt, as the predecessor sees it.
type upgrade struct {
	*daemon
	out   rpc.Upgraded
	at    string // what fails if something does
	began time.Time

	line      *line
	keeper    int // which one it is that hears of the successor: see fdstore.Store.Keeper
	frozen    time.Time
	suspended time.Time
	undo      []func() error // in reverse order
	quit      func() bool    // ends that the successor is killed when this portd is told to stop
}

// run returns nil once the successor is the daemon, and nothing of what it has is open here.
func (u *upgrade) run() (err error) {
	// The successor gets a signal when this thread ends (PR_SET_PDEATHSIG), so it must not before.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	for _, s := range []struct {
		name string
		do   func() error
	}{
		{"prove", u.prove},
		{"hello", u.start},
		{"frozen", u.freeze},
		{"closed-store", u.closeStore},
		{"given", u.give},
		{"prepared", u.prepared},
		{"suspended", u.suspend},
		{"yours", u.yours},
		{"good", u.good},
	} {
		u.at = s.name
		if err = s.do(); err == nil && s.name != "good" {
			err = u.stopping.Err()
		}
		if err != nil {
			return u.goOn(err)
		}
		u.cfg.step(s.name)
	}
	return u.leave()
}

// goOn takes everything back, and returns why. It returns nil where the successor turns out to be the daemon already.
func (u *upgrade) goOn(why error) error {
	if u.line != nil {
		u.stay()
		u.line.kill()
		u.line.ended(time.Minute) // the kernel is done with it then, and what it had is closed
		if u.at == "good" || u.at == "yours" {
			// Its last word may have come late. If so it was the daemon, and what comes after its death is the keeper's to do.
			if _, err := u.line.hear(0, "GOOD"); err == nil {
				return u.leave()
			}
		}
		if u.at == "good" && u.origin.keep.Managed() {
			// Nobody can tell which of the two the service manager takes for the daemon: if it is the other, it is starting a third by now.
			// Either way the end of this one leads to one daemon, which finds all that it kept.
			u.fate = fmt.Errorf("the successor died when the service manager may have known it as the daemon already: %w", why)
			_ = u.leave()
			return u.fate
		}
	}
	errs := []error{why}
	for _, undo := range slices.Backward(u.undo) {
		if err := undo(); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// stay ends what quit is for.
func (u *upgrade) stay() {
	if u.quit != nil {
		u.quit()
	}
}

// undone notes what takes a step back.
func (u *upgrade) undone(f func() error) { u.undo = append(u.undo, f) }

// start starts the successor, and waits until it has initialised itself.
func (u *upgrade) start() error {
	ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer unix.Close(ends[1])
	u.line = &line{fd: ends[0], other: -1}
	u.undone(func() error { u.line.close(); return nil })
	attr := &syscall.ProcAttr{
		Env:   append(os.Environ(), envPredecessor+"=3"),
		Files: []uintptr{0, 1, 2, uintptr(ends[1])},
		// Until the keeper knows that it is the daemon: there must not be two.
		Sys: &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL},
	}
	pid, err := syscall.ForkExec(u.out.Binary, u.cfg.Args, attr)
	if err != nil {
		u.line.close()
		u.line = nil
		u.undo = nil
		return fmt.Errorf("%s: %w", u.out.Binary, err)
	}
	u.out.NewPID = pid
	// Nobody has waited for it yet, so the number is its own.
	if u.line.other, err = unix.PidfdOpen(pid, 0); err == nil {
		u.quit = context.AfterFunc(u.stopping, u.line.kill)
	}
	go func() {
		var status unix.WaitStatus
		for {
			if _, err := unix.Wait4(pid, &status, 0, nil); err != unix.EINTR {
				return
			}
		}
	}()
	if err != nil {
		_ = unix.Kill(pid, unix.SIGKILL)
		return err
	}
	u.keeper, _ = u.origin.keep.Keeper()
	if err := u.origin.keep.Successor(pid); err != nil {
		return err
	}
	said, err := u.line.hear(helloFor, "HELLO")
	if err != nil {
		return err
	}
	u.out.NewVersion = said["VERSION"]
	if said["PROTOCOL"] != protocol {
		return fmt.Errorf("portd %s takes over by protocol %q, and this one, %s, gives by %s: stop this one and start that one",
			u.out.NewVersion, said["PROTOCOL"], u.cfg.Version, protocol)
	}
	return nil
}

// freeze lets what changes something come to its end, and nothing new begin.
func (u *upgrade) freeze() error {
	ctx, cancel := context.WithTimeout(context.Background(), freezeFor)
	defer cancel()
	u.frozen = time.Now()
	if err := u.parts.registry.Freeze(ctx); err != nil {
		return fmt.Errorf("changes that are under way do not come to an end: %w", err)
	}
	u.undone(func() error { u.parts.registry.Thaw(); return nil })
	u.undone(func() error { u.parts.pool.Thaw(); return nil })
	if err := u.parts.pool.Freeze(ctx); err != nil {
		return fmt.Errorf("workers that attach do not come to an end: %w", err)
	}
	return u.parts.local.Settle(ctx)
}

func (u *upgrade) closeStore() error {
	u.undone(func() error {
		if err := u.store.reopen(); err != nil {
			u.cfg.Log.Error("the store cannot be opened again; changes are refused until it can", "err", err)
			return fmt.Errorf("the store cannot be opened again: %w", err)
		}
		return nil
	})
	return u.store.Close()
}

// give sends everything that is kept, and says that the store is free.
func (u *upgrade) give() error {
	keep := u.origin.keep
	keep.Mute() // what changes from now on is said by the one of the two that goes on
	u.undone(func() error { keep.Unmute(); return nil })
	if err := u.sameKeeper(); err != nil {
		return err
	}
	if err := keep.Give(u.line.fd); err != nil {
		return err
	}
	return u.line.say("STORE=1", "BINARY="+u.out.Binary)
}

func (u *upgrade) prepared() error {
	_, err := u.line.hear(preparedFor, "PREPARED")
	return err
}

// suspend stops what the successor is to begin, and gives it what is in hand.
func (u *upgrade) suspend() error {
	ctx, cancel := context.WithTimeout(context.Background(), freezeFor)
	defer cancel()
	u.suspended = time.Now()
	u.doors.Hold()
	u.undone(func() error { u.doors.Release(); return nil })
	items, err := u.parts.pool.Suspend(ctx)
	if err != nil {
		return fmt.Errorf("the hand-off does not come to rest: %w", err)
	}
	u.undone(func() error { u.parts.pool.Resume(); return nil })
	if err := fdstore.GiveItems(u.line.fd, items); err != nil {
		return err
	}
	return fdstore.GiveEnd(u.line.fd)
}

// sameKeeper says whether the keeper is there that was there when the successor started. Another one takes this portd for the daemon whatever
// a successor says that has been given no way to it, and would start a third when this one leaves.
func (u *upgrade) sameKeeper() error {
	if n, there := u.origin.keep.Keeper(); n != u.keeper || n > 0 && !there {
		return errors.New("portd's keeper ended meanwhile: try again")
	}
	return nil
}

// yours makes the successor the daemon, if it still can be. A keeper that ends from now on does not hear it say so.
func (u *upgrade) yours() error {
	if err := u.sameKeeper(); err != nil {
		return err
	}
	return u.line.say("YOURS=1")
}

// good waits until the successor is the daemon. Where it does not become it, the keeper is told who is.
func (u *upgrade) good() error {
	u.undone(func() error {
		err := u.origin.keep.MainPID(os.Getpid())
		u.origin.keep.Restate()
		return err
	})
	_, err := u.line.hear(suspendedFor, "GOOD")
	return err
}

// leave closes all that the successor has, and says so. It does not fail: there is no way back.
func (u *upgrade) leave() error {
	u.stay()
	u.out.Pause = time.Since(u.suspended)
	u.parts.registry.Retire()
	ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
	defer cancel()
	u.doors.Finish(ctx)
	u.parts.local.Leave()
	u.parts.pool.Abandon()
	close(u.leaving)
	<-u.left
	_ = u.line.say("LEFT=1") // it sees that it is alone by our end, too
	u.line.close()
	u.out.Frozen, u.out.Took = time.Since(u.frozen), time.Since(u.began)
	u.cfg.step("left")
	if u.fate != nil {
		return u.fate
	}
	u.cfg.Log.Info("another portd has taken over", "pid", u.out.NewPID, "version", u.out.NewVersion, "pause", u.out.Pause.String(),
		"frozen", u.out.Frozen.String(), "took", u.out.Took.String())
	return nil
}
