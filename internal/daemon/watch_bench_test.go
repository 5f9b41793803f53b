package daemon_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/portd/portd/internal/nstest"
	"github.com/portd/portd/internal/registry"
)

// BenchmarkWriteBeside records and releases ports durably where 60,000 are taken: alone, and in turns with that while
// 100 watch every change, and while somebody lists all of them by pages twenty times a second, or with a filter that lets
// nothing pass. The ratio is the median of the turns', for other programs use the processors and the disk too.
func BenchmarkWriteBeside(b *testing.B) {
	nstest.Need(b)
	me := registry.Caller{UID: uint32(os.Geteuid()), Netns: registry.HostNetns}
	at := filepath.Join(benchDir(b), "state")
	if err := os.Mkdir(at, 0o700); err != nil {
		b.Fatal(err)
	}
	reg := benchRegistry(b, at)
	take(b, reg, me, 60_000)
	for _, writers := range []int{1, 64} {
		for _, c := range []struct {
			name   string
			others int
			do     func(ctx context.Context, begun func()) error
		}{
			{"watchers=100", 100, watcher(reg, me)},
			{"list", 1, lister(reg, me, registry.Filter{})},
			{"list,none", 1, lister(reg, me, registry.Filter{Owner: "uid:4711"})},
		} {
			b.Run(fmt.Sprintf("%s/writers=%d", c.name, writers), func(b *testing.B) {
				var ratios, alone []float64
				for done := 0; done < b.N; {
					n := min(32*writers, b.N-done)
					var spent [2]time.Duration
					for i := range spent {
						ctx, cancel := context.WithCancel(b.Context())
						var others, begun sync.WaitGroup
						for range i * c.others {
							begun.Add(1)
							others.Go(func() {
								if err := c.do(ctx, sync.OnceFunc(begun.Done)); ctx.Err() == nil {
									b.Error(err)
								}
							})
						}
						begun.Wait()
						spent[i] = write(b, reg, me, writers, n)
						cancel()
						others.Wait()
					}
					done += n
					ratios = append(ratios, float64(spent[1])/float64(spent[0]))
					alone = append(alone, float64(spent[0].Microseconds())/float64(n))
				}
				slices.Sort(ratios)
				slices.Sort(alone)
				b.ReportMetric(alone[len(alone)/2], "µs/alone")
				b.ReportMetric(ratios[len(ratios)/2], "ratio")
			})
		}
	}
}

func watcher(reg *registry.Registry, me registry.Caller) func(context.Context, func()) error {
	return func(ctx context.Context, begun func()) error {
		return reg.Watch(ctx, me, registry.WatchRequest{}, func(string, registry.Change) error {
			begun()
			return nil
		})
	}
}

func lister(reg *registry.Registry, me registry.Caller, f registry.Filter) func(context.Context, func()) error {
	return func(ctx context.Context, begun func()) error {
		begun()
		pace := time.NewTicker(50 * time.Millisecond)
		defer pace.Stop()
		for {
			for page, more := (registry.Page{}), true; more; more = page.Token != "" {
				got, err := reg.List(ctx, me, f, page)
				if err != nil {
					return err
				}
				page.Token = got.Next
			}
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-pace.C:
			}
		}
	}
}

// write records and releases a port n times in all.
func write(b *testing.B, reg *registry.Registry, me registry.Caller, writers, n int) time.Duration {
	b.Helper()
	var next atomic.Int64
	var all sync.WaitGroup
	start := time.Now()
	for w := range writers {
		all.Go(func() {
			port := uint16(10000 + w)
			for next.Add(1) <= int64(n) {
				res, err := reg.Reserve(b.Context(), me, registry.ReserveRequest{Spec: registry.Spec{
					Mode: registry.Recorded, Endpoints: []registry.EndpointSpec{{
						Protos: []registry.Protocol{registry.UDP}, Exact: registry.PortRange{First: port, Last: port},
					}},
				}})
				if err == nil {
					_, err = reg.Release(b.Context(), me, res.ID, "")
				}
				if err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	all.Wait()
	return time.Since(start)
}
