package handoff

import (
	"slices"

	"github.com/portd/portd/internal/registry"
)

// Who gets the next message. Workers that have room stand in a heap, by what their listener's strategy goes by, so that neither those
// without room nor their number cost anything. How many connections a worker has done with only its page says, and another processor has
// written that: with few workers all pages are read each time and the choice is exact, with many the first one's and those of
// some others in turn. What is known of the rest can only be too high, so nobody is given more than he seemed to have room for.

const (
	exact = 16 // so many pages are read for one choice
	looks = 3  // and so many where there are more workers
)

// turnOf is by how much a connection moves a worker of weight 1 back among equals. Turns wrap around.
const turnOf = 1 << 24

// A level is the workers of one priority at one listener.
type level struct {
	priority uint8
	members  int         // with room or not
	flying   int         // of them
	heap     []candidate // have room, as far as is known
	next     int         // whose page is read next
	now      uint64      // turn of the last one that was sent something
	slots    *slots      // of those that are ready, where the client's address decides
}

// A candidate is a worker in the heap. What it is compared by lies in the heap itself: thousands of workers do not fit into a cache.
type candidate struct {
	active uint64 // connections by weight, as last seen; 0 where they do not count
	turn   uint64 // among equals; the serving's own, where it stands in the heap
	*serving
}

func (c *candidate) before(o *candidate) bool {
	if c.active != o.active {
		return c.active < o.active
	}
	return int64(c.turn-o.turn) < 0
}

// active is how many connections s's worker has, as far as it says, for its weight.
func (s *serving) active() uint64 {
	w := s.worker
	return (w.sent - min(w.page.Done(), w.sent)) << 16 / uint64(s.weight)
}

// takes says whether s gets connections now.
func (s *serving) takes() bool { return s.worker.room && !s.worker.flying && s.ready() }

// pick chooses the worker for the next message: of the highest priority that has one with room.
func (l *listener) pick() *serving {
	for _, v := range l.levels {
		if s := v.pick(l.options.Strategy != registry.RoundRobin); s != nil {
			return s
		}
		if v.flying > 0 {
			return nil // it may have room when it has landed
		}
	}
	return nil
}

func (v *level) pick(byActive bool) *serving {
	for len(v.heap) > 0 {
		if byActive {
			v.refresh()
		}
		if s := v.heap[0].serving; s.takes() {
			return s
		} else if s.worker.flying {
			s.flew = true
		}
		v.remove(v.heap[0].serving)
	}
	return nil
}

// refresh reads pages.
func (v *level) refresh() {
	if len(v.heap) <= exact {
		changed := false
		for i := range v.heap {
			c := &v.heap[i]
			if a := c.serving.active(); a != c.active {
				c.active, changed = a, true
			}
		}
		if changed {
			v.order()
		}
		return
	}
	for range looks {
		if v.next++; v.next >= len(v.heap) {
			v.next = 0
		}
		v.look(v.next)
	}
	// It may have been sent something by another listener.
	for range looks {
		if first := v.heap[0].serving; v.look(0) && v.heap[0].serving == first {
			break
		}
	}
}

// look reads the page of the one at i, and says whether nothing is new.
func (v *level) look(i int) (same bool) {
	c := &v.heap[i]
	a := c.serving.active()
	if a == c.active {
		return true
	}
	c.active = a
	v.fix(i)
	return false
}

// offer says that s may get connections. It is called when that may be new.
func (l *listener) offer(s *serving) {
	v := s.level
	if !s.ready() {
		return
	}
	if v.slots != nil {
		v.slots.add(s)
	}
	if !s.worker.room || s.at >= 0 {
		return
	}
	// Who was away does not catch up on what it missed.
	if int64(v.now-s.turn) > 0 && !s.flew {
		s.turn = v.now
	}
	c := candidate{turn: s.turn, serving: s}
	if l.options.Strategy != registry.RoundRobin {
		c.active = s.active()
	}
	v.heap = append(v.heap, c)
	s.at = len(v.heap) - 1
	v.up(s.at)
}

