package boltstore

import (
	"bytes"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"

	"github.com/portd/portd/internal/registry"
)

// many makes a store with so many reservations, each made by a request of its own, and with their history.
func many(t testing.TB, path string, reservations int) {
	s, err := Open(path, Options{Delay: -1})
	if err != nil {
		t.Fatal(err)
	}
	for n := 0; n < reservations; {
		changes := make([]registry.Change, min(500, reservations-n))
		for i := range changes {
			n++
			at := time.Date(2026, 1, 2, 3, 4, 5, n, time.UTC)
			r := &registry.Reservation{
				ID: fmt.Sprintf("rsv_%016x", uint64(n)*0x9E3779B97F4A7C15), Name: fmt.Sprintf("service-%d", n), Owner: "uid:1000", Created: at,
				CreateRevision: registry.Revision(n), Revision: registry.Revision(n),
				Assigned: []registry.Assigned{{Endpoint: registry.Endpoint{
					Netns: registry.HostNetns, Proto: registry.TCP, Addr: netip.IPv6Unspecified(), First: uint16(n), Last: uint16(n),
				}}},
			}
			changes[i] = registry.Change{
				Revision: registry.Revision(n), Time: at, Events: []registry.Event{{Type: registry.EventReserved, Reservation: r, Caller: "uid:1000"}},
				Put: []registry.Record{r, &registry.Request{Caller: "uid:1000", Method: "Reserve", ID: r.ID, Time: at, Result: r, Revision: r.Revision}},
			}
		}
		if err := s.Commit(t.Context(), s.rev, changes); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// What it costs to look at 60,000 reservations with their history at each start, in each of the ways there are.
func BenchmarkOpen(b *testing.B) {
	path := filepath.Join(b.TempDir(), "portd.db")
	many(b, path, 60_000)
	info, err := os.Stat(path)
	if err != nil {
		b.Fatal(err)
	}
	view := func(b *testing.B, read func(*bolt.Tx) error) {
		db, err := bolt.Open(path, 0, &bolt.Options{ReadOnly: true, PreLoadFreelist: true, FreelistType: bolt.FreelistMapType})
		if err != nil {
			b.Fatal(err)
		}
		defer db.Close()
		if err := db.View(read); err != nil {
			b.Fatal(err)
		}
	}
	for _, way := range []struct {
		name string
		do   func(*testing.B)
	}{
		{"pages", func(b *testing.B) {
			if err := checkFile(path); err != nil {
				b.Fatal(err)
			}
		}},
		{"bbolt", func(b *testing.B) {
			view(b, func(tx *bolt.Tx) error {
				for err := range tx.Check() {
					b.Error(err)
				}
				return nil
			})
		}},
		{"open", func(b *testing.B) {
			if err := mustOpen(b, path).Close(); err != nil {
				b.Fatal(err)
			}
		}},
		{"load", func(b *testing.B) {
			s := mustOpen(b, path)
			defer s.Close()
			if _, err := s.Load(b.Context()); err != nil {
				b.Fatal(err)
			}
		}},
		{"backup", func(b *testing.B) {
			s := mustOpen(b, path)
			defer s.Close()
			if _, err := s.Backup(b.Context(), io.Discard); err != nil {
				b.Fatal(err)
			}
		}},
		{"restore", func(b *testing.B) {
			b.StopTimer()
			var file bytes.Buffer
			s := mustOpen(b, path)
			if _, err := s.Backup(b.Context(), &file); err != nil {
				b.Fatal(err)
			}
			if err := s.Close(); err != nil {
				b.Fatal(err)
			}
			b.StartTimer()
			if _, _, err := Restore(b.Context(), filepath.Join(b.TempDir(), "portd.db"), &file); err != nil {
				b.Fatal(err)
			}
		}},
	} {
		b.Run(way.name, func(b *testing.B) {
			for b.Loop() {
				way.do(b)
			}
			b.ReportMetric(float64(info.Size())/(1<<20), "MiB")
		})
	}
}
