package daemon_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/client"
	"github.com/portd/portd/internal/nstest"
	"github.com/portd/portd/internal/portdtest"
	pb "github.com/portd/portd/proto/portd/v1"
)

// holding is a worker that keeps every connection that it gets, and answers it with one byte. Its input ends it.
func holding(args []string) error {
	ln, err := client.ListenConfig{Portd: client.Options{Socket: args[0]}}.Listen(context.Background(), args[1])
	if err != nil {
		return err
	}
	fmt.Println("serves")
	go func() {
		var all []net.Conn // else they are closed by the garbage collector
		for {
			c, err := ln.Accept()
			if err != nil {
				for _, c := range all {
					_ = c.Close()
				}
				return
			}
			_, _ = c.Write([]byte{1})
			all = append(all, c)
		}
	}()
	_, _ = io.Copy(io.Discard, os.Stdin)
	return ln.Close()
}

// hold opens count connections to a worker in a process of its own, each of which has been answered.
func hold(b testing.TB, d *portdtest.Daemon, endpoint string, to string, count int) []net.Conn {
	b.Helper()
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		b.Fatal(err)
	}
	if limit.Cur < uint64(count)+500 {
		b.Skipf("needs %d descriptors, may have %d", count+500, limit.Cur)
	}
	worker := acting("holding", d.Socket, endpoint)
	in, err := worker.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	out, err := worker.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := worker.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		in.Close()
		_ = worker.Wait()
	})
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "serves\n" {
		b.Fatal(line, err)
	}
	conns := make([]net.Conn, count)
	for i := range conns {
		if conns[i], err = net.Dial("tcp", to); err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { conns[i].Close() })
	}
	for _, c := range conns {
		if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
			b.Fatal(err)
		}
	}
	return conns
}

// list is the whole list of connections, page by page as portctl asks for it.
func list(b testing.TB, cl *client.Client, req *pb.ListConnectionsRequest) (all []*pb.Connection) {
	b.Helper()
	for req.PageToken = ""; ; {
		page, err := cl.Handoff.ListConnections(b.Context(), req)
		if err != nil {
			b.Fatal(err)
		}
		all = append(all, page.GetConnections()...)
		if req.PageToken = page.GetNextPageToken(); req.PageToken == "" {
			return all
		}
	}
}

// BenchmarkConnections lists 10,000 open connections: the whole call, to the last page, decoded. Their clients and portd are in this
// process, and both are in the processor time. The other ends of the connections are in the kernel's table, too.
func BenchmarkConnections(b *testing.B) {
	nstest.Need(b)
	const count = 10_000
	d := portdtest.Start(b)
	hold(b, d, "tcp/127.0.0.1:12345", "127.0.0.1:12345", count)
	cl := d.Client(b)
	for _, bench := range []struct {
		name string
		req  *pb.ListConnectionsRequest
		want int
	}{
		{"all", &pb.ListConnectionsRequest{PageSize: 5000}, count},
		{"open", &pb.ListConnectionsRequest{PageSize: 5000, Open: true}, count},
		{"in pages of 1000", &pb.ListConnectionsRequest{}, count},
		{"of no worker", &pb.ListConnectionsRequest{WorkerId: "wrk_none"}, 0},
	} {
		b.Run(bench.name, func(b *testing.B) {
			var took []float64
			var before, after unix.Rusage
			_ = unix.Getrusage(unix.RUSAGE_SELF, &before)
			for b.Loop() {
				start := time.Now()
				all := list(b, cl, bench.req)
				took = append(took, float64(time.Since(start).Microseconds())/1000)
				if len(all) != bench.want {
					b.Fatalf("%d, want %d", len(all), bench.want)
				}
				for _, c := range all {
					if c.GetState() != "ESTABLISHED" || c.GetBytesSent() != 1 {
						b.Fatal(c)
					}
				}
			}
			_ = unix.Getrusage(unix.RUSAGE_SELF, &after)
			used := time.Duration(after.Utime.Nano() + after.Stime.Nano() - before.Utime.Nano() - before.Stime.Nano())
			b.ReportMetric(float64(used.Microseconds())/1000/float64(len(took)), "cpu-ms")
			slices.Sort(took)
			b.ReportMetric(took[len(took)/2], "ms")
			b.ReportMetric(took[len(took)-1], "worst-ms")
		})
	}
}
