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
	tcp := []uint16{server.Port(), local(t, dialled).Port(), local(t, open(t, stream, 0, any6, dual)).Port()}
	udp := []uint16{local(t, open(t, datagram, 0, any4)).Port(), local(t, open(t, datagram, 0, any6, dual)).Port()}
	for p, mine := range map[sockdiag.Protocol][]uint16{sockdiag.TCP: tcp, sockdiag.UDP: udp} {
		lowest := slices.Min(mine)
		for _, f := range []sockdiag.Filter{{}, {First: mine[0]}, {First: 1, Last: lowest}, {First: lowest + 1, Last: 65535}} {
			f.Protocols = []sockdiag.Protocol{p}
			sockets, err := sockdiag.List(t.Context(), f)
			if err != nil {
				t.Fatal(err)
			}
			var listed, got []uint16
			for _, s := range sockets {
				listed = append(listed, s.Local.Port())
			}
			if err := sockdiag.Ports(t.Context(), f, func(port uint16) { got = append(got, port) }); err != nil {
				t.Fatal(err)
			}
			slices.Sort(listed)
			slices.Sort(got)
			if diff := cmp.Diff(listed, got); diff != "" {
				t.Errorf("%v %+v (-listed +ports):\n%s", p, f, diff)
			}
			for _, port := range mine {
				within := f.First == 0 || f.First <= port && port <= max(f.First, f.Last)
				if slices.Contains(got, port) != within {
					t.Errorf("%v %+v: is %d in %v? want %v", p, f, port, got, within)
				}
			}
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
