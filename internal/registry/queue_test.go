package registry

import (
	"testing"
	"testing/synctest"
	"time"
)

// What a batch waits for, in time that stands still unless everybody sleeps.
func TestQueueGathers(t *testing.T) {
	const write = 2 * time.Millisecond
	for _, c := range []struct {
		name    string
		callers int             // who were answered in the last batch
		took    time.Duration   // to write it
		joining []time.Duration // when commits come, after it
		want    int             // in the batch
		at      time.Duration   // when it is taken
	}{
		{name: "one alone", callers: 1, took: write, joining: []time.Duration{0}, want: 1},
		{name: "the first of all", joining: []time.Duration{0, time.Millisecond}, want: 1},
		{name: "all are back", callers: 3, took: write, joining: []time.Duration{0, 100, 200}, want: 3, at: 200},
		{name: "one stays away", callers: 3, took: write, joining: []time.Duration{0, 100}, want: 2, at: write},
		{name: "one comes late", callers: 2, took: write, joining: []time.Duration{0, 2 * write}, want: 1, at: write},
		{name: "a slow disk", callers: 2, took: time.Minute, joining: []time.Duration{0}, want: 1, at: patience},
		{name: "nobody for a while", callers: 2, took: write, joining: []time.Duration{time.Hour, time.Hour + 1}, want: 2, at: time.Hour + 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				q, stop := newQueue(), make(chan struct{})
				q.wrote(c.callers, c.took)
				begin := time.Now()
				for _, after := range c.joining {
					time.AfterFunc(after, func() { q.add(&commit{}) })
				}
				if got, at := len(q.take(stop)), time.Since(begin); got != c.want || at != c.at {
					t.Errorf("a batch of %d after %v; want %d after %v", got, at, c.want, c.at)
				}
				time.Sleep(2 * time.Hour) // the late ones come
				q.wrote(1, 0)
				if late := len(c.joining) - c.want; late > 0 {
					if got := len(q.take(stop)); got != late {
						t.Errorf("then %d; want %d", got, late)
					}
				}
				close(stop)
				if got := q.take(stop); got != nil {
					t.Errorf("%d commits when portd stops; want none", len(got))
				}
			})
		})
	}
}

func TestQueueTakesNoMoreThanABatch(t *testing.T) {
	q := newQueue()
	for range maxBatch + 1 {
		q.add(&commit{})
	}
	for _, want := range []int{maxBatch, 1} {
		got := len(q.take(nil))
		q.wrote(got, time.Nanosecond)
		if got != want {
			t.Errorf("a batch of %d; want %d", got, want)
		}
	}
}
