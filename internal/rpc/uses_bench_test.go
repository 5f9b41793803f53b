package rpc_test

import (
	"errors"
	"io"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/nstest"
	pb "github.com/portd/portd/proto/portd/v1"
)

// BenchmarkListPortUses lists 10,000 foreign sockets with their processes, from asking to the last part: TCP sockets that listen
// and that are only bound, and UDP, on as many ports.
func BenchmarkListPortUses(b *testing.B) {
	nstest.Need(b)
	const count = 10_000
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		b.Fatal(err)
	}
	if limit.Cur < count+200 {
		b.Skipf("needs %d descriptors, may have %d", count+200, limit.Cur)
	}
	conn := pb.NewPortServiceClient(start(b, nil).grpc(b))
	loopback := netip.MustParseAddr("127.0.0.1").As4()
	for i := range count {
		typ := unix.SOCK_STREAM
		if i%3 == 0 {
			typ = unix.SOCK_DGRAM
		}
		fd, err := unix.Socket(unix.AF_INET, typ|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { unix.Close(fd) })
		if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: loopback, Port: 10_000 + i}); err != nil {
			b.Fatal(err)
		}
		if i%3 == 1 {
			if err := unix.Listen(fd, 1); err != nil {
				b.Fatal(err)
			}
		}
	}
	for b.Loop() {
		stream, err := conn.ListPortUses(b.Context(), &pb.ListPortUsesRequest{Ports: &pb.PortRange{First: 10_000, Last: 10_000 + count - 1}})
		if err != nil {
			b.Fatal(err)
		}
		known := 0
		for {
			part, err := stream.Recv()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				b.Fatal(err)
			}
			for _, u := range part.GetUses() {
				known += len(u.GetHolder().GetProcesses())
			}
		}
		if known != count {
			b.Fatalf("%d sockets with their processes, want %d", known, count)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Milliseconds())/float64(b.N), "ms/list")
}
