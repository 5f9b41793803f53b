package boltstore

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/registry"
)

// BenchmarkCommit compares the changes that are committed in some time with the raw appends, each synced, that the same
// disk does meanwhile: one after the other, so that both meet the same disk.
func BenchmarkCommit(b *testing.B) {
	for _, size := range []int{1, 64} {
		b.Run(fmt.Sprintf("batch=%d", size), func(b *testing.B) {
			dir := benchDir(b)
			s := mustOpen(b, filepath.Join(dir, "portd.db"))
			defer s.Close()
			raw, err := os.OpenFile(filepath.Join(dir, "raw"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
			if err != nil {
				b.Fatal(err)
			}
			defer raw.Close()
			record := make([]byte, 512)

			var committing, appending time.Duration
			var at registry.Revision
			for b.Loop() {
				changes := reserved(at, size)
				start := time.Now()
				if err := s.Commit(b.Context(), at, changes); err != nil {
					b.Fatal(err)
				}
				committed := time.Now()
				if _, err := raw.Write(record); err != nil {
					b.Fatal(err)
				}
				if err := unix.Fdatasync(int(raw.Fd())); err != nil {
					b.Fatal(err)
				}
				committing += committed.Sub(start)
				appending += time.Since(committed)
				at += registry.Revision(size)
			}
			n := float64(b.N)
			b.ReportMetric(float64(committing.Nanoseconds())/n, "ns/op")
			b.ReportMetric(float64(appending.Nanoseconds())/n, "ns/append")
			b.ReportMetric(float64(size)*appending.Seconds()/committing.Seconds(), "changes/append")
		})
	}
}

func BenchmarkLoad(b *testing.B) {
	const reservations, batch = 60_000, 2000
	s := mustOpen(b, filepath.Join(benchDir(b), "portd.db"))
	defer s.Close()
	for at := registry.Revision(0); at < reservations; at += batch {
		changes := reserved(at, batch)
		for i := range changes {
			changes[i].Put = changes[i].Put[:1] // answers are forgotten soon, reservations stay
		}
		if err := s.Commit(b.Context(), at, changes); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportAllocs()
	for b.Loop() {
		st, err := s.Load(b.Context())
		if err != nil || len(st.Reservations) != reservations {
			b.Fatalf("%d reservations (%v)", len(st.Reservations), err)
		}
	}
}

// reserved is changes as Reserve with a request id makes them: the reservation, its event and the request's answer.
func reserved(base registry.Revision, n int) []registry.Change {
	changes := make([]registry.Change, n)
	for i := range changes {
		rev, now := base+1+registry.Revision(i), time.Now()
		id := fmt.Sprintf("%020d", uint64(rev)*0x9e3779b97f4a7c15) // in no order, as random ids are
		port := uint16(1024 + rev%60_000)
		r := &registry.Reservation{
			ID: "rsv_" + id, Name: "web-" + id, Owner: "uid:1000", Created: now, CreateRevision: rev, Revision: rev,
			Labels: map[string]string{"team": "blue"},
			Spec: registry.Spec{Endpoints: []registry.EndpointSpec{{
				Netns: registry.HostNetns, Protos: []registry.Protocol{registry.TCP},
				Addrs: []netip.Addr{registry.AnyAddr}, Exact: registry.PortRange{First: port, Last: port},
			}}},
			Assigned: []registry.Assigned{{Endpoint: registry.Endpoint{
				Netns: registry.HostNetns, Proto: registry.TCP, Addr: registry.AnyAddr, First: port, Last: port,
			}}},
		}
		changes[i] = registry.Change{
			Revision: rev, Time: now,
			Put: []registry.Record{
				r,
				&registry.Request{Caller: r.Owner, Method: "Reserve", ID: id, Time: now, Result: r, Revision: rev},
			},
			Events: []registry.Event{{Type: registry.EventReserved, Reservation: r, Caller: r.Owner}},
		}
	}
	return changes
}

// benchDir is a directory on a disk, and says on which. PORTD_BENCH_DIR is where to make it; otherwise it is made in the
// module, as /tmp is memory on many hosts.
func benchDir(b *testing.B) string {
	b.Helper()
	parent := os.Getenv("PORTD_BENCH_DIR")
	if parent == "" {
		parent = filepath.Join("..", "..", "..", ".scratch")
		if err := os.MkdirAll(parent, 0o700); err != nil {
			b.Fatal(err)
		}
	}
	dir, err := os.MkdirTemp(parent, "boltstore-")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			b.Error(err)
		}
	})
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		b.Fatal(err)
	}
	if fs.Type == unix.TMPFS_MAGIC || fs.Type == unix.RAMFS_MAGIC {
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
