package daemon_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/binder"
	"github.com/portd/portd/internal/ianadb"
	"github.com/portd/portd/internal/nstest"
	"github.com/portd/portd/internal/portdtest"
	"github.com/portd/portd/internal/registry"
	"github.com/portd/portd/internal/registry/boltstore"
)

// BenchmarkReserve counts reservations that are durable and bound, and beside them, in turn with them and on the same
// disk, raw appends with an fdatasync each, one at a time. The ports are released while the clock stands.
func BenchmarkReserve(b *testing.B) {
	for _, callers := range []int{1, 64} {
		b.Run(fmt.Sprintf("callers=%d", callers), func(b *testing.B) { benchReserve(b, callers) })
	}
}

func benchReserve(b *testing.B, callers int) {
	nstest.Need(b)
	dir := benchDir(b)
	reg := benchRegistry(b, dir)
	raw, err := os.OpenFile(filepath.Join(dir, "raw"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		b.Fatal(err)
	}
	defer raw.Close()
	record := make([]byte, 512)
	me := registry.Caller{UID: uint32(os.Geteuid()), Netns: registry.HostNetns}

	round := 8 * callers // reservations between two looks at the raw disk, which others use too
	var reserving, appending time.Duration
	appends, done := 0, 0
	for done < b.N {
		n := min(round, b.N-done)
		ids := make([]string, n)
		var next atomic.Int64
		var all sync.WaitGroup
		start := time.Now()
		for range callers {
			all.Go(func() {
				for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
					port := uint16(10000 + i)
					res, err := reg.Reserve(b.Context(), me, registry.ReserveRequest{Spec: registry.Spec{
						Endpoints: []registry.EndpointSpec{{
							Protos: []registry.Protocol{registry.TCP}, Exact: registry.PortRange{First: port, Last: port},
						}},
					}})
					if err != nil {
						b.Error(err)
						return
					}
					ids[i] = res.ID
				}
			})
		}
		all.Wait()
		reserving += time.Since(start)
		b.StopTimer()
		if b.Failed() {
			return
		}
		for range max(8, round/8) {
			start := time.Now()
			if _, err := raw.Write(record); err != nil {
				b.Fatal(err)
			}
			if err := unix.Fdatasync(int(raw.Fd())); err != nil {
				b.Fatal(err)
			}
			appending += time.Since(start)
			appends++
		}
		release(b, reg, me, ids)
		b.StartTimer()
		done += n
	}
	perSecond := float64(b.N) / reserving.Seconds()
	raws := float64(appends) / appending.Seconds()
	b.ReportMetric(perSecond, "reservations/s")
	b.ReportMetric(raws, "appends/s")
	b.ReportMetric(perSecond/raws, "reservations/append")
}

// release releases with many callers, for speed.
func release(b *testing.B, reg *registry.Registry, me registry.Caller, ids []string) {
	b.Helper()
	var all sync.WaitGroup
	for part := range 64 {
		all.Go(func() {
			for i := part; i < len(ids); i += 64 {
				if _, err := reg.Release(b.Context(), me, ids[i], ""); err != nil {
					b.Error(err)
				}
			}
		})
	}
	all.Wait()
}

func benchRegistry(b *testing.B, dir string) *registry.Registry {
	b.Helper()
	store, err := boltstore.Open(filepath.Join(dir, "portd.db"), boltstore.Options{})
	if err != nil {
		b.Fatal(err)
	}
	binds, err := binder.New(binder.Config{})
	if err != nil {
		b.Fatal(err)
	}
	reg := registry.New(registry.Config{
		Store: store, Binder: binds, Services: ianadb.Embedded(), BootID: "this one",
		Policy: registry.Policy{UID: uint32(os.Geteuid())}, Log: slog.New(slog.NewTextHandler(b.Output(), nil)),
	})
	if err := reg.Start(b.Context()); err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- reg.Run(ctx) }()
	b.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			b.Error(err)
		}
		binds.Close()
		if err := store.Close(); err != nil {
			b.Error(err)
		}
	})
	return reg
}

// BenchmarkStart is a start of the real portd, from before the process is made until it says that it is ready: with a new
// store, into which the service registry goes then, and with the store that such a start left behind. It is on a disk.
func BenchmarkStart(b *testing.B) {
	for _, store := range []string{"new", "there"} {
		b.Run("store="+store, func(b *testing.B) {
			disk := benchDir(b)
			binary(b)
			d := portdtest.New(b)
			begin := func(state int) *process {
				d.State = filepath.Join(disk, fmt.Sprint(state))
				return portd(b, d, "")
			}
			stop := func(p *process) {
				if err := p.Process.Signal(unix.SIGTERM); err != nil {
					b.Fatal(err)
				}
				if code := p.ends(b); code != 0 {
					b.Fatalf("exit %d: %s", code, &p.log)
				}
			}
			if store == "there" {
				p := begin(0)
				p.begin(b)
				stop(p)
			}
			b.ResetTimer()
			for i := range b.N {
				b.StopTimer()
				state := 0
				if store == "new" {
					state = i + 1
				}
				p := begin(state)
				b.StartTimer()
				p.begin(b)
				b.StopTimer()
				stop(p)
				b.StartTimer()
			}
			b.ReportMetric(float64(b.Elapsed().Microseconds())/1000/float64(b.N), "ms/start")
		})
	}
}

// benchDir is a directory on a disk, and says on which. PORTD_BENCH_DIR is where to make it; otherwise it is made in the
// module, as /tmp is memory on many hosts.
func benchDir(b *testing.B) string {
	b.Helper()
	parent := os.Getenv("PORTD_BENCH_DIR")
	if parent == "" {
		parent = filepath.Join("..", "..", ".scratch")
		if err := os.MkdirAll(parent, 0o700); err != nil {
			b.Fatal(err)
		}
	}
	dir, err := os.MkdirTemp(parent, "daemon-")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			b.Error(err)
		}
	})
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		b.Fatal(err)
	}
	if st.Type == unix.TMPFS_MAGIC || st.Type == unix.RAMFS_MAGIC {
		b.Fatalf("%s is memory, where a sync costs nothing: set PORTD_BENCH_DIR to a directory on a disk", dir)
	}
	b.Logf("on %s", diskOf(b, dir))
	return dir
}

// diskOf finds "/dev/vda (ext4)" in mountinfo, by the device number (proc(5)).
func diskOf(b *testing.B, dir string) string {
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		b.Fatal(err)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		b.Fatal(err)
	}
	number := fmt.Sprintf("%d:%d", unix.Major(st.Dev), unix.Minor(st.Dev))
	for line := range strings.Lines(string(mounts)) {
		mount, device, _ := strings.Cut(line, " - ")
		if f := strings.Fields(mount); len(f) > 2 && f[2] == number {
			if d := strings.Fields(device); len(d) > 1 {
				return fmt.Sprintf("%s (%s)", d[1], d[0])
			}
		}
	}
	return "device " + number
}
