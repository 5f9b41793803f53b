package ianadb_test

import (
	"bytes"
	"fmt"
	"os"
	"testing"

	"github.com/portd/portd/internal/ianadb"
)

var sink int

func BenchmarkByPort(b *testing.B) {
	db := ianadb.Embedded()
	for _, port := range []uint16{443, 80, 6005, 50000} {
		b.Run(fmt.Sprint(port), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				for e := range db.ByPort(port, ianadb.AnyProtocol) {
					sink += len(e.Name())
				}
			}
		})
	}
	b.Run("443,tcp", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			for e := range db.ByPort(443, ianadb.TCP) {
				sink += len(e.Name())
			}
		}
	})
	b.Run("each in turn", func(b *testing.B) {
		b.ReportAllocs()
		var port uint16
		for b.Loop() {
			for e := range db.ByPort(port, ianadb.AnyProtocol) {
				sink += len(e.Name())
			}
			port += 7919 // a prime: all ports, far from one another
		}
	})
}

func BenchmarkByName(b *testing.B) {
	db := ianadb.Embedded()
	for _, name := range []string{"https", "HTTP-Alt", "1password", "dec_dlm", "htpps"} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				for e := range db.ByName(name, ianadb.AnyProtocol) {
					sink += len(e.Name())
				}
			}
		})
	}
}

func BenchmarkStatus(b *testing.B) {
	db := ianadb.Embedded()
	b.ReportAllocs()
	var port uint16
	for b.Loop() {
		sink += int(db.Status(port, ianadb.UDP))
		port += 7919
	}
}

func BenchmarkUnassigned(b *testing.B) {
	db := ianadb.Embedded()
	b.ReportAllocs()
	var port uint16
	for b.Loop() {
		if db.Unassigned(port, ianadb.TCP) {
			sink++
		}
		port += 7919
	}
}

func BenchmarkEmbedded(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		sink += ianadb.Embedded().Len()
	}
}

func BenchmarkOpen(b *testing.B) {
	blob, err := os.ReadFile("registry.bin")
	if err != nil {
		b.Fatal(err)
	}
	s := string(blob)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := ianadb.Open(s); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkCompile(b *testing.B) {
	csv, err := os.ReadFile("service-names-port-numbers.csv")
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		entries, err := ianadb.ParseCSV(bytes.NewReader(csv))
		if err != nil {
			b.Fatal(err)
		}
		if _, err := ianadb.Compile(entries, ianadb.Source{}); err != nil {
			b.Fatal(err)
		}
	}
}
