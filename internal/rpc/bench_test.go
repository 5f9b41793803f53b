package rpc_test

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strconv"
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
// nothing, the health check of the same server on the same connection. The client's work counts too: most of it is to make
// messages of the answer, which "unread" leaves out. A client is another process than portd; "together" they are one, which
// spares them the kernel's switches between the two, so that what they compute is a greater part of it.
func BenchmarkLookup(b *testing.B) {
	h := start(b, nil)
	for _, name := range []string{"all", "tcp", "unread"} {
		b.Run(name, func(b *testing.B) { compareApart(b, h.socket, name) })
		b.Run(name+"/together", func(b *testing.B) {
			c, err := compare(b.Context(), h.socket, name, b.N)
			c.report(b, err)
		})
	}
}

// compareApart compares from a process of its own.
func compareApart(b *testing.B, socket, name string) {
	cmd := exec.CommandContext(b.Context(), "/proc/self/exe", name, strconv.Itoa(b.N))
	cmd.Env = append(os.Environ(), envCompare+"="+socket)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	var c comparison
	if err == nil {
		err = json.Unmarshal(out, &c)
	}
	c.report(b, err)
}

// A comparison is of medians, in nanoseconds.
type comparison struct{ Empty, Lookup float64 }

func (c comparison) report(b *testing.B, err error) {
	if err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(c.Empty, "empty-ns")
	b.ReportMetric(c.Lookup, "lookup-ns")
	b.ReportMetric(c.Lookup/c.Empty, "lookup/empty")
	b.ReportMetric(0, "ns/op")
}

// compare makes about n calls of each kind, twenty at a time, and measures each one: those that another program gets between
// are then a few of many.
func compare(ctx context.Context, socket, name string, n int) (comparison, error) {
	// As package client has it.
	conn, err := dialGRPC(socket, grpc.WithStaticStreamWindowSize(1<<20), grpc.WithStaticConnWindowSize(1<<20))
	if err != nil {
		return comparison{}, err
	}
	defer conn.Close()
	health, services := grpc_health_v1.NewHealthClient(conn), pb.NewServiceRegistryServiceClient(conn)
	nothing := &grpc_health_v1.HealthCheckRequest{}
	whois, isWhois := whoisOf(name)
	port := &pb.LookupServicesRequest{Query: &pb.LookupServicesRequest_Port{Port: 443}}
	var opts []grpc.CallOption
	switch name {
	case "tcp":
		port.Protocol = pb.Protocol_PROTOCOL_TCP
	case "unread":
		opts = append(opts, grpc.ForceCodecV2(unread{}))
	}
	ways := []func() error{
		func() error { _, err := health.Check(ctx, nothing, opts...); return err },
		func() error { _, err := services.LookupServices(ctx, port, opts...); return err },
	}
	if isWhois {
		ports := pb.NewPortServiceClient(conn)
		ways[1] = func() error { _, err := ports.Whois(ctx, whois); return err }
	}
	const turn = 20
	var took [2][]time.Duration
	for k := range max(n/turn, 1) {
		for j := range ways {
			i := (j + k) % 2 // neither is always the one that follows
			for range turn {
				begin := time.Now()
				if err := ways[i](); err != nil {
					return comparison{}, err
				}
				took[i] = append(took[i], time.Since(begin))
			}
		}
	}
	return comparison{median(took[0]), median(took[1])}, nil
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
