// Package keeper is the small process that keeps the daemon's descriptors while the daemon is down, and starts it again.
//
// The daemon tells it what to keep, in the words of package fdstore, over a socket that it was started with. A keeper knows names and
// descriptors and nothing of what they are; it does nothing while the daemon works. All of it is one goroutine that waits in poll(2).
package keeper

import (
	"fmt"
	"log/slog"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/fdpass"
	"github.com/portd/portd/internal/fdstore"
)

const (
	// orphaned is how long a daemon may live on that has closed its socket: it has another keeper then. One that has failed closes it
	// before it waits for who reads its log (farewell).
	orphaned = 5 * farewell
	// hopeless is how long a daemon may be down until clients, whose connections its holder has, are not left hanging any more.
	hopeless = 10 * time.Second
	// stillborn is how many daemons may be killed before any has been ready. One that ends by itself then is the last.
	stillborn = 5
	// holder begins the names of items whose closing ends a process that keeps a dead daemon's connections.
	holder = "holder"
)

// A process is one that is watched. Its pidfd is the keeper's.
type process struct {
	pid, pidfd int
	status     *unix.WaitStatus // nil: it lives, or is not the keeper's to wait for
	asked      bool             // to stop
}

func (p *process) close() {
	if p.pidfd >= 0 {
		_ = unix.Close(p.pidfd)
	}
	*p = process{pidfd: -1}
}

// A keeper is what there is of it.
type keeper struct {
	log     *slog.Logger
	program program
	manager *fdstore.Store // what the service manager is told by; keeps nothing

	items map[string]int
	fresh map[string]bool // between RESET=1 and RESET=0: what was stored anew

	conn      int       // socket to the daemon, -1 where there is none
	closed    time.Time // when the daemon closed it; zero: it has not
	feed      []string  // what the daemon is still to get, and then READY=1
	same      bool      // the daemon is this very program: it understands what this release says
	feeding   bool
	feedAgain time.Time // when to try again what the kernel would not pass; zero: it says when

	main        process
	predecessor process // was main, and has not left yet
	successor   process // may become main
	late        process // the last that died, whose parent had not waited for it yet; only its pidfd counts
	alone       bool    // main is dead, and nothing is started before the two others are

	ready    bool      // the daemon has said so
	wasReady bool      // some daemon has
	since    time.Time // when the daemon became ready
	failures int       // how many daemons in a row have ended too early
	down     time.Time // since when there has been none that is ready; zero: there is one
	next     time.Time // when to start one; zero: one runs

	asked     unix.Signal // to stop, by this; 0: not asked
	stopping  bool        // the daemon says that it does
	dismissed bool        // the daemon has another keeper

	signals int // what came, a byte each
	send    fdpass.Sender
	receive fdpass.Receiver
	words   [4096]byte
}

// run goes on until the daemon has stopped as it was asked to, and returns its exit code.
func (k *keeper) run() int {
	for {
		k.reap()
		k.drain() // also what a daemon said that has died since
		k.pushItems()
		if code, ended := k.look(time.Now()); ended {
			return code
		}
		if k.main.pid == 0 && k.asked != 0 { // it was down
			return 0
		}
		k.wait()
	}
}

// wait sleeps until there is something to do.
func (k *keeper) wait() {
	fds := []unix.PollFd{{Fd: int32(k.signals), Events: unix.POLLIN}}
	if k.conn >= 0 {
		events := int16(unix.POLLIN)
		if k.feeding && k.feedAgain.IsZero() {
			events |= unix.POLLOUT
		}
		fds = append(fds, unix.PollFd{Fd: int32(k.conn), Events: events})
	}
	for _, p := range k.processes() {
		if p.pid != 0 && (p != &k.main || !k.alone) {
			fds = append(fds, unix.PollFd{Fd: int32(p.pidfd), Events: unix.POLLIN})
		}
	}
	timeout := -1
	if left, any := k.until(time.Now()); any {
		timeout = int(max(0, left).Milliseconds()) + 1
	}
	_, _ = unix.Poll(fds, timeout) // EINTR is a reason to look too
	k.hear()
}

