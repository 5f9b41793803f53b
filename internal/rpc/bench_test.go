package rpc_test

import (
	"io"
	"net/http"
	"slices"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	pb "github.com/portd/portd/proto/portd/v1"
)

// BenchmarkUnary makes the same call by gRPC and by REST, each on a connection that stays, and reports how much longer REST
// takes: until the JSON is there, and until it is a message again. They take turns a hundred calls at a time, for what a
// server still does after an answer (gRPC more of it) is then its own cost and not the other one's. The figures are
// medians of those turns, which stand still while other programs come and go.
func BenchmarkUnary(b *testing.B) {
	h := start(b, nil)
	conn, rest := h.grpc(b), h.rest(b)
	services, daemon := pb.NewServiceRegistryServiceClient(conn), pb.NewDaemonServiceClient(conn)
	calls := []struct {
		name   string
		grpc   func() error
		path   string
		answer proto.Message
	}{
		{
			"GetStatus",
			func() error { _, err := daemon.GetStatus(b.Context(), &pb.GetStatusRequest{}); return err },
			"/v1/status", &pb.GetStatusResponse{},
		},
		{
			"LookupServices",
			func() error {
				_, err := services.LookupServices(b.Context(), &pb.LookupServicesRequest{Query: &pb.LookupServicesRequest_Port{Port: 443}})
				return err
			},
			"/v1/services:lookup?port=443", &pb.LookupServicesResponse{},
		},
	}
	for _, c := range calls {
		get := func(answer proto.Message) func() error {
			return func() error {
				resp, err := rest.Get("http://portd" + c.path)
				if err != nil {
					return err
				}
				defer resp.Body.Close()
				text, err := io.ReadAll(resp.Body)
				if err != nil || resp.StatusCode != http.StatusOK {
					b.Fatalf("%s %s (%v)", resp.Status, text, err)
				}
				if answer == nil {
					return nil
				}
				return protojson.Unmarshal(text, answer)
			}
		}
		b.Run(c.name, func(b *testing.B) {
			const turn = 100
			ways := []func() error{c.grpc, get(nil), get(c.answer)}
			took := make([][]time.Duration, len(ways))
			for n := 0; b.Loop(); n++ {
				if n%turn != 0 {
					continue
				}
				for i, call := range ways {
					begin := time.Now()
					for range turn {
						if err := call(); err != nil {
							b.Fatal(err)
						}
					}
					took[i] = append(took[i], time.Since(begin)/turn)
				}
			}
			grpc := median(took[0])
			b.ReportMetric(grpc, "grpc-ns")
			b.ReportMetric(median(took[1]), "rest-ns")
			b.ReportMetric(median(took[1])/grpc, "rest/grpc")
			b.ReportMetric(median(took[2])/grpc, "decoded/grpc")
			b.ReportMetric(0, "ns/op") // of all together, which nobody asks for
		})
	}
}

// BenchmarkLookup asks for a port that is asked for all the time, and reports how much longer that takes than a call that does
// nothing, the health check of the same server. They take turns as in BenchmarkUnary; the figure is the median of the turns'
// ratios. The client's work counts too: most of it is to make messages of the answer, which "unread" leaves out.
func BenchmarkLookup(b *testing.B) {
	conn := start(b, nil).grpc(b)
	health, services := grpc_health_v1.NewHealthClient(conn), pb.NewServiceRegistryServiceClient(conn)
	nothing := &grpc_health_v1.HealthCheckRequest{}
	for _, bb := range []struct {
		name     string
		protocol pb.Protocol
		opts     []grpc.CallOption
	}{
		{"all", pb.Protocol_PROTOCOL_UNSPECIFIED, nil},
		{"tcp", pb.Protocol_PROTOCOL_TCP, nil},
		{"unread", pb.Protocol_PROTOCOL_UNSPECIFIED, []grpc.CallOption{grpc.ForceCodecV2(unread{})}},
	} {
		b.Run(bb.name, func(b *testing.B) {
			port := &pb.LookupServicesRequest{Query: &pb.LookupServicesRequest_Port{Port: 443}, Protocol: bb.protocol}
			ways := []func() error{
				func() error { _, err := health.Check(b.Context(), nothing, bb.opts...); return err },
				func() error { _, err := services.LookupServices(b.Context(), port, bb.opts...); return err },
			}
			const turn = 100
			var empty, lookup []time.Duration
			var ratios []float64
			for n := 0; b.Loop(); n++ {
				if n%turn != 0 {
					continue
				}
				var took [2]time.Duration
				for k := range ways {
					i := (k + n/turn) % 2 // neither is always the one that follows
					begin := time.Now()
					for range turn {
						if err := ways[i](); err != nil {
							b.Fatal(err)
						}
					}
					took[i] = time.Since(begin) / turn
				}
				empty, lookup = append(empty, took[0]), append(lookup, took[1])
				ratios = append(ratios, float64(took[1])/float64(took[0]))
			}
			slices.Sort(ratios)
			b.ReportMetric(median(empty), "empty-ns")
			b.ReportMetric(median(lookup), "lookup-ns")
			b.ReportMetric(ratios[len(ratios)/2], "lookup/empty")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// unread is a codec that leaves answers as they came.
type unread struct{}

func (unread) Name() string { return "proto" }

func (unread) Marshal(v any) (mem.BufferSlice, error) {
	b, err := proto.Marshal(v.(proto.Message))
	return mem.BufferSlice{mem.SliceBuffer(b)}, err
}

func (unread) Unmarshal(mem.BufferSlice, any) error { return nil }

// median is in nanoseconds.
func median(all []time.Duration) float64 {
	slices.Sort(all)
	return float64(all[len(all)/2].Nanoseconds())
}
