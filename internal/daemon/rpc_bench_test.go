package daemon_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"

	"github.com/portd/portd/internal/nstest"
	"github.com/portd/portd/internal/portdtest"
	pb "github.com/portd/portd/proto/portd/v1"
)

// BenchmarkReserveCalls makes reservations of a running portd, each durable and bound, and beside them calls that do nothing (the
// health check), over the same connection and with as many callers, in turns. The ratio of their rates is the median of the
// turns', for other programs use the processors and the disk too; beside it, what processor time each takes of this process, in
// which the callers and portd are. The ports are released while the clock stands.
func BenchmarkReserveCalls(b *testing.B) {
	nstest.Need(b)
	d := portdtest.New(b)
	d.State = filepath.Join(benchDir(b), "state")
	if err := os.Mkdir(d.State, 0o700); err != nil {
		b.Fatal(err)
	}
	d.Restart(b)
	conn, err := grpc.NewClient("unix:"+d.Socket, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithStaticStreamWindowSize(1<<20), grpc.WithStaticConnWindowSize(1<<20)) // as package client has it
	if err != nil {
		b.Fatal(err)
	}
	defer conn.Close()
	reservations, health := pb.NewReservationServiceClient(conn), grpc_health_v1.NewHealthClient(conn)
	nothing := &grpc_health_v1.HealthCheckRequest{}
	any := spec(b, "tcp/any")
	for _, c := range []struct {
		name string
		spec func(i int) *pb.ReservationSpec
	}{
		{"exact", func(i int) *pb.ReservationSpec { return spec(b, fmt.Sprintf("tcp/%d", 10000+i)) }},
		{"recorded", func(i int) *pb.ReservationSpec {
			recorded := spec(b, fmt.Sprintf("tcp/%d", 10000+i))
			recorded.Mode = pb.Mode_MODE_RECORDED
			return recorded
		}},
		{"any", func(int) *pb.ReservationSpec { return any }},
	} {
		for _, callers := range []int{1, 64} {
			b.Run(fmt.Sprintf("%s/callers=%d", c.name, callers), func(b *testing.B) {
				var ratios, empty, rates []float64
				var cpu, emptyCPU time.Duration
				for done := 0; done < b.N; {
					n := min(16*callers, b.N-done)
					done += n
					ids := make([]string, n)
					reqs := make([]*pb.ReserveRequest, n)
					for i := range reqs {
						reqs[i] = &pb.ReserveRequest{Spec: c.spec(i)}
					}
					begin := cpuTime(b)
					calls := callAll(b, callers, n, func(ctx context.Context, _ int) error {
						_, err := health.Check(ctx, nothing)
						return err
					})
					between := cpuTime(b)
					reserving := callAll(b, callers, n, func(ctx context.Context, i int) error {
						got, err := reservations.Reserve(ctx, reqs[i])
						ids[i] = got.GetReservation().GetId()
						return err
					})
					b.StopTimer()
					cpu += cpuTime(b) - between
					emptyCPU += between - begin
					callAll(b, 64, n, func(ctx context.Context, i int) error {
						_, err := reservations.Release(ctx, &pb.ReleaseRequest{Reservation: ids[i]})
						return err
					})
					b.StartTimer()
					if b.Failed() {
						return
					}
					ratios = append(ratios, float64(calls)/float64(reserving))
					empty = append(empty, float64(n)/calls.Seconds())
					rates = append(rates, float64(n)/reserving.Seconds())
				}
				for _, all := range [][]float64{ratios, empty, rates} {
					slices.Sort(all)
				}
				b.ReportMetric(ratios[len(ratios)/2], "of-empty-calls")
				b.ReportMetric(empty[len(empty)/2], "empty/s")
				b.ReportMetric(rates[len(rates)/2], "reservations/s")
				b.ReportMetric(float64(cpu.Microseconds())/float64(b.N), "cpu-µs/reservation")
				b.ReportMetric(float64(emptyCPU.Microseconds())/float64(b.N), "cpu-µs/empty")
				b.ReportMetric(0, "ns/op")
			})
		}
	}
}

// callAll makes n calls, so many at a time.
func callAll(b *testing.B, callers, n int, call func(ctx context.Context, i int) error) time.Duration {
	b.Helper()
	var next atomic.Int64
	var all sync.WaitGroup
	begin := time.Now()
	for range callers {
		all.Go(func() {
			for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
				if err := call(b.Context(), i); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	all.Wait()
	return time.Since(begin)
}

// cpuTime is the processor time of this process so far.
func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