// hear does what signals ask for that have come.
func (k *keeper) hear() {
	var sigs [64]byte
	n, _ := unix.Read(k.signals, sigs[:])
	for i := range max(n, 0) {
		k.signalled(unix.Signal(sigs[i]))
	}
}

func (k *keeper) processes() []*process {
	return []*process{&k.main, &k.predecessor, &k.successor}
}

// until is when the next thing is due that nobody tells of.
func (k *keeper) until(now time.Time) (left time.Duration, any bool) {
	for _, at := range [...]time.Time{
		k.next, after(k.closed, orphaned), k.dropsHolder(), k.feedAgain,
	} {
		if !at.IsZero() && (!any || at.Sub(now) < left) {
			left, any = at.Sub(now), true
		}
	}
	return left, any
}

func after(t time.Time, d time.Duration) time.Time {
	if t.IsZero() {
		return t
	}
	return t.Add(d)
}

// dropsHolder is when to close the holders; zero: never, or there is none.
func (k *keeper) dropsHolder() time.Time {
	for name := range k.items {
		if strings.HasPrefix(name, holder) {
			return after(k.down, hopeless)
		}
	}
	return time.Time{}
}

// look does what is due, and says whether that was the end.
func (k *keeper) look(now time.Time) (code int, ended bool) {
	for _, p := range k.processes() {
		if p != &k.main && p.pid != 0 && p.gone() {
			p.close()
		}
	}
	if k.main.pid != 0 && (k.alone || k.main.gone()) {
		if code, ended := k.died(now); ended {
			return code, true
		}
	}
	if at := after(k.closed, orphaned); !at.IsZero() && now.After(at) && k.main.pid != 0 {
		k.closed, k.dismissed = time.Time{}, true
		k.log.Warn("the daemon has another keeper; this one lets go of everything", "kept", len(k.items))
		k.letGo()
	}
	if at := k.dropsHolder(); !at.IsZero() && now.After(at) {
		k.log.Warn("connections that the daemon had in hand are given up, so that their clients do not hang", "down", now.Sub(k.down).String())
		for name := range k.items {
			if strings.HasPrefix(name, holder) {
				k.drop(name)
			}
		}
	}
	if !k.next.IsZero() && !now.Before(k.next) {
		k.next = time.Time{}
		k.start(now)
	}
	return 0, false
}

// gone says whether the process has ended, reaped or not.
func (p *process) gone() bool {
	if p.status != nil {
		return true
	}
	fds := []unix.PollFd{{Fd: int32(p.pidfd), Events: unix.POLLIN}}
	n, err := unix.Poll(fds, 0)
	return err == nil && n > 0 && fds[0].Revents != 0
}

// died decides what becomes of a daemon's end.
func (k *keeper) died(now time.Time) (code int, ended bool) {
	pid := k.main.pid
	k.reap() // its status, where it is ours to ask for
	k.drain()
	if k.main.pid != pid { // the last that it said was another one's pid
		return 0, false
	}
	status := k.main.status
	if status == nil {
		status = exitStatus(k.main.pidfd)
	}
	// Two daemons at a time would take each other's connections: who is left over of an upgrade goes first.
	for _, p := range k.processes() {
		if p != &k.main && p.pid != 0 {
			if !k.alone {
				k.log.Warn("the daemon has died in an upgrade; the other one is killed", "pid", pid, "other", p.pid)
			}
			_ = unix.PidfdSendSignal(p.pidfd, unix.SIGKILL, nil, 0)
		}
	}
	if k.alone = k.predecessor.pid != 0 || k.successor.pid != 0; k.alone {
		return 0, false
	}
	k.late.close()
	if status == nil {
		k.late, k.main.pidfd = k.main, -1 // to ask again
	}
	k.main.close()
	k.closeConn()
	if status != nil && status.Signaled() && status.Signal() == k.asked { // it was too young to hear it
		return 0, true
	}
	wanted := k.dismissed || k.asked != 0 || k.stopping || (status != nil && status.Exited() && status.ExitStatus() == 0)
	switch {
	case wanted:
		return exitCode(status), true
	case !k.wasReady && status != nil && status.Exited(): // it has said why
		return exitCode(status), true
	case !k.wasReady && k.failures+1 == stillborn: // whoever starts portd is waiting to hear whether it runs
		k.log.Error("the daemon has died each time before it was ready for the first time; portd ends", "times", stillborn, "pid", pid, "reason", reason(status))
		return max(exitCode(status), 1), true
	}
	lived := now.Sub(k.since)
	switch {
	case k.ready && (lived >= time.Second || status == nil || status.Signaled() && status.Signal() == unix.SIGKILL):
		k.failures = 1
	default:
		k.failures++
	}
	if k.down.IsZero() {
		k.down = now
	}
	k.ready, k.stopping = false, false
	pause := backOff(k.failures)
	k.next = now.Add(pause)
	k.log.Error("the daemon has died; it is started again", "pid", pid, "reason", reason(status), "kept", len(k.items), "in", pause.String())
	return 0, false
}

