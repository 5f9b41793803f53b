package handoff

import (
	"time"

	"github.com/portd/portd/internal/registry"
	"github.com/portd/portd/internal/wire"
)

// PerMessage is how many connections a message carries at most.
const PerMessage = perMessage

// MostStaged is how many connections may wait in the hands of portd for their own worker.
const MostStaged = mostStaged

// MaxKnocking is how many handshakes one user may have at a time.
const MaxKnocking = maxKnocking

// SetPatience sets how long a handshake may take. It must be called before Serve.
func (p *Pool) SetPatience(d time.Duration) { p.patience = d }

// FrameSize is what a message takes.
const FrameSize = frameSize

// Waiting and Writable are what the engine asks of a queue.
var Waiting, Writable = waiting, writable

// QueuePair is a queue with room for one message: portd's end and the worker's.
func QueuePair() (ours, theirs int, err error) {
	size, err := measureFrame()
	if err != nil {
		return -1, -1, err
	}
	ours, theirs, _, err = queuePair(size, 1)
	return ours, theirs, err
}

// NoRing says why this kernel has no ring, nil where it has.
func NoRing() error {
	r, err := newRing()
	if err == nil {
		r.close()
	}
	return err
}

// SetReady makes the workers of a listener ready, as if they had said so.
func (p *Pool) SetReady(key registry.SocketKey) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range p.listeners[key].workers {
		p.change(s, wire.TypeReady)
	}
}

// Threads are the engines', that first which is told first of connections to a listener; none before all have begun.
func (p *Pool) Threads(key registry.SocketKey) (all []int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := range p.engines {
		e := p.engines[(int(p.listeners[key].sockets[0].slot)+i)%len(p.engines)]
		if !p.begun || e.tid == 0 {
			return nil
		}
		all = append(all, e.tid)
	}
	return all
}

// SkipSlots leaves out so many places for what is watched, so that another engine is the first of those that come after.
func (p *Pool) SkipSlots(n int) { p.slots = append(p.slots, make([]slot, n)...) }

// SetRecord makes the record one of size connections, a power of two. It must be called before Run.
func (p *Pool) SetRecord(size int) { p.record = newRecord(size) }

// Swept is the Seq of the last connection that a sweep has looked at.
func (p *Pool) Swept() uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.record.swept
}

// Taken is how many connections a worker has received, and whether that is known now.
func (p *Pool) Taken(worker string) (received uint64, known bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if w := p.workers[worker]; w != nil {
		_, received, known = w.page.Taken()
	}
	return received, known
}

// Crowd makes the ledger seem as full as may be, or not any more.
func (p *Pool) Crowd(on bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if on {
		p.ledger.freeHands, p.ledger.head.hands = nil, mostHands-1-keptPlaces
	} else {
		p.ledger.recount()
	}
}
