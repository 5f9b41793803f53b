package sockdiag_test

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/portd/portd/internal/nstest"
	"github.com/portd/portd/internal/sockdiag"
)

// Ports sees what List sees, in every state that holds a port.
func TestPorts(t *testing.T) {
	nstest.Need(t)
	server := local(t, listen(t, open(t, stream, 0, v4)))
	dialled := open(t, stream, 0, v4)
	connect(t, dialled, server)
	bound := open(t, stream, 0, any6, dual)
	datagrams := open(t, datagram, 0, any4)
	var last uint16
	for _, p := range []sockdiag.Protocol{sockdiag.TCP, sockdiag.UDP} {
		for _, f := range []sockdiag.Filter{{}, {First: server.Port()}, {First: 1, Last: last}} {
			f.Protocols = []sockdiag.Protocol{p}
			sockets, err := sockdiag.List(t.Context(), f)
			if err != nil {
				t.Fatal(err)
			}
			var want, got []uint16
			for _, s := range sockets {
				want = append(want, s.Local.Port())
			}
			if err := sockdiag.Ports(t.Context(), f, func(port uint16) { got = append(got, port) }); err != nil {
				t.Fatal(err)
			}
			slices.Sort(want)
			slices.Sort(got)
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("%v %+v (-listed +ports):\n%s", p, f, diff)
			}
			if f.First != 0 || f.Last != 0 {
				continue
			}
			mine := []uint16{server.Port(), local(t, dialled).Port(), local(t, bound).Port()}
			if p == sockdiag.UDP {
				mine = []uint16{local(t, datagrams).Port()}
			}
			for _, port := range mine {
				if !slices.Contains(got, port) {
					t.Errorf("%v %d is missing in %v", p, port, got)
				}
			}
			last = slices.Min(got)
		}
	}
}

func BenchmarkPorts(b *testing.B) {
	crowd(b)
	sockets := 0
	for b.Loop() {
		sockets = 0
		if err := sockdiag.Ports(b.Context(), sockdiag.Filter{}, func(uint16) { sockets++ }); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(sockets), "sockets")
}
