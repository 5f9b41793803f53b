package daemon_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/portd/portd/internal/ianadb"
	"github.com/portd/portd/internal/registry"
)

// BenchmarkImport imports the whole registry, each time with another change in it, into a store on a disk: parsed,
// compared, compiled, committed and ready to be searched. Meanwhile two look up ports as fast as they can. What the
// registry takes of the heap afterwards, with the previous one, is measured beside what the program file has of it.
func BenchmarkImport(b *testing.B) {
	me := registry.Caller{UID: uint32(os.Geteuid()), Netns: registry.HostNetns}
	entries := shipped()
	empty := heap()
	reg := benchRegistry(b, benchDir(b))
	ctx, stop := context.WithCancel(b.Context())
	defer stop()
	var looking sync.WaitGroup
	longest, looked := make([]time.Duration, 2), make([]int, 2)
	for i := range longest {
		looking.Go(func() {
			for ctx.Err() == nil {
				start := time.Now()
				for range reg.Services().ByPort(443, ianadb.TCP) {
				}
				longest[i] = max(longest[i], time.Since(start))
				looked[i]++
				if looked[i]%1000 == 0 {
					time.Sleep(time.Millisecond) // a busy daemon, not one that does nothing else
				}
			}
		})
	}
	b.ResetTimer()
	for n := range b.N {
		b.StopTimer()
		file := csvOf(b, entries, fmt.Sprintf("changed %d", n))
		b.StartTimer()
		done, err := reg.ImportServices(b.Context(), me, file, registry.ImportOptions{Date: "2026-09-01"})
		if err != nil || len(done.Changes) != 1 {
			b.Fatalf("%v, %v", done, err)
		}
	}
	b.StopTimer()
	b.ReportMetric(float64(b.Elapsed().Microseconds())/1000/float64(b.N), "ms/import")
	stop()
	looking.Wait()
	b.ReportMetric(float64(slices.Max(longest).Microseconds()), "µs/longest-lookup")
	b.ReportMetric(float64(looked[0]+looked[1])/float64(b.N), "lookups/import")
	b.ReportMetric(float64(heap()-empty)/1e6, "MB/heap")
	b.ReportMetric(float64(len(ianadb.Embedded().Blob()))/1e6, "MB/program")
	runtime.KeepAlive(reg)
	runtime.KeepAlive(entries) // which was there before
}

// heap is the bytes of the heap in use once all garbage is gone.
func heap() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC() // what the first one has finalized
	runtime.ReadMemStats(&m)
	return int64(m.HeapInuse)
}

// shipped is the registry that portd is built with.
func shipped() (entries []ianadb.Entry) {
	for r := range ianadb.Embedded().All() {
		entries = append(entries, r.Entry())
	}
	return entries
}

// ssh is the one entry that editions differ in here.
func ssh(entries []ianadb.Entry) *ianadb.Entry {
	i := slices.IndexFunc(entries, func(e ianadb.Entry) bool { return e.Name == "ssh" && e.Protocol == ianadb.TCP })
	return &entries[i]
}

// csvOf is a file like IANA's, of these entries but for what it says of ssh.
func csvOf(t testing.TB, entries []ianadb.Entry, description string) *bytes.Buffer {
	t.Helper()
	changed := slices.Clone(entries)
	ssh(changed).Description = description
	var file bytes.Buffer
	if err := ianadb.WriteCSV(&file, slices.Values(changed)); err != nil {
		t.Fatal(err)
	}
	return &file
}
