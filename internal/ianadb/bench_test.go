package ianadb_test

import (
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

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

func BenchmarkDirectory(b *testing.B) {
	for own, d := range map[string]ianadb.Directory{
		"none": directory(b),
		"some": directory(b, "http 80 tcp", "orders 8123 tcp", "intranet 8124-8130 "),
	} {
		for _, port := range []uint16{443, 80, 8123} {
			b.Run(fmt.Sprintf("ByPort/own=%s/%d,tcp", own, port), func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					for r := range d.ByPort(port, ianadb.TCP) {
						sink += len(r.Name())
					}
				}
			})
		}
		for _, name := range []string{"https", "HTTP-Alt", "orders", "htpps"} {
			b.Run(fmt.Sprintf("ByName/own=%s/%s", own, name), func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					for r := range d.ByName(name, ianadb.TCP) {
						sink += len(r.Name())
					}
				}
			})
		}
		b.Run("Status/own="+own, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				sink += int(d.Status(8123, ianadb.TCP))
			}
		})
	}
	d := directory(b)
	for what, f := range map[string]func(){
		"ByServiceCode": func() {
			for r := range d.ByServiceCode(1145656131) {
				sink += len(r.Name())
			}
		},
		"ByPorts": func() {
			for r := range d.ByPorts(everyPort, ianadb.AnyProtocol) {
				sink += len(r.Name())
			}
		},
		"Free": func() { sink += len(d.Free(everyPort, ianadb.TCP, ianadb.UDP)) },
		"Near": func() { sink += len(d.Near("htpps")) },
		"NearLong": func() {
			sink += len(d.Near("server-services-x"))
		},
		"Prepare": func() {
			d := ianadb.Directory{IANA: ianadb.Embedded()}
			d.Prepare()
		},
	} {
		b.Run(what, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				f()
			}
		})
	}
}

func BenchmarkSearch(b *testing.B) {
	d := directory(b)
	d.Prepare()
	for _, words := range []string{"mail tls", "http", "postgres", "e"} {
		b.Run(words, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				_, total := d.Search(words, ianadb.AnyProtocol, 0, 50)
				sink += total
			}
		})
	}
	// Of each nasty search the median time, and of these the worst: what no search takes longer than.
	b.Run("worst", func(b *testing.B) {
		var worst time.Duration
		var which string
		for b.Loop() {
			worst = 0
			for _, words := range nasty {
				var times []time.Duration
				for range 9 {
					start := time.Now()
					_, total := d.Search(words, ianadb.AnyProtocol, 0, 50)
					times = append(times, time.Since(start))
					sink += total
				}
				if slices.Sort(times); times[4] > worst {
					worst, which = times[4], words
				}
			}
		}
		b.ReportMetric(float64(worst.Microseconds()), "worst-µs")
		b.Logf("worst: %v, %.40q", worst, which)
	})
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
	entries := entriesOf(ianadb.Embedded())
	b.ReportAllocs()
	for b.Loop() {
		if _, err := ianadb.Compile(entries, ianadb.Source{}); err != nil {
			b.Fatal(err)
		}
	}
}