// offer lets s get connections, where it is ready and has room.
func (p *Pool) offer(s *serving) {
	if s.level != nil {
		s.listener.offer(s)
		s.listener.expect(s)
	}
	p.enqueue(s.listener)
}

// charge counts n connections that s was sent.
func (l *listener) charge(s *serving, n int) {
	v := s.level
	if v != nil {
		v.now = s.turn
	}
	s.turn += uint64(n) * (turnOf / uint64(s.weight))
	if v == nil || s.at < 0 {
		return
	}
	if !s.worker.room {
		v.remove(s)
		return
	}
	c := &v.heap[s.at]
	c.turn = s.turn
	if l.options.Strategy != registry.RoundRobin {
		c.active = s.active()
	}
	v.fix(s.at)
}

// enter makes s one of its listener's workers.
func (l *listener) enter(s *serving) {
	l.workers = append(l.workers, s)
	at, found := slices.BinarySearchFunc(l.levels, s.priority, func(v *level, p uint8) int { return int(v.priority) - int(p) })
	if !found {
		l.levels = slices.Insert(l.levels, at, &level{priority: s.priority})
	}
	v := l.levels[at]
	v.members++
	// In the middle of its turn, so that those with much weight do not have theirs all at once.
	s.level, s.at, s.turn = v, -1, v.now+turnOf/uint64(s.weight)/2
	l.offer(s)
}

// exit undoes enter.
func (l *listener) exit(s *serving) {
	v := s.level
	if v == nil {
		return
	}
	s.level = nil
	i := slices.Index(l.workers, s)
	l.workers = slices.Delete(l.workers, i, i+1)
	if s.at >= 0 {
		v.remove(s)
	}
	if v.slots != nil {
		v.slots.remove(s)
	}
	if v.members--; v.members == 0 {
		l.levels = slices.DeleteFunc(l.levels, func(o *level) bool { return o == v })
	}
}

// rank makes the choice anew, for another strategy.
func (l *listener) rank() {
	for _, s := range l.workers {
		l.unstage(s)
	}
	for _, v := range l.levels {
		if v.slots != nil {
			v.slots.clear()
			v.slots = nil
		}
		for i := range v.heap {
			c := &v.heap[i]
			c.active = 0
			if l.options.Strategy != registry.RoundRobin {
				c.active = c.serving.active()
			}
		}
		v.order()
	}
}

// order makes a heap of what has changed.
func (v *level) order() {
	for i := (len(v.heap)+2)/children - 1; i >= 0; i-- {
		v.down(i)
	}
}

// remove takes s, which is in it, out of the heap.
func (v *level) remove(s *serving) {
	i, n := s.at, len(v.heap)-1
	last := v.heap[n]
	v.heap[n] = candidate{}
	v.heap = v.heap[:n]
	s.at = -1
	if i < n {
		v.put(i, last)
		v.fix(i)
	}
}

func (v *level) put(i int, c candidate) {
	v.heap[i] = c
	c.at = i
}

func (v *level) fix(i int) {
	if !v.up(i) {
		v.down(i)
	}
}

// children are of each place in the heap: four, since what it costs is to move from level to level.
const children = 4

func (v *level) up(i int) (moved bool) {
	c := v.heap[i]
	for i > 0 {
		parent := (i - 1) / children
		if !c.before(&v.heap[parent]) {
			break
		}
		v.put(i, v.heap[parent])
		i, moved = parent, true
	}
	if moved {
		v.put(i, c)
	}
	return moved
}

func (v *level) down(i int) {
	c := v.heap[i]
	at := i
	for {
		first := children*i + 1
		if first >= len(v.heap) {
			break
		}
		least := first
		for child := first + 1; child < min(first+children, len(v.heap)); child++ {
			if v.heap[child].before(&v.heap[least]) {
				least = child
			}
		}
		if !v.heap[least].before(&c) {
			break
		}
		v.put(i, v.heap[least])
		i = least
	}
	if i != at {
		v.put(i, c)
	}
}
