package daemon_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/portd/portd/internal/nstest"
	"github.com/portd/portd/internal/registry"
)

// BenchmarkReserveAny has ports chosen, bound and recorded durably on a host where 100 are taken and on one where
// 60,000 are, in turns. What is taken lies in blocks of 16 all over the 65,535, each a reservation of its own, and is only
// recorded, for no process may have so many sockets.
func BenchmarkReserveAny(b *testing.B) {
	nstest.Need(b)
	me := registry.Caller{UID: uint32(os.Geteuid()), Netns: registry.HostNetns}
	dir := benchDir(b)
	var hosts [2]*registry.Registry
	for i, taken := range []int{100, 60_000} {
		at := filepath.Join(dir, fmt.Sprint(taken))
		if err := os.Mkdir(at, 0o700); err != nil {
			b.Fatal(err)
		}
		hosts[i] = benchRegistry(b, at)
		take(b, hosts[i], me, taken)
	}
	for _, c := range []struct {
		name    string
		callers int
		mode    registry.Mode
		spec    registry.EndpointSpec
	}{
		{"held", 1, registry.Held, registry.EndpointSpec{Any: &registry.AnyPorts{}}},
		{"held,callers=64", 64, registry.Held, registry.EndpointSpec{Any: &registry.AnyPorts{}}},
		{"recorded", 1, registry.Recorded, registry.EndpointSpec{Any: &registry.AnyPorts{}}},
		{"run=8", 1, registry.Held, registry.EndpointSpec{Any: &registry.AnyPorts{Count: 8}}},
		{"within", 1, registry.Held, registry.EndpointSpec{Any: &registry.AnyPorts{Within: registry.PortRange{First: 20000, Last: 29999}}}},
	} {
		b.Run(c.name, func(b *testing.B) {
			c.spec.Protos = []registry.Protocol{registry.TCP}
			spec := registry.Spec{Endpoints: []registry.EndpointSpec{c.spec}, Mode: c.mode}
			var spent [2]time.Duration
			for done := 0; done < b.N; {
				n := min(2*max(c.callers, 8), b.N-done)
				for i, host := range hosts {
					ids := make([]string, n)
					var next atomic.Int64
					var all sync.WaitGroup
					start := time.Now()
					for range c.callers {
						all.Go(func() {
							for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
								res, err := host.Reserve(b.Context(), me, registry.ReserveRequest{Spec: spec})
								if err != nil {
									b.Error(err)
									return
								}
								ids[i] = res.ID
							}
						})
					}
					all.Wait()
					spent[i] += time.Since(start)
					b.StopTimer()
					if b.Failed() {
						return
					}
					release(b, host, me, ids)
					b.StartTimer()
				}
				done += n
			}
			b.ReportMetric(float64(spent[0].Microseconds())/float64(b.N), "µs/of-100")
			b.ReportMetric(float64(spent[1].Microseconds())/float64(b.N), "µs/of-60000")
			b.ReportMetric(float64(spent[1])/float64(spent[0]), "ratio")
		})
	}
}

// take reserves so many ports of a new registry.
func take(b *testing.B, host *registry.Registry, me registry.Caller, ports int) {
	b.Helper()
	blocks := rand.New(rand.NewPCG(1, 0)).Perm(4095)
	var next atomic.Int64
	var all sync.WaitGroup
	for range 64 {
		all.Go(func() {
			for i := int(next.Add(1)) - 1; i < ports; i = int(next.Add(1)) - 1 {
				port := uint16(16 + blocks[i/16]*16 + i%16)
				_, err := host.Reserve(b.Context(), me, registry.ReserveRequest{Spec: registry.Spec{
					Mode: registry.Recorded, Endpoints: []registry.EndpointSpec{{
						Protos: []registry.Protocol{registry.TCP}, Exact: registry.PortRange{First: port, Last: port},
					}},
				}})
				if err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	all.Wait()
	if b.Failed() {
		b.FailNow()
	}
}
