package keeper

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A program is what is started as the daemon.
type program struct {
	path     string // of the file, which may be another one by now
	args     []string
	env      []string
	oomScore string // what the daemon has; empty: the keeper's own is the same

	image   int // the file of the last daemon that was ready, open (O_PATH); -1: none
	imageOf int // its pid
}

// works notes that the program of this process becomes ready, so that it can be started when what is at the path cannot.
func (p *program) works(pid int) {
	if pid == p.imageOf {
		return
	}
	fd, err := unix.Open("/proc/"+strconv.Itoa(pid)+"/exe", unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return // not ours to look at, as that of a program with capabilities of its own (proc(5))
	}
	// Out of the way of the numbers that a child gets.
	high, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 16)
	_ = unix.Close(fd)
	if err != nil {
		return
	}
	if p.image >= 0 {
		_ = unix.Close(p.image)
	}
	p.image, p.imageOf = high, pid
}

// tries are the files to start, the likeliest first. What is at the path may be a newer one that does not work, or be gone.
func (p *program) tries(failures int) []string {
	if p.image < 0 {
		return []string{p.path}
	}
	image := "/proc/self/fd/" + strconv.Itoa(p.image)
	if failures >= 4 && failures%2 == 0 {
		return []string{image, p.path}
	}
	return []string{p.path, image}
}

// start starts a daemon, and begins to give it what is kept.
func (k *keeper) start(now time.Time) {
	err := k.startDaemon()
	if err == nil {
		return
	}
	if k.down.IsZero() {
		k.down = now
	}
	k.failures = max(k.failures+1, 2)
	k.next = now.Add(backOff(k.failures))
	k.log.Error("the daemon cannot be started", "err", err, "kept", len(k.items), "in", k.next.Sub(now).String())
}

func (k *keeper) startDaemon() error {
	ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return fmt.Errorf("socket for the daemon: %w", err)
	}
	defer unix.Close(ends[1])
	attr := &syscall.ProcAttr{
		Env:   append(k.program.env[:len(k.program.env):len(k.program.env)], EnvKeeper+"=3"),
		Files: []uintptr{0, 1, 2, uintptr(ends[1])},
	}
	hurries, nice := "", 0
	if !k.down.IsZero() && k.failures <= 1 { // one that dies again and again is in nobody's way
		var calm func()
		hurries, nice, calm = hurry()
		defer calm()
	}
	if hurries != "" {
		attr.Env = append(attr.Env, hurries)
	}
	var pid int
	var errs []error
	for _, path := range k.program.tries(k.failures) {
		if pid, err = syscall.ForkExec(path, k.program.args, attr); err == nil {
			break
		}
		errs = append(errs, fmt.Errorf("start %s: %w", path, err))
	}
	if err != nil {
		_ = unix.Close(ends[0])
		return errors.Join(errs...)
	}
	if len(errs) > 0 {
		k.log.Warn("the daemon's file cannot be started; the one that ran before is", "err", errors.Join(errs...))
	}
	if k.program.oomScore != "" {
		_ = os.WriteFile("/proc/"+strconv.Itoa(pid)+"/oom_score_adj", []byte(k.program.oomScore), 0)
	}
	// It is a child that nobody has waited for: the number is its own.
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		_ = unix.Kill(pid, unix.SIGKILL)
		_ = unix.Close(ends[0])
		return fmt.Errorf("watch the daemon: %w", err)
	}
	k.main = process{pid: pid, pidfd: pidfd}
	k.conn, k.feeding, k.feed, k.same = ends[0], true, k.feed[:0], isThis(pid)
	if hurries != "" && !k.same { // it may not know that it is to calm down
		Calm(pid, nice)
	}
	for name := range k.items {
		k.feed = append(k.feed, name)
	}
	slices.SortFunc(k.feed, earlier)
	k.introduce()
	k.pushItems() // as much as there is room for, before this thread is one among others again
	return nil
}

// isThis says whether a process runs the file that this one does. Where it cannot be known it is no.
func isThis(pid int) bool {
	that, err := os.Stat("/proc/" + strconv.Itoa(pid) + "/exe")
	if err != nil {
		return false
	}
	this, err := os.Stat("/proc/self/exe")
	return err == nil && os.SameFile(that, this)
}

// earlier orders what the daemon gets: the lock and the holders first. If the keeper dies over the rest, a holder has that too.
func earlier(a, b string) int {
	rank := func(name string) int {
		switch {
		case name == "lock":
			return 0
		case strings.HasPrefix(name, holder):
			return 1
		}
		return 2
	}
	return cmp.Or(cmp.Compare(rank(a), rank(b)), cmp.Compare(a, b))
}

// introduce sends the keeper's pidfd, by which the daemon can end a keeper that hangs.
func (k *keeper) introduce() {
	self, err := unix.PidfdOpen(os.Getpid(), 0)
	if err != nil {
		return
	}
	defer unix.Close(self)
	_ = k.send.Send(k.conn, []byte("KEEPER=1"), []int{self})
}
