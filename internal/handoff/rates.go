package handoff

import "time"

// rateSeconds is over how many whole seconds a rate is taken, besides the one that is running.
const rateSeconds = 10

// A rate counts what happens in each of the last seconds. Nothing turns it: what is older is found out when it is next used.
type rate struct {
	second int64 // of the youngest count, from a beginning that all users of it share
	counts [rateSeconds + 1]uint32
	since  time.Duration // of its first count
	begun  bool
}

// add counts n at a time since that beginning.
func (r *rate) add(now time.Duration, n int) {
	if second := int64(now / time.Second); second != r.second || !r.begun {
		r.turn(now, second)
	}
	r.counts[r.second%int64(len(r.counts))] += uint32(n)
}

func (r *rate) turn(now time.Duration, second int64) {
	if !r.begun {
		r.begun, r.since, r.second = true, now, second
	}
	if second-r.second >= int64(len(r.counts)) {
		r.second = second
		r.counts = [rateSeconds + 1]uint32{}
	}
	for r.second < second {
		r.second++
		r.counts[r.second%int64(len(r.counts))] = 0
	}
}

// lately is what was counted in the second of the last add, or in the one before it, whichever is more.
func (r *rate) lately() uint32 {
	n := int64(len(r.counts))
	return max(r.counts[r.second%n], r.counts[(r.second+n-1)%n])
}

// perSecond is the average over the last ten seconds and the part of one that has passed, or over the time since the first count where
// that is less, but for a second at least.
func (r *rate) perSecond(now time.Duration) float64 {
	if !r.begun {
		return 0
	}
	second := int64(now / time.Second)
	var n uint64
	for of := max(0, r.second-rateSeconds, second-rateSeconds); of <= r.second; of++ {
		n += uint64(r.counts[of%int64(len(r.counts))])
	}
	window := now - time.Duration(second-rateSeconds)*time.Second
	return float64(n) / max(time.Second, min(window, now-r.since)).Seconds()
}
