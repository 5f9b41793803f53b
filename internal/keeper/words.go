package keeper

import (
	"errors"
	"io"
	"time"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/fdpass"
	"github.com/portd/portd/internal/fdstore"
)

// mostAtOnce is how many messages are done until the keeper looks at what else there is. It is more than a socket holds, so that all
// is done that a dead daemon has said.
const mostAtOnce = 4096

// drain does what the daemon has said.
func (k *keeper) drain() {
	for range mostAtOnce {
		if k.conn < 0 {
			return
		}
		n, fds, err := k.receive.Recv(k.conn, k.words[:])
		switch {
		case errors.Is(err, unix.EAGAIN):
			return
		case errors.Is(err, unix.ECONNRESET): // it had not read all; what it had said is there still
			continue
		case errors.Is(err, io.EOF), err != nil && n == 0:
			if k.closed.IsZero() {
				k.closed = time.Now()
			}
			closed := k.closed
			k.closeConn()
			k.closed = closed
			return
		case errors.Is(err, fdpass.ErrFDsTruncated):
			k.log.Error("a descriptor of the daemon could not be taken; it is lost if the daemon dies (RLIMIT_NOFILE)", "kept", len(k.items))
		}
		var words fdstore.Words
		if err == nil {
			words, err = fdstore.Parse(k.words[:n])
		}
		if err == nil {
			fds = k.do(words, string(k.words[:n]), fds)
		} else {
			k.log.Error("what the daemon said is not understood", "err", err)
		}
		for _, fd := range fds {
			_ = unix.Close(fd)
		}
	}
}

// do does what one message says, and returns the descriptors that it has no use for; closing that of BARRIER=1 answers it.
func (k *keeper) do(w fdstore.Words, text string, fds []int) []int {
	switch {
	case w.Store && w.Name != "" && len(fds) == 1:
		k.drop(w.Name)
		k.items[w.Name] = fds[0]
		if k.fresh != nil {
			k.fresh[w.Name] = true
		}
		return nil
	case w.Remove:
		k.drop(w.Name)
	case w.Begin:
		k.fresh = make(map[string]bool)
	case w.End && k.fresh != nil:
		for name := range k.items {
			if !k.fresh[name] {
				k.drop(name)
			}
		}
		k.fresh = nil
	case w.Successor != 0 && len(fds) == 1:
		k.successor.close()
		k.successor = process{pid: w.Successor, pidfd: fds[0]}
		return nil
	case w.MainPID != 0 && len(fds) == 1:
		return k.becomesMain(w.MainPID, fds)
	case w.Upgrade && w.Binary != "":
		k.upgrade(w.Binary)
	case w.Binary != "":
		k.program.path = w.Binary
	case w.Ready || w.Stopping || w.Reloading || w.Status:
		k.state(w, text)
	}
	return fds
}

// becomesMain makes another process the daemon, or the same as before one that gave way.
func (k *keeper) becomesMain(pid int, fds []int) []int {
	if k.main.pid == pid {
		return fds
	}
	asked := false
	for _, p := range []*process{&k.predecessor, &k.successor} {
		if p.pid == pid {
			asked = p.asked
			p.close()
		}
	}
	k.predecessor.close()
	k.predecessor, k.main = k.main, process{pid: pid, pidfd: fds[0], asked: asked}
	if k.asked != 0 && !asked { // the one before was, when it had given everything away
		k.main.asked = true
		_ = unix.PidfdSendSignal(fds[0], k.asked, nil, 0) // ESRCH: it is dead
	}
	k.isReady()
	k.log.Debug("another process is the daemon", "pid", pid)
	return nil
}

// state notes what the daemon says of itself, and tells the service manager.
func (k *keeper) state(w fdstore.Words, text string) {
	if w.Ready && !w.Reloading {
		k.isReady()
	}
	if w.Stopping {
		k.stopping = true
		k.letGo()
	}
	k.manager.Notify(text)
}

func (k *keeper) isReady() {
	if !k.ready {
		k.since = time.Now()
	}
	if !k.down.IsZero() {
		log := k.log
		if why := k.lateReason(); why != "" {
			log = log.With("reason", why)
		}
		log.Info("the daemon is back", "pid", k.main.pid, "after", time.Since(k.down).Round(time.Millisecond).String())
	}
	k.ready, k.wasReady, k.down = true, true, time.Time{}
	k.program.works(k.main.pid)
}

// pushItems gives the daemon as much of what is kept as its socket takes.
func (k *keeper) pushItems() {
	if !k.feeding || time.Now().Before(k.feedAgain) {
		return
	}
	k.feedAgain = time.Time{}
	most := 1
	if k.same {
		most = fdstore.MaxNames
	}
	var names []string
	var fds []int
	for len(k.feed) > 0 {
		some := k.feed[:min(most, len(k.feed))]
		names, fds = names[:0], fds[:0]
		for _, name := range some {
			if fd, ok := k.items[name]; ok { // it may have been removed meanwhile
				names, fds = append(names, name), append(fds, fd)
			}
		}
		text := ""
		switch {
		case k.same:
			text = fdstore.Several(names)
		case len(names) == 1:
			text = "FDSTORE=1\nFDNAME=" + names[0]
		}
		if len(names) > 0 {
			if err := k.send.Send(k.conn, []byte(text), fds); err != nil {
				k.feedFailed(err)
				return
			}
		}
		k.feed = k.feed[len(some):]
	}
	if err := k.send.Send(k.conn, []byte("READY=1"), nil); err != nil {
		k.feedFailed(err)
		return
	}
	k.feed, k.feeding = nil, false
}

// feedFailed leaves it for later: there is no room (EAGAIN), this user has too many descriptors in messages (ETOOMANYREFS), or the daemon is
// dead, which its pidfd says too.
func (k *keeper) feedFailed(err error) {
	if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EPIPE) && !errors.Is(err, unix.ECONNRESET) {
		k.feedAgain = time.Now().Add(10 * time.Millisecond)
	}
}
