package localports_test

import (
	"fmt"
	"testing"

	"github.com/portd/portd/internal/registry"
)

// BenchmarkKeep is one port more and one less, each waited for, beside others that are kept: in few runs, in many, and in as
// many as there can be.
func BenchmarkKeep(b *testing.B) {
	for _, tt := range []struct {
		ports int
		kept  func(port int) bool
	}{
		{100, func(port int) bool { return port >= 20000 && port < 20100 }},
		{60000, func(port int) bool { return port%12 != 0 }},
		{32767, func(port int) bool { return port%2 == 1 }},
	} {
		b.Run(fmt.Sprintf("ports=%d", tt.ports), func(b *testing.B) {
			k := start(b, fresh(b, "22"))
			for port := 1; port < 65535; port++ {
				if tt.kept(port) {
					k.Keep(registry.PortRange{First: uint16(port), Last: uint16(port)})
				}
			}
			k.settle(b)
			one := registry.PortRange{First: 24000, Last: 24000}
			if tt.kept(24000) {
				b.Fatal("24000 is kept already")
			}
			b.ResetTimer()
			for range b.N {
				k.Keep(one)
				k.settle(b)
				k.LetGo(one)
				k.settle(b)
			}
			b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(2*b.N), "µs/change")
			b.StopTimer()
			k.stop()
			if got := sysctl(b); got != "22" {
				b.Errorf("left behind: %.100s", got)
			}
		})
	}
}

// BenchmarkStart is 60,000 ports that are kept at once, and given back.
func BenchmarkStart(b *testing.B) {
	record := fresh(b, "22")
	for range b.N {
		k := start(b, record)
		for port := 1; port < 65535; port++ {
			if port%12 != 0 {
				k.Keep(registry.PortRange{First: uint16(port), Last: uint16(port)})
			}
		}
		k.settle(b)
		k.stop()
	}
}
