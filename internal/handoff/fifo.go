package handoff

// A fifo is a queue that allocates only while it grows.
type fifo[T any] struct {
	ring []T
	head int
	n    int
}

func (q *fifo[T]) push(v T) {
	if q.n == len(q.ring) {
		bigger := make([]T, max(8, 2*q.n))
		for i := range q.n {
			bigger[i] = q.ring[(q.head+i)%len(q.ring)]
		}
		q.ring, q.head = bigger, 0
	}
	q.ring[(q.head+q.n)%len(q.ring)] = v
	q.n++
}

func (q *fifo[T]) peek() T { return q.ring[q.head] }

// at is what peek gives after i pops.
func (q *fifo[T]) at(i int) T { return q.ring[(q.head+i)%len(q.ring)] }

// first is a pointer to what peek gives, good until the next push or pop.
func (q *fifo[T]) first() *T { return &q.ring[q.head] }

// keep leaves only what f says true of. f is called in order, for each once.
func (q *fifo[T]) keep(f func(T) bool) {
	for range q.n {
		if v := q.pop(); f(v) {
			q.push(v)
		}
	}
}

func (q *fifo[T]) pop() T {
	var zero T
	v := q.ring[q.head]
	q.ring[q.head] = zero
	q.head = (q.head + 1) % len(q.ring)
	q.n--
	return v
}
