package handoff

import (
	"context"
	"log/slog"
	"time"

	"github.com/portd/portd/internal/wire"
	"golang.org/x/sys/unix"
)

// A worker is stuck when it has taken nothing for as long as its listener waits although something lies in its queue. One timer
// looks at all workers, a few times within that time, and only while something lies in the queue of one that is waited for. What was taken
// back goes to others, and a probe takes its place: that the worker takes again is told by the same edge that tells of room, so
// nobody has to ask, and a worker that waits in poll is woken by it.

const (
	looksPerWait = 8 // within the time after which a worker is stuck; it is detected up to a quarter of it late
	shortestTick = 10 * time.Millisecond
	longestTick  = time.Second
)

// progress is what the timer knows of a worker.
type progress struct {
	patience time.Duration // after which it is stuck; 0: never
	ticks    int           // for which something has been lying in its queue, with nothing taken
	taken    uint64        // the last message that it had taken then
}

// setPatience brings a worker up to date with its listeners: the shortest time of any counts, for they share the queue.
func (w *worker) setPatience() {
	w.progress.patience = 0
	for _, s := range w.serves {
		if d := s.listener.takeBackAfter; d > 0 && !s.gone && !s.socket && (w.progress.patience == 0 || d < w.progress.patience) {
			w.progress.patience = d
		}
	}
}

// setTakeBack says after which time connections of l are taken back from a worker that does not take them.
func (p *Pool) setTakeBack(l *listener, after time.Duration) {
	if l.takeBackAfter == after {
		return
	}
	l.takeBackAfter = after
	for _, s := range l.workers {
		s.worker.setPatience()
	}
	p.interval = longestTick
	for _, l := range p.listeners {
		if l.takeBackAfter > 0 {
			p.interval = min(p.interval, max(l.takeBackAfter/looksPerWait, shortestTick))
		}
	}
	if p.ticking {
		p.ticking = false
		p.startTicking()
	}
	for _, s := range l.workers {
		p.expect(s.worker)
	}
}

// expect is called when something has been sent to w.
func (p *Pool) expect(w *worker) {
	if w.progress.patience > 0 && !p.ticking {
		p.startTicking()
	}
}

func (p *Pool) startTicking() {
	if !p.ticking && p.ticker >= 0 {
		p.ticking = true
		p.setTicker(p.interval)
	}
}

func (p *Pool) setTicker(every time.Duration) {
	t := unix.NsecToTimespec(int64(every))
	// It fails for wrong arguments alone.
	_ = unix.TimerfdSettime(p.ticker, 0, &unix.ItimerSpec{Interval: t, Value: t}, nil)
}

// tick looks at all workers, and stops the timer when there is nothing to wait for.
func (p *Pool) tick() {
	var expirations [8]byte
	_, _ = unix.Read(p.ticker, expirations[:])
	again := p.emptyOrphans()
	for _, w := range p.workers {
		again = p.look(w) || again
	}
	if !again {
		p.ticking = false
		p.setTicker(0)
	}
}

// look says whether w is to be looked at again. Ticks are counted rather than time, so that a machine that was suspended, or a portd that
// was stopped, takes nobody for stuck.
func (p *Pool) look(w *worker) (again bool) {
	at := &w.progress
	if at.patience == 0 || w.stuck {
		return false
	}
	n := 0
	if w.allowed > 1 {
		n = p.queued(w)
	} else if !w.room {
		n = 1
	}
	if n == 0 {
		at.ticks = 0
		return false
	}
	if taken := w.sequence - uint64(n); taken != at.taken {
		at.taken, at.ticks = taken, 0
	}
	if at.ticks++; time.Duration(at.ticks-1)*p.interval < at.patience {
		return true
	}
	if !waiting(w.queue) { // the news of that has not been heard yet
		at.ticks = 0
		return true
	}
	return !p.unload(w, "it took nothing for "+at.patience.String())
}

// queued is how many messages lie in w's queue.
func (p *Pool) queued(w *worker) int {
	size, err := unix.IoctlGetInt(w.queue, unix.SIOCOUTQ)
	if err != nil {
		return 0
	}
	return min((size+p.truesize/2)/p.truesize, int(min(w.sequence, maxRoom)))
}

// unload takes back what lies in the queue of a worker that lives, and leaves a probe there. It says whether that is done: portd may be
// short of descriptors, and is to try again.
func (p *Pool) unload(w *worker, why string) (done bool) {
	messages, conns, whole := p.takeBack(w)
	w.takenBack += uint64(conns)
	w.page.Sent(w.sent, w.sequence)
	if messages == 0 && whole {
		w.progress.ticks = 0
		return true // it has just taken it
	}
	if !whole {
		return false
	}
	w.stuck, w.room = true, false
	for _, s := range w.serves {
		p.unstage(s)
	}
	p.checkDrained(w)
	if err := p.engines[0].out.probe(w.queue); err != nil {
		p.detach(w, redeliver, "its queue: "+err.Error())
		return true
	}
	level := slog.LevelDebug // after the first time, for it may go on like that
	if w.takenBack == uint64(conns) {
		level = slog.LevelWarn
	}
	p.log.Log(context.Background(), level, "worker does not take its connections; others get them, and it gets none until it takes again",
		"worker", w.id, "pid", w.caller.PID, "why", why, "taken_back", conns)
	return true
}

// givesBack takes back what a worker has no descriptors for. It may have some, and never enough for a whole message: so the next ones
// are smaller.
func (p *Pool) givesBack(w *worker) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !w.gone && !w.stuck {
		before := w.takenBack
		p.unload(w, "it is out of descriptors")
		w.fewer = perMessage - max(1, int(min(w.takenBack-before, perMessage))/2)
	}
}

// probe lays a message without connections into a queue.
func (o *outgoing) probe(fd int) error {
	return o.send(fd, wire.AppendProbe(o.frame[:0]), 0)
}

// livesAgain says whether w may get connections, after an event of its queue: one that is stuck has to take the probe first.
func (p *Pool) livesAgain(w *worker) bool {
	if !w.stuck {
		return true
	}
	if p.inDoubt(w) {
		p.decide(w)
	}
	if waiting(w.queue) || p.inDoubt(w) {
		return false
	}
	w.stuck, w.progress.ticks = false, 0
	p.changed()
	p.log.Debug("worker takes connections again", "worker", w.id, "pid", w.caller.PID)
	return true
}
