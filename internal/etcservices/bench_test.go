package etcservices_test

import (
	"fmt"
	"io"
	"math/rand/v2"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/portd/portd/internal/etcservices"
	"github.com/portd/portd/internal/ianadb"
)

var sink int

// The same questions, drawn at random from the services in the file, to the C library reading the file and to the
// registry in memory, in turns.
func BenchmarkLookup(b *testing.B) {
	db := ianadb.Embedded()
	file, _ := ianaFile()
	services := parse(b, file)
	for _, by := range []struct {
		what   string
		of     func(servent) question
		lookup func(question, ianadb.Protocol)
	}{
		{
			"port", func(s servent) question { return question{port: s.Port, proto: s.Proto} },
			func(q question, p ianadb.Protocol) {
				for name := range db.Names(q.port, p) {
					sink += len(name)
				}
			},
		},
		{
			"name", func(s servent) question { return question{name: s.Names[0], proto: s.Proto} },
			func(q question, p ianadb.Protocol) {
				for r := range db.ByName(q.name, p) {
					ports, _ := r.Ports()
					sink += int(ports.First)
				}
			},
		},
	} {
		b.Run("by="+by.what, func(b *testing.B) {
			g := newGlibc(b, file)
			rng := rand.New(rand.NewPCG(1, 2))
			qs := make([]question, 100)
			ps := make([]ianadb.Protocol, len(qs))
			var in strings.Builder
			for i := range qs {
				qs[i] = by.of(services[rng.IntN(len(services))])
				ps[i], _ = ianadb.ParseProtocol(qs[i].proto)
				fmt.Fprintln(&in, qs[i])
			}
			const rounds = 10_000
			var glibc, portd float64
			for b.Loop() {
				ns, err := strconv.ParseFloat(g.run(b, in.String(), "time", "1")[0], 64)
				if err != nil {
					b.Fatal(err)
				}
				glibc += ns
				start := time.Now()
				for range rounds {
					for i, q := range qs {
						by.lookup(q, ps[i])
					}
				}
				portd += float64(time.Since(start)) / rounds / float64(len(qs))
			}
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(glibc/float64(b.N), "ns/glibc")
			b.ReportMetric(portd/float64(b.N), "ns/portd")
			b.ReportMetric(glibc/portd, "glibc/portd")
		})
	}
}

func BenchmarkWrite(b *testing.B) {
	db := ianadb.Embedded()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := etcservices.Write(io.Discard, nil, entries(db), etcservices.Head{}); err != nil {
			b.Fatal(err)
		}
	}
}