// backOff is how long to wait after so many daemons that ended too early: not at all after one, which is an accident, then longer and
// longer.
func backOff(failures int) time.Duration {
	if failures <= 1 {
		return 0
	}
	return min(10*time.Millisecond<<min(failures-2, 20), 10*time.Second)
}

func reason(status *unix.WaitStatus) string {
	switch {
	case status == nil:
		return "not known: it was another process's child"
	case status.Signaled() && status.CoreDump():
		return fmt.Sprintf("signal %d (%v), core dumped", int(status.Signal()), status.Signal())
	case status.Signaled():
		return fmt.Sprintf("signal %d (%v)", int(status.Signal()), status.Signal())
	}
	return fmt.Sprintf("exit code %d", status.ExitStatus())
}

// lateReason is what is known by now of the end of a daemon that was another process's child; empty: nothing.
func (k *keeper) lateReason() string {
	if k.late.pidfd < 0 {
		return ""
	}
	defer k.late.close()
	if status := exitStatus(k.late.pidfd); status != nil {
		return reason(status)
	}
	return ""
}

// exitCode is what a shell makes of it.
func exitCode(status *unix.WaitStatus) int {
	switch {
	case status == nil:
		return 0
	case status.Signaled():
		return 128 + int(status.Signal())
	}
	return status.ExitStatus()
}

// reap takes the status of every child that has ended: of the daemon, and of orphans, which are the keeper's as a subreaper, or as
// process 1 of a container.
func (k *keeper) reap() {
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, unix.WNOHANG, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil || pid <= 0 {
			return
		}
		for _, p := range k.processes() {
			if p.pid == pid {
				p.status = &status
			}
		}
	}
}

// signalled passes a signal on. The second that asks to stop ends the daemon at once.
func (k *keeper) signalled(sig unix.Signal) {
	switch sig {
	case unix.SIGCHLD:
		return
	case unix.SIGTERM, unix.SIGINT:
		if k.asked != 0 {
			k.log.Warn("asked to stop twice: the daemon is killed")
			sig = unix.SIGKILL
		} else {
			k.asked = sig
		}
		k.main.asked = true
	}
	if k.main.pid == 0 { // it is down
		if k.asked != 0 {
			k.next = time.Time{}
		}
		return
	}
	if err := unix.PidfdSendSignal(k.main.pidfd, sig, nil, 0); err != nil && err != unix.ESRCH {
		k.log.Error("the daemon cannot be signalled", "signal", sig.String(), "err", err)
	}
}

// drop lets go of an item.
func (k *keeper) drop(name string) {
	if fd, ok := k.items[name]; ok {
		_ = unix.Close(fd)
		delete(k.items, name)
	}
}

func (k *keeper) letGo() {
	for name := range k.items {
		k.drop(name)
	}
}

func (k *keeper) closeConn() {
	if k.conn >= 0 {
		_ = unix.Close(k.conn)
	}
	k.conn, k.closed, k.feed, k.feeding, k.feedAgain, k.fresh = -1, time.Time{}, nil, false, time.Time{}, nil
}
