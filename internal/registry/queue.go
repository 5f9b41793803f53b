package registry

import (
	"sync"
	"time"
)

// patience is the longest that a batch waits for others to join.
const patience = 5 * time.Millisecond

// A queue is the commits that wait to be written. The zero queue is not ready: newQueue makes one.
type queue struct {
	mu      sync.Mutex
	waiting []*commit
	want    int           // say enough when so many wait; 0: nobody asks
	enough  chan struct{} // has room for one

	// Of the last batch. Who was answered then comes back at once, when the processor is his, as does who joined meanwhile.
	callers int
	took    time.Duration
}

func newQueue() *queue { return &queue{enough: make(chan struct{}, 1)} }

func (q *queue) add(c *commit) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.waiting = append(q.waiting, c)
	if q.want > 0 && len(q.waiting) >= q.want {
		q.want = 0
		q.enough <- struct{}{}
	}
}

// take waits for the next batch; nil when portd stops. A batch waits for as many as there were callers a moment ago, for as
// long at most as the last one took to write: otherwise the first to be back would be written alone while all others wait, and
// half of the syncs would be for one commit each. Who is alone never waits.
func (q *queue) take(stop <-chan struct{}) []*commit {
	if !q.atLeast(1, nil, stop) || closed(stop) {
		return nil
	}
	if q.callers > 1 {
		late := time.NewTimer(min(q.took, patience))
		q.atLeast(min(q.callers, maxBatch), late.C, stop)
		late.Stop()
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	n := min(len(q.waiting), maxBatch)
	batch := q.waiting[:n:n]
	q.waiting = append([]*commit(nil), q.waiting[n:]...)
	return batch
}

// atLeast waits until so many wait, and says whether they do.
func (q *queue) atLeast(n int, late <-chan time.Time, stop <-chan struct{}) bool {
	q.mu.Lock()
	if len(q.waiting) >= n {
		q.mu.Unlock()
		return true
	}
	q.want = n
	q.mu.Unlock()
	select {
	case <-q.enough:
		return true
	case <-late:
	case <-stop:
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.want == 0 { // it was said meanwhile
		<-q.enough
	}
	q.want = 0
	return false
}

// wrote is called after a batch of n has been answered, which took so long to write.
func (q *queue) wrote(n int, took time.Duration) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.callers, q.took = n+len(q.waiting), took
}

func closed(ch <-chan struct{}) bool {
	select {
	case <-ch:
		return true
	default:
		return false
	}
}
