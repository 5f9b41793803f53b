package binder_test

import (
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/binder"
	"github.com/portd/portd/internal/registry"
)

// BenchmarkKept is what it takes a Binder with a keeper to hold 60,000 ports, a key each, and its successor to have them.
func BenchmarkKept(b *testing.B) {
	if os.Geteuid() != 0 {
		b.Skip("needs CAP_SYS_RESOURCE or CAP_SYS_ADMIN, to park so many sockets")
	}
	const first, n = 5000, 60_000
	w := keep(b, binder.Config{})
	all := func() {
		for p := range n {
			ep := registry.Endpoint{Netns: registry.HostNetns, Proto: registry.TCP, Addr: registry.AnyAddr}.At(uint16(first + p))
			if err := w.b.Bind(b.Context(), registry.Bind{Key: key(ep), Endpoint: ep}); err != nil {
				b.Fatal(err)
			}
		}
	}
	begin, used := time.Now(), cpu(b)
	all()
	b.Logf("held %d in %v, with %v of processor time here", n, time.Since(begin), cpu(b)-used)
	var given, taken, usedHere time.Duration
	for b.Loop() {
		b.StopTimer()
		w.die()
		b.StartTimer()
		begin := time.Now()
		w.store = w.attached()
		given += time.Since(begin)
		begin, used := time.Now(), cpu(b)
		w.open()
		all()
		w.unclaimed(0)
		taken += time.Since(begin)
		usedHere += cpu(b) - used
	}
	b.ReportMetric(float64(given.Milliseconds())/float64(b.N), "ms/given")
	b.ReportMetric(float64(taken.Milliseconds())/float64(b.N), "ms/taken")
	b.ReportMetric(float64(usedHere.Milliseconds())/float64(b.N), "cpu-ms/taken")
	b.ReportMetric(0, "ns/op")
}

// BenchmarkBindReleaseKept is what a keeper adds, in processor time of this process, to a port that comes and goes.
func BenchmarkBindReleaseKept(b *testing.B) {
	for _, kept := range []bool{false, true} {
		name := "without"
		if kept {
			name = "with"
		}
		b.Run(name, func(b *testing.B) {
			var bind *binder.Binder
			if kept {
				bind = keep(b, binder.Config{}).b
			} else {
				bind = open(b, binder.Config{})
			}
			ep := at(b, "tcp/1", 10000)
			var binding time.Duration
			used := cpu(b)
			for b.Loop() {
				begin := time.Now()
				if err := bind.Bind(b.Context(), registry.Bind{Key: key(ep), Endpoint: ep, Fresh: true}); err != nil {
					b.Fatal(err)
				}
				binding += time.Since(begin)
				release(b, bind, ep)
			}
			b.ReportMetric(float64((cpu(b)-used).Nanoseconds())/float64(b.N), "cpu-ns/op")
			b.ReportMetric(float64(binding.Nanoseconds())/float64(b.N), "ns/bind")
		})
	}
}

// cpu is the processor time that this process has had.
func cpu(b *testing.B) time.Duration {
	b.Helper()
	var r unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &r); err != nil {
		b.Fatal(err)
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}
