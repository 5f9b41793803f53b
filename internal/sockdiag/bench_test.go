package sockdiag_test

import (
	"testing"

	"github.com/portd/portd/internal/nstest"
	"github.com/portd/portd/internal/sockdiag"
	"golang.org/x/sys/unix"
)

// crowd makes 5,000 sockets: listening, bound-only and UDP in turn.
func crowd(b *testing.B) uint16 {
	b.Helper()
	nstest.Need(b)
	const count = 5000
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		b.Fatal(err)
	}
	if limit.Cur < count+100 {
		b.Skipf("needs %d descriptors, may have %d", count, limit.Cur)
	}
	var fd int
	for i := range count {
		switch i % 3 {
		case 0:
			fd = open(b, datagram, 0, any4)
		case 1:
			fd = open(b, stream, 0, v4)
		case 2:
			fd = listen(b, open(b, stream, 0, any6, dual))
		}
	}
	return local(b, fd).Port()
}

func BenchmarkList(b *testing.B) {
	port := crowd(b)
	tcp := []sockdiag.Protocol{sockdiag.TCP}
	holding := []sockdiag.State{sockdiag.Listening, sockdiag.BoundOnly}
	for _, bench := range []struct {
		name   string
		filter sockdiag.Filter
	}{
		{"everything", sockdiag.Filter{}},
		{"one port", sockdiag.Filter{First: port}},
		{"one port, tcp, held", sockdiag.Filter{Protocols: tcp, States: holding, First: port}},
		{"one port, udp", sockdiag.Filter{Protocols: []sockdiag.Protocol{sockdiag.UDP}, First: port}},
	} {
		b.Run(bench.name, func(b *testing.B) {
			sockets := 0
			for b.Loop() {
				list, err := sockdiag.List(b.Context(), bench.filter)
				if err != nil {
					b.Fatal(err)
				}
				sockets = len(list)
			}
			b.ReportMetric(float64(sockets), "sockets")
		})
	}
}

func BenchmarkOwners(b *testing.B) {
	crowd(b)
	fd := open(b, stream, 0, v4)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		owners, _, err := sockdiag.Owners(b.Context(), st.Ino)
		if err != nil || len(owners[st.Ino]) != 1 {
			b.Fatal(owners, err)
		}
	}
}
