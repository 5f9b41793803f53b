package handoff_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/portd/portd/internal/fdstore"
	"github.com/portd/portd/internal/handoff"
	"github.com/portd/portd/internal/holder"
	"github.com/portd/portd/internal/registry"
	"github.com/portd/portd/internal/wire"
	"golang.org/x/sys/unix"
)

// rounds and how long each takes: the machine's speed drifts, so the servers take turns and only ratios within a round count.
const (
	rounds    = 9
	roundTime = 400 * time.Millisecond
)

// BenchmarkHandoff compares short connections through a portd to a Go worker with the same connections to a plain Go server, each
// in a process of its own: ratio-vs-direct is the median of the rounds' ratios of connections per second, cpu-vs-direct that of the
// processor time which the servers used for a connection, portd and worker together.
func BenchmarkHandoff(b *testing.B) {
	for _, workers := range []int{1, 2} {
		b.Run(fmt.Sprintf("workers=%d", workers), func(b *testing.B) {
			for _, atATime := range []int{1, 64, 512} {
				b.Run(strconv.Itoa(atATime), func(b *testing.B) { benchHandoff(b, workers, atATime) })
			}
		})
	}
}

func benchHandoff(b *testing.B, workers, atATime int) {
	direct := (&host{t: b}).worker("direct", "")
	var port uint16
	if _, err := fmt.Sscanf(direct.said, "ready %d", &port); err != nil {
		b.Fatal(err)
	}
	compare(b, []process{direct}, port, workers, atATime)
}

// compare has a portd and its workers take turns with other servers at that port.
func compare(b *testing.B, others []process, port uint16, workers, atATime int) {
	dir, err := os.MkdirTemp("", "handoff")
	if err != nil {
		b.Fatal(err)
	}
	defer os.RemoveAll(dir)
	h := &host{t: b, socket: filepath.Join(dir, "s")}
	portd := h.worker("portd", "")
	var through uint16
	if _, err := fmt.Sscanf(portd.said, "ready %d", &through); err != nil {
		b.Fatal(err)
	}
	servers := [2][]process{others, {portd}}
	for range workers {
		servers[1] = append(servers[1], h.worker("serve64", "web"))
	}
	loads := []*load{newLoad(b, port, atATime), newLoad(b, through, atATime)}
	var rate, p99 [2][]float64
	var ratios, slower []float64
	var used, made [2]float64
	b.ResetTimer()
	for i := range max(rounds, b.N) + 1 {
		var r, p [2]float64
		for j := range loads {
			k := (i + j) % 2
			before := processorTime(b, servers[k])
			n, took, err := loads[k].run(roundTime)
			if err != nil {
				b.Fatal(err)
			}
			used[k] += processorTime(b, servers[k]) - before
			made[k] += float64(n)
			r[k] = float64(n) / took.Seconds()
			slices.Sort(loads[k].latencies)
			p[k] = float64(loads[k].latencies[len(loads[k].latencies)*99/100].Microseconds())
		}
		if i == 0 {
			continue // everything is cold
		}
		for k := range loads {
			rate[k], p99[k] = append(rate[k], r[k]), append(p99[k], p[k])
		}
		ratios, slower = append(ratios, r[1]/r[0]), append(slower, p[1]/p[0])
	}
	b.ReportMetric(median(ratios), "ratio-vs-direct")
	b.ReportMetric(median(slower), "p99-vs-direct")
	b.ReportMetric(used[1]/made[1]/(used[0]/made[0]), "cpu-vs-direct")
	b.ReportMetric(median(rate[0]), "direct/s")
	b.ReportMetric(median(rate[1]), "portd/s")
	b.ReportMetric(0, "ns/op")
}

// processorTime is what the processes have used so far, in ticks of the kernel's (proc_pid_stat(5)).
func processorTime(b *testing.B, servers []process) (ticks float64) {
	for _, s := range servers {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", s.Process.Pid))
		if err != nil {
			b.Fatal(err)
		}
		_, after, _ := strings.Cut(string(stat), ") ")
		fields := strings.Fields(after)
		for _, f := range fields[11:13] { // utime, stime
			n, _ := strconv.ParseFloat(f, 64)
			ticks += n
		}
	}
	return ticks
}

func median(v []float64) float64 {
	slices.Sort(v)
	return v[len(v)/2]
}

// serve64 is the server of both sides: 64 bytes, and back.
func serve64(l net.Listener) error {
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer c.Close()
			var buf [64]byte
			if n, err := c.Read(buf[:]); err == nil {
				_, _ = c.Write(buf[:n])
			}
		}()
	}
}

func serveDirect() error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println("ready", netip.MustParseAddrPort(l.Addr().String()).Port())
	return serve64(l)
}

// everybody is a policy: whoever comes gets the one reservation there is.
type everybody struct{ *registry.Reservation }

func (e everybody) Attach(context.Context, registry.Caller, string) (*registry.Reservation, error) {
	return e.Reservation, nil
}

// servePortd is a process with nothing but a pool and one listener in it.
func servePortd(socket string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return err
	}
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		return err
	}
	if err := unix.Listen(fd, 4096); err != nil {
		return err
	}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return err
	}
	port := uint16(sa.(*unix.SockaddrInet4).Port)
	e := registry.Endpoint{Proto: registry.TCP, Addr: netip.MustParseAddr("127.0.0.1"), First: port, Last: port}
	res := &registry.Reservation{ID: "rsv_1", Assigned: []registry.Assigned{{Endpoint: e, Listen: &registry.ListenOptions{}}}}
	if os.Getenv("HANDOFF_HOLDER") != "" {
		h, err := holder.Start()
		if err != nil {
			return err
		}
		defer h.Close()
	}
	pool, err := handoff.New(handoff.Config{Attacher: everybody{res}, Keep: fdstore.New(nil), Acceptors: acceptors()})
	if err != nil {
		return err
	}
	pool.Listening(registry.SocketKey{Reservation: res.ID}, []registry.Socket{{Endpoint: e, FD: fd}}, registry.ListenOptions{})
	ln, err := net.ListenUnix("unixpacket", &net.UnixAddr{Net: "unixpacket", Name: socket})
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { _ = pool.Run(ctx) })
	running.Go(func() { _ = pool.Serve(ctx, ln) })
	fmt.Println("ready", port)
	_, _ = os.Stdin.Read(make([]byte, 1)) // until the benchmark ends
	stop()
	running.Wait()
	return nil
}

// BenchmarkSuccession is how long a client waits that comes when portd has just been killed, with so many workers that come back: the next
// portd is started (a bare Pool; a daemon loads its store besides), has restored them, and hands the client over.
func BenchmarkSuccession(b *testing.B) {
	for _, workers := range []int{1, 1000} {
		b.Run(fmt.Sprintf("workers=%d", workers), func(b *testing.B) {
			d := newDynasty(b, registry.HandoffOptions{})
			d.scribe(1, connections(dynastyID))
			for range workers - 1 {
				d.host.attach(wire.Attach{Wishes: []wire.Wish{{Reference: dynastyID, Want: wire.WantConnections}}})
			}
			d.reign.ask(b)
			for b.Loop() {
				d.kill()
				d.begin()
				if _, err := io.ReadAll(d.clients(1)[0]); err != nil {
					b.Fatal(err)
				}
			}
			if got := len(d.reign.ask(b).Workers); got != workers {
				b.Errorf("%d workers are left of %d", got, workers)
			}
		})
	}
}
