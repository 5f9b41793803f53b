package handoff

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/portd/portd/internal/fdpass"
	"github.com/portd/portd/internal/registry"
	"github.com/portd/portd/internal/wire"
	"golang.org/x/sys/unix"
)

// BenchmarkPick is what the choice of a worker costs for a message of four connections, with all that follows from it: the worker has no
// room then, and another one has again, and is done with four connections. The pages are mapped as a worker's are.
func BenchmarkPick(b *testing.B) {
	for _, strategy := range []registry.HandoffStrategy{registry.LeastActive, registry.RoundRobin} {
		for _, workers := range []int{1, 8, 64, 4000} {
			b.Run(fmt.Sprintf("%v/workers=%d", strategy, workers), func(b *testing.B) { benchPick(b, strategy, workers) })
		}
	}
	for _, workers := range []int{1, 8, 64, 4000} {
		b.Run(fmt.Sprintf("%v/workers=%d", registry.ClientAddress, workers), func(b *testing.B) {
			l := crowd(b, registry.ClientAddress, workers)
			a := wire.Addr{Family: wire.FamilyIPv4}
			l.target(&a)
			b.ResetTimer()
			defer processor(b)()
			for i := range b.N {
				a.IP[0], a.IP[1], a.IP[2] = byte(i), byte(i>>8), byte(i>>16)
				if l.target(&a) == nil {
					b.Fatal("nobody is chosen")
				}
			}
		})
	}
}

func benchPick(b *testing.B, strategy registry.HandoffStrategy, workers int) {
	l := crowd(b, strategy, workers)
	// As many messages are under way as load of 512 connections has, or all workers are busy but one.
	under := make([]*serving, min(workers, 128))
	done := rand.Perm(len(under))
	b.ResetTimer()
	defer processor(b)()
	for i := range b.N {
		if at := done[i%len(under)]; under[at] != nil {
			s := under[at]
			s.worker.page.AddDone(4)
			s.worker.room = true
			l.offer(s)
		}
		s := l.pick()
		if s == nil {
			b.Fatal("nobody is chosen")
		}
		under[done[i%len(under)]] = s
		s.worker.sent += 4
		s.worker.room = false
		l.charge(s, 4)
	}
}

// processor reports the processor time of what follows: on a machine that does other things too, that is what can be compared.
func processor(b *testing.B) (report func()) {
	used := func() int64 {
		var u unix.Rusage
		if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
			b.Fatal(err)
		}
		return u.Utime.Nano() + u.Stime.Nano()
	}
	before := used()
	return func() { b.ReportMetric(float64(used()-before)/float64(b.N), "cpu-ns/op") }
}

// crowd is a listener with so many workers that have room, each with some connections.
func crowd(t testing.TB, strategy registry.HandoffStrategy, workers int) *listener {
	l := &listener{options: registry.HandoffOptions{Strategy: strategy}}
	for i := range workers {
		fd, mem, err := fdpass.SealedPage(wire.PageSize)
		if err != nil {
			t.Fatal(err)
		}
		unix.Close(fd)
		t.Cleanup(func() { _ = unix.Munmap(mem) })
		w := &worker{id: fmt.Sprint(i), room: true, workerPlace: &workerPlace{sent: 100}}
		w.page, _ = wire.NewPage(mem)
		w.page.AddDone(uint64(i % 100))
		l.enter(&serving{worker: w, listener: l, servingPlace: &servingPlace{state: Ready}, weight: 1})
	}
	return l
}

// An address whose worker has left has the one that it would have had without it, whoever came and went meanwhile.
func TestSlotsOfWhoLeft(t *testing.T) {
	l := crowd(t, registry.ClientAddress, 16)
	have := newSlots()
	for _, s := range l.workers[:12] {
		have.add(s)
	}
	address := func(i int) *wire.Addr {
		return &wire.Addr{Family: wire.FamilyIPv4, IP: [16]byte{10, byte(i >> 8), byte(i)}}
	}
	for i, s := range l.workers[:8] {
		have.remove(s)
		have.of(address(i)) // some are looked for before others come
		if i < 4 {
			have.add(l.workers[12+i])
		}
	}
	want := newSlots()
	for _, s := range l.workers[8:] {
		s.placed = false
		want.add(s)
	}
	for i := range 1 << 16 {
		if got, want := have.of(address(i)), want.of(address(i)); got != want {
			t.Fatalf("address %d is worker %s's, not %s's", i, got.worker.id, want.worker.id)
		}
	}
}

// BenchmarkLeave is what it costs all others that the worker with nearly all clients leaves and comes back.
func BenchmarkLeave(b *testing.B) {
	for _, workers := range []int{8, 64, 4000} {
		b.Run(fmt.Sprintf("workers=%d", workers), func(b *testing.B) {
			l := crowd(b, registry.ClientAddress, workers)
			l.workers[0].weight = 65535
			t := newSlots()
			for _, s := range l.workers {
				t.add(s)
			}
			for b.Loop() {
				t.remove(l.workers[0])
				t.add(l.workers[0])
			}
		})
	}
}
