package daemon_test

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"testing"

	"github.com/portd/portd/client"
	"github.com/portd/portd/internal/nstest"
	pb "github.com/portd/portd/proto/portd/v1"
)

// TestNoneLeft has strangers in the way of single ports, of runs, and of programs that will bind by themselves.
func TestNoneLeft(t *testing.T) {
	nstest.Need(t)
	for _, tt := range []struct {
		mode  pb.Mode
		count uint32
		given int
		says  string
	}{
		{pb.Mode_MODE_HELD, 1, 14, "no free port for tcp in 20000-20019: of 20 ports 15 are reserved here, 5 in use by other programs"},
		{pb.Mode_MODE_RECORDED, 1, 14, "no free port for tcp in 20000-20019: of 20 ports 15 are reserved here, 5 in use by other programs"},
		{pb.Mode_MODE_HELD, 8, 1, "no free run of 8 ports for tcp in 20000-20019: of 20 ports 9 are reserved here, 5 in use by other programs"},
		{pb.Mode_MODE_RECORDED, 8, 1, "no free run of 8 ports for tcp in 20000-20019: of 20 ports 9 are reserved here, 5 in use by other programs"},
	} {
		t.Run(fmt.Sprintf("%v %d", tt.mode, tt.count), func(t *testing.T) {
			_, c := start(t)
			reserve(t, c, "", "tcp/127.0.0.1:20019")
			for _, port := range []int{20000, 20001, 20002, 20003, 20004} {
				stranger, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
				if err != nil {
					t.Fatal(err)
				}
				defer stranger.Close()
			}
			spec := &pb.EndpointSpec{Protocols: []pb.Protocol{pb.Protocol_PROTOCOL_TCP}, Choice: &pb.EndpointSpec_Any{Any: &pb.AnyPorts{
				Within: &pb.PortRange{First: 20000, Last: 20019}, Count: tt.count,
			}}}
			given := 0
			var err error
			for ; err == nil; given++ {
				_, err = c.Reservations.Reserve(t.Context(), &pb.ReserveRequest{Spec: &pb.ReservationSpec{
					Endpoints: []*pb.EndpointSpec{spec}, Mode: tt.mode,
				}})
			}
			if !errors.Is(err, client.ErrExhausted) || given-1 != tt.given {
				t.Fatalf("%d given, want %d: %v", given-1, tt.given, err)
			}
			culprit := fmt.Sprintf("pid %d", os.Getpid())
			if !strings.Contains(err.Error(), tt.says) || !strings.Contains(err.Error(), culprit) {
				t.Errorf("%v\ndoes not say %q and %q", err, tt.says, culprit)
			}
			if tt.count == 1 {
				return
			}
			if !strings.Contains(err.Error(), "6 free, at most ") {
				t.Errorf("%v\ndoes not say that 6 are free", err)
			}
		})
	}
}
