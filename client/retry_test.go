package client_test

import (
	"errors"
	"io"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/portd/portd/client"
	pb "github.com/portd/portd/proto/portd/v1"
)

// What would do something else the second time is asked for once, however often portd is away; the rest is repeated.
func TestRepeated(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	ln, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	asked := map[string]int{}
	away := grpc.NewServer(grpc.UnknownServiceHandler(func(_ any, stream grpc.ServerStream) error {
		method, _ := grpc.MethodFromServerStream(stream)
		mu.Lock()
		defer mu.Unlock()
		asked[method]++
		return status.Error(codes.Unavailable, "away")
	}))
	var serving sync.WaitGroup
	serving.Go(func() { _ = away.Serve(ln) })
	t.Cleanup(func() {
		away.Stop()
		serving.Wait()
	})
	c, err := client.Dial(t.Context(), client.Options{Socket: socket})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	services, ctx := c.Services, t.Context()
	for method, call := range map[string]func() error{
		"AddServices":    func() error { _, err := services.AddServices(ctx, &pb.AddServicesRequest{}); return err },
		"ListServices":   func() error { _, err := services.ListServices(ctx, &pb.ListServicesRequest{}); return err },
		"EditServices":   func() error { _, err := services.EditServices(ctx, &pb.EditServicesRequest{}); return err },
		"RemoveServices": func() error { _, err := services.RemoveServices(ctx, &pb.RemoveServicesRequest{}); return err },
		"UndoImport":     func() error { _, err := services.UndoImport(ctx, &pb.UndoImportRequest{}); return err },
		"ImportServices": func() error { _, err := c.ImportServices(ctx, strings.NewReader("x"), nil); return err },
	} {
		// This server answers before it has read the request, which gRPC sometimes notices while it sends that.
		if err := call(); !errors.Is(err, client.ErrUnavailable) || errors.Is(err, io.EOF) {
			t.Errorf("%s: %v", method, err)
		}
	}
	want := map[string]int{"AddServices": 5, "ListServices": 5, "ImportServices": 5, "EditServices": 1, "RemoveServices": 1, "UndoImport": 1}
	got := map[string]int{}
	mu.Lock()
	defer mu.Unlock()
	for method := range want {
		got[method] = asked["/portd.v1.ServiceRegistryService/"+method]
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}
