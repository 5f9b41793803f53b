package daemon

import (
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/fdstore"
	"github.com/portd/portd/internal/handoff"
	"github.com/portd/portd/internal/holder"
)

// holding is the process that keeps open what this one has when it is killed, until a successor has taken what it wants: see
// package holder. It is replaced when it ends by itself.
type holding struct {
	keep *fdstore.Store
	log  *slog.Logger
	stop chan struct{}
	done chan struct{} // closed when nobody replaces it any more

	mu   sync.Mutex
	now  *holder.Holder // nil: there is none
	tell func(pid int)  // of each new one; nil: nobody is told yet
}

// One that has lived long is replaced at once, one after the other that has not after longer and longer pauses.
const (
	livedLong    = time.Second
	firstPause   = 100 * time.Millisecond
	longestPause = time.Minute
)

// hold starts a holder. Where there is none, or none is wanted, what is between accept and hand-over is lost if portd is killed.
func hold(keep *fdstore.Store, wanted bool, log *slog.Logger) *holding {
	h := &holding{keep: keep, log: log, stop: make(chan struct{}), done: make(chan struct{})}
	if wanted && !keep.Kept() {
		log.Warn("nobody keeps what portd has: its ports close if it dies, and connections that it has in hand are lost")
	}
	if !wanted || !keep.Kept() { // nobody would ask it
		close(h.done)
		return h
	}
	h.start()
	go h.replace()
	return h
}

func (h *holding) start() {
	now, err := holder.Start()
	if err != nil {
		h.log.Warn("connections that portd has in hand would be lost if it were killed", "err", err)
		return
	}
	h.keep.Put(now.Name(), now.Socket())
	h.mu.Lock()
	defer h.mu.Unlock()
	h.now = now
	if h.tell != nil {
		h.tell(now.PID())
	}
}

// replace starts another one when the one that there is ends, or where there is none.
func (h *holding) replace() {
	defer close(h.done)
	pause := time.Duration(0)
	for {
		h.mu.Lock()
		now := h.now
		h.mu.Unlock()
		began := time.Now()
		if now != nil { // else it could not be started, and is after the pause
			select {
			case <-now.Gone():
			case <-h.stop:
				return
			}
			h.log.Warn("the process that shares portd's descriptors has ended; another one is started", "pid", now.PID())
			h.forget()
		}
		if pause = min(max(2*pause, firstPause), longestPause); time.Since(began) > livedLong {
			pause = 0
		}
		select {
		case <-time.After(pause):
		case <-h.stop:
			return
		}
		h.start()
	}
}

// forget puts away what there is of one.
func (h *holding) forget() {
	h.mu.Lock()
	now := h.now
	h.now = nil
	h.mu.Unlock()
	if now == nil {
		return
	}
	h.keep.Remove(now.Name())
	if err := now.Close(); err != nil {
		h.log.Error("the process that shares portd's descriptors does not end", "err", err)
	}
}

// pid is the one that there is; 0: none.
func (h *holding) pid() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.now == nil {
		return 0
	}
	return h.now.PID()
}

// tells has f told which process it is, and which each later one is; 0: there is none.
func (h *holding) tells(f func(pid int)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.tell = f
	pid := 0
	if h.now != nil {
		pid = h.now.PID()
	}
	f(pid)
}

// close ends it. What this process has is its own again.
func (h *holding) close() {
	h.mu.Lock()
	select {
	case <-h.stop:
	default:
		close(h.stop)
	}
	h.mu.Unlock()
	<-h.done
	h.forget()
}

// rescue takes over what a daemon that was killed had in hand, and ends its holder. It comes before the lock and the store are opened: they
// are open, and locked, in the dead one's table.
func (o *origin) rescue(h *holding) {
	mine := 0
	if h.now != nil {
		mine = h.now.PID()
	}
	o.items = append(o.items, handoff.Rescue(o.items, mine, o.log.With("part", "handoff"))...)
	for _, it := range o.takeAll(ofHolder) {
		o.keep.Remove(it.Name)
		_ = unix.Close(it.FD)
	}
}

// endHolders ends those of daemons that have left. They have ended mostly.
func (o *origin) endHolders(all []fdstore.Item) {
	for _, it := range all {
		o.keep.Remove(it.Name)
		if rest, err := holder.Open(it.Name, it.FD); err == nil {
			if err := rest.Close(); err != nil {
				o.log.Error("what the portd before this one had stays open", "err", err)
			}
		}
	}
}

func ofHolder(name string) bool { return holder.PIDOf(name) != 0 }
