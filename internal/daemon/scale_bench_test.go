package daemon_test

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
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

// scale is how many reservations of a port each a portd is to hold.
const scale = 60_000

// BenchmarkRestart is the start of the real portd with 60,000 held reservations of a port each, from before the process is made
// until it says that all are held, and what memory it has then (resident, at its most). It says on its own what loading the store and
// binding the ports take of it, in this process.
func BenchmarkRestart(b *testing.B) {
	nstest.Need(b)
	if os.Geteuid() != 0 {
		b.Skip("needs CAP_SYS_RESOURCE or CAP_SYS_ADMIN, to park so many sockets")
	}
	disk := benchDir(b)
	binary(b)
	d := portdtest.New(b)
	d.State = filepath.Join(disk, "state")
	if err := os.Mkdir(d.State, 0o700); err != nil {
		b.Fatal(err)
	}
	holdAll(b, d.State)
	b.Run("process", func(b *testing.B) {
		var cpu time.Duration
		for range b.N {
			b.StopTimer()
			p := portd(b, d, "")
			b.StartTimer()
			p.begin(b)
			b.StopTimer()
			p.cpuInto(b, &cpu)
			b.ReportMetric(memory(b, p.Process.Pid, "VmRSS"), "MB-resident")
			b.ReportMetric(memory(b, p.Process.Pid, "VmHWM"), "MB-peak")
			if err := p.Process.Signal(unix.SIGTERM); err != nil {
				b.Fatal(err)
			}
			if code := p.ends(b); code != 0 {
				b.Fatalf("exit %d: %s", code, &p.log)
			}
			b.StartTimer()
		}
		b.ReportMetric(float64(b.Elapsed().Milliseconds())/float64(b.N), "ms/start")
		b.ReportMetric(float64(cpu.Milliseconds())/float64(b.N), "cpu-ms/start") // which a busy machine does not change so much
		b.ReportMetric(0, "ns/op")
	})
	b.Run("parts", func(b *testing.B) {
		var loading, starting time.Duration
		for range b.N {
			begin := time.Now()
			store, err := boltstore.Open(filepath.Join(d.State, "portd.db"), boltstore.Options{})
			if err != nil {
				b.Fatal(err)
			}
			if _, err := store.Load(b.Context()); err != nil {
				b.Fatal(err)
			}
			loading += time.Since(begin)
			binds, err := binder.New(binder.Config{})
			if err != nil {
				b.Fatal(err)
			}
			reg := registry.New(registry.Config{Store: store, Binder: binds, Services: ianadb.Embedded(), BootID: "this one"})
			begin = time.Now()
			if err := reg.Start(b.Context()); err != nil {
				b.Fatal(err)
			}
			starting += time.Since(begin)
			binds.Close()
			if err := store.Close(); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(loading.Milliseconds())/float64(b.N), "ms/open+load")
		b.ReportMetric(float64(starting.Milliseconds())/float64(b.N), "ms/load+bind")
		b.ReportMetric(0, "ns/op")
	})
}

// holdAll makes a store in dir with 60,000 held reservations.
func holdAll(b *testing.B, dir string) {
	b.Helper()
	store, err := boltstore.Open(filepath.Join(dir, "portd.db"), boltstore.Options{})
	if err != nil {
		b.Fatal(err)
	}
	defer store.Close()
	binds, err := binder.New(binder.Config{})
	if err != nil {
		b.Fatal(err)
	}
	defer binds.Close()
	reg := registry.New(registry.Config{Store: store, Binder: binds, Services: ianadb.Embedded(), BootID: "another"})
	if err := reg.Start(b.Context()); err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running, all sync.WaitGroup
	running.Go(func() { _ = reg.Run(ctx) })
	defer running.Wait()
	defer cancel()
	me := registry.Caller{Netns: registry.HostNetns}
	var next atomic.Int64
	for range 64 {
		all.Go(func() {
			for i := next.Add(1); i <= scale; i = next.Add(1) {
				port := uint16(i + 5000)
				_, err := reg.Reserve(ctx, me, registry.ReserveRequest{
					Name: fmt.Sprintf("service-%d", i), Labels: map[string]string{"team": "web"},
					Spec: registry.Spec{Endpoints: []registry.EndpointSpec{{
						Protos: []registry.Protocol{registry.TCP}, Exact: registry.PortRange{First: port, Last: port},
					}}},
				})
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

// cpuInto adds the processor time of all its threads so far (proc_pid_stat(5)).
func (p *process) cpuInto(b *testing.B, cpu *time.Duration) {
	b.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.Process.Pid))
	if err != nil {
		b.Fatal(err)
	}
	fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
	for _, f := range fields[11:13] { // utime and stime, in ticks of 10 ms
		ticks, err := strconv.Atoi(f)
		if err != nil {
			b.Fatal(err)
		}
		*cpu += time.Duration(ticks) * 10 * time.Millisecond
	}
}

// memory is a line of /proc/PID/status, in MB (proc_pid_status(5)).
func memory(b *testing.B, pid int, what string) float64 {
	b.Helper()
	f, err := os.Open(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if text, found := strings.CutPrefix(lines.Text(), what+":"); found {
			var kb float64
			if _, err := fmt.Sscan(text, &kb); err != nil {
				b.Fatal(err)
			}
			return kb / 1000
		}
	}
	b.Fatalf("/proc/%d/status has no %s", pid, what)
	return 0
}
