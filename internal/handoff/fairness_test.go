package handoff_test

import (
	"fmt"
	"math"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/portd/portd/client"
	"github.com/portd/portd/internal/registry"
)

// BenchmarkFairness measures what least active does for workers that serve one connection at a time, with 32 clients at a time. Among
// four equal ones off-by is by how many percent the share of one is off at most. Then a fifth comes that takes ten times as long for each:
// p99-beside-slow is the 99th percentile of the others' clients, as a ratio of what it is without the fifth, the median of the rounds.
func BenchmarkFairness(b *testing.B) {
	const service = 500 * time.Microsecond
	h := newHost(b)
	res := h.listen("127.0.0.1")
	h.set(res, registry.HandoffOptions{Strategy: registry.LeastActive})
	var equal []*teller
	for i := range 4 {
		equal = append(equal, h.teller(res, fmt.Sprint("fast ", i), client.Wish{}, func(net.Conn) { time.Sleep(service) }))
	}
	var off, ratios []float64
	b.ResetTimer()
	for range max(9, b.N) {
		before := make([]int64, len(equal))
		for i, w := range equal {
			before[i] = w.told.Load()
		}
		alone := crowdOf(b, addrOf(res), 2000)
		worst := 0.0
		for i, w := range equal {
			share := float64(w.told.Load()-before[i]) * float64(len(equal)) / 2000
			worst = max(worst, 100*math.Abs(share-1))
		}
		off = append(off, worst)

		slow := h.teller(res, "slow", client.Wish{}, func(net.Conn) { time.Sleep(10 * service) })
		beside := crowdOf(b, addrOf(res), 2000)
		slow.Close()
		until(b, "it is gone", func() bool { return len(h.Workers()) == len(equal) })
		ratios = append(ratios, float64(p99(beside))/float64(p99(alone)))
	}
	b.ReportMetric(median(off), "off-by-%")
	b.ReportMetric(median(ratios), "p99-beside-slow")
	b.ReportMetric(0, "ns/op")
}

// crowdOf is how long so many requests took that fast workers answered.
func crowdOf(b *testing.B, to string, requests int) (took []time.Duration) {
	var mu sync.Mutex
	var clients sync.WaitGroup
	const atATime = 32
	for range atATime {
		clients.Go(func() {
			for range requests / atATime {
				start := time.Now()
				if asked(b, "", to) != "slow" {
					mu.Lock()
					took = append(took, time.Since(start))
					mu.Unlock()
				}
			}
		})
	}
	clients.Wait()
	return took
}

func p99(d []time.Duration) time.Duration {
	slices.Sort(d)
	return d[len(d)*99/100]
}
