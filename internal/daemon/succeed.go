package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/fdstore"
)

// A successor is killed with its predecessor (PR_SET_PDEATHSIG), which is so for the thread that began. So Run stays on it until liveOn.
func init() {
	if os.Getenv(envPredecessor) != "" {
		runtime.LockOSThread()
	}
}

// liveOn ends that this process is killed with the one that has started it.
func liveOn() error {
	if unix.Gettid() != os.Getpid() {
		return errors.New("this is not the thread that the process began with")
	}
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, 0, 0, 0, 0); err != nil {
		return err
	}
	runtime.UnlockOSThread()
	return nil
}

// takeOver makes this process the daemon: it has loaded everything, and its predecessor still works. When it returns nil the predecessor
// has stopped for good, or will, and the parts may run.
func (d *daemon) takeOver(ctx context.Context) error {
	l, keep := d.origin.line, d.origin.keep
	// What is loaded stays as it is until the predecessor has closed what it has: a port that is answered as released must be free.
	if err := d.parts.registry.Freeze(ctx); err != nil {
		return err
	}
	d.cfg.step("prepared")
	if err := l.say("PREPARED=1"); err != nil {
		return err
	}
	if err := l.wait(preparedFor); err != nil {
		return err
	}
	last, err := fdstore.Receive(l.fd)
	if err != nil {
		last.Close()
		return err
	}
	d.origin.items = append(d.origin.items, last.Items...)
	if err := d.restoreWorkers(); err != nil {
		return err
	}
	if _, err := l.hear(suspendedFor, "YOURS"); err != nil {
		return err
	}
	d.cfg.step("yours")
	// From the moment that the keeper knows, it starts another daemon when this one dies, and the predecessor never goes on.
	if err := keep.MainPID(os.Getpid()); err != nil {
		return err
	}
	keep.Unmute()
	keep.Settle(ctx)
	if err := liveOn(); err != nil {
		return fmt.Errorf("live on without the other portd: %w", err)
	}
	if err := l.say("GOOD=1"); err != nil && !errors.Is(err, unix.EPIPE) && !errors.Is(err, unix.ECONNRESET) {
		return err
	}
	d.cfg.step("good")
	return nil
}

// settleIn is called when the parts run, before anybody is served: it waits until the predecessor has closed everything.
func (d *daemon) settleIn(ctx context.Context) error {
	l := d.origin.line
	if l == nil {
		return nil
	}
	d.cfg.step("resumed")
	if _, err := l.hear(suspendedFor, "LEFT"); err != nil && !l.ended(0) {
		d.cfg.Log.Warn("the portd before this one does not end; it is killed", "err", err)
		l.kill()
		if !l.ended(time.Minute) {
			return errors.New("the portd before this one cannot be killed")
		}
	}
	d.origin.endHolders(d.holders)
	if err := writePID(d.locked); err != nil {
		d.cfg.Log.Warn("who is refused is told the wrong pid", "err", err)
	}
	d.settleStore(ctx)
	if err := d.parts.registry.Settle(); err != nil {
		return fmt.Errorf("bring back the reservations: %w", err)
	}
	if d.binary != "" {
		d.origin.keep.Binary(d.binary)
		d.origin.keep.UpgradeKeeper(d.binary)
	}
	d.parts.registry.Thaw()
	return ctx.Err()
}

// settleStore brings the store to this portd's schema. Where that fails, for want of space say, it is tried again until ctx ends.
func (d *daemon) settleStore(ctx context.Context) {
	schema, err := d.store.Settle()
	if err != nil {
		d.cfg.Log.Error("the store cannot be brought to this portd's schema; what only that has a place for is refused until it can", "err", err)
		again := time.AfterFunc(settleAgain, func() {
			if ctx.Err() == nil {
				d.settleStore(ctx)
			}
		})
		context.AfterFunc(ctx, func() { again.Stop() })
		return
	}
	d.parts.registry.Migrated(schema)
}

// settleAgain is how long after a failure the store is tried again.
const settleAgain = 10 * time.Second

// wait waits until there is something to hear.
func (l *line) wait(within time.Duration) error {
	for until := time.Now().Add(within); ; {
		left := time.Until(until)
		if left <= 0 {
			return fmt.Errorf("wait for the other portd: %w", os.ErrDeadlineExceeded)
		}
		fds := []unix.PollFd{{Fd: int32(l.fd), Events: unix.POLLIN}, {Fd: int32(l.other), Events: unix.POLLIN}}
		n, err := unix.Poll(fds, int(left.Milliseconds())+1)
		switch {
		case err != nil && err != unix.EINTR:
			return err
		case fds[0].Revents != 0 && n > 0:
			return nil
		case fds[1].Revents != 0 && n > 0:
			return errEnded
		}
	}
}
