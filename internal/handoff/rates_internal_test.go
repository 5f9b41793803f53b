package handoff

import (
	"math"
	"net"
	"testing"
	"time"

	"github.com/portd/portd/internal/registry"
	"github.com/portd/portd/internal/wire"
)

func TestRate(t *testing.T) {
	type event struct {
		at time.Duration
		n  int
	}
	every := func(step time.Duration, n int, from, to time.Duration) (all []event) {
		for at := from; at < to; at += step {
			all = append(all, event{at, n})
		}
		return all
	}
	const s = time.Second
	for _, tt := range []struct {
		name   string
		events []event
		at     time.Duration
		want   float64
	}{
		{"nothing", nil, 5 * s, 0},
		{"the first", []event{{7 * s, 4}}, 7 * s, 4},
		{"young", every(s/10, 1, 100*s, 105*s), 105 * s, 10},
		{"steady", every(s/10, 2, 0, 60*s), 60 * s, 20},
		{"steady, within a second", every(s/10, 2, 0, 60*s+s/2), 60*s + s/2, 20},
		{"ended", every(s/10, 1, 0, 20*s), 25 * s, 5},
		{"long ended", every(s/10, 1, 0, 20*s), 31 * s, 0},
		{"ended and begun anew", append(every(s/10, 1, 0, 20*s), event{1000 * s, 50}), 1000 * s, 5},
		{"a gap within", append(every(s, 10, 0, 3*s), every(s, 10, 8*s, 10*s)...), 10 * s, 5},
	} {
		var r rate
		for _, e := range tt.events {
			r.add(e.at, e.n)
		}
		if got := r.perSecond(tt.at); math.Abs(got-tt.want) > 0.001 {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
}

// Of a quiet listener every message is sampled, of a busy one one in 64, and of one that becomes busy few more.
func TestSampler(t *testing.T) {
	for _, tt := range []struct{ perSecond, seconds, least, most int }{
		{10, 30, 300, 300},
		{255, 10, 2550, 2550},
		{20_000, 10, 20_000 * 10 / 64, 20_000*10/64 + 1100},
	} {
		var s sampler
		var r rate
		n := 0
		for i := range tt.perSecond * tt.seconds {
			r.add(time.Duration(i)*time.Second/time.Duration(tt.perSecond), 1)
			if s.due(&r) {
				n++
			}
		}
		if n < tt.least || n > tt.most {
			t.Errorf("%d of %d a second for %d s, want %d to %d", n, tt.perSecond, tt.seconds, tt.least, tt.most)
		}
	}
}

func TestHistogram(t *testing.T) {
	var h histogram
	for d, bucket := range map[time.Duration]int{
		0: 0, time.Millisecond: 0, time.Millisecond + 1: 1, 10 * time.Millisecond: 3, 10 * time.Second: 12, time.Minute: 13,
	} {
		want := h
		h.add(d)
		want[bucket]++
		if h != want {
			t.Errorf("%v: %v, want %v", d, h, want)
		}
	}
	buckets := h.buckets()
	if n := len(buckets); n != 14 || buckets[0].AtMost != time.Millisecond || buckets[12].AtMost != 10*time.Second || buckets[13].AtMost != 0 {
		t.Errorf("%v", buckets)
	}
}

// BenchmarkCount is what it takes to count and record one message of four connections, but for the clock.
func BenchmarkCount(b *testing.B) {
	r, l, w, e := newRecord(recordSize), &listener{}, &worker{}, &registry.Endpoint{}
	conns := make([]wire.Connection, perMessage)
	sampled := 0
	now := time.Duration(0)
	for b.Loop() {
		now += 100 * time.Microsecond
		l.rate.add(now, len(conns))
		w.rate.add(now, len(conns))
		for i := range conns {
			r.add(e, l, w, &conns[i])
		}
		r.due()
		if l.sampler.due(&l.rate) {
			sampled++
		}
		if r.asked {
			<-r.sweep
			r.swept, r.asked = r.n, false
		}
	}
	b.ReportMetric(float64(sampled)/float64(b.N), "sampled/op")
}

// BenchmarkWaited is what it takes to sample one.
func BenchmarkWaited(b *testing.B) {
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer ln.Close()
	c, err := net.Dial("tcp4", ln.Addr().String())
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		b.Fatal(err)
	}
	var info tcpInfo
	err = raw.Control(func(fd uintptr) {
		for b.Loop() {
			if _, ok := info.waited(int(fd)); !ok {
				b.Fatal("no tcp_info")
			}
		}
	})
	if err != nil {
		b.Fatal(err)
	}
}
