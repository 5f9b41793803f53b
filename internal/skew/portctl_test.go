package skew_test

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/portd/portd/client"
	pb "github.com/portd/portd/proto/portd/v1"
)

// A release's portctl does with the other release's portd whatever it does with its own.
func TestPortctl(t *testing.T) {
	directions(t, func(t *testing.T, ctl, daemon *release) {
		s := open(t)
		s.install(daemon)
		s.start()
		for _, tt := range []struct{ args, says string }{
			{"status", `portd .*pid \d+`},
			{"reserve tcp 7100 --name web --label a=b --listen", `^tcp/7100  listening  rsv_\w+  web`},
			{"reserve udp any --count 3 --name three", `^udp/\d+-\d+  held`},
			{"reserve udp 7110 --group 3 --name group", `^udp/7110  held`},
			{"reserve tcp 7101 --record-only --name recorded", `^tcp/7101  recorded`},
			{"reserve tcp 7102 --ttl 1h --name hour", `^tcp/7102  held`},
			{"reserve unix" + s.dir + "/app.sock --name path", `app.sock  held`},
			{"list", `tcp/7100 +listening .* web`},
			{"list --free tcp 7103", `7103`},
			{"list --foreign", ``},
			{"show web", `a=b`},
			{"show web -o json", `"name":"web"`},
			{"whois 7100/tcp", `here: tcp/7100 yours, listening`},
			{"whois ssh", `^22  ssh`},
			{"search -q secure shell", `ssh`},
			{"services", `^ssh +22/tcp`},
			{"service add skewed 8123/tcp --description Ours", `skewed`},
			{"service edit skewed --description Theirs", `Theirs`},
			{"service list", `skewed +8123/tcp .* Theirs`},
			{"service remove skewed", `skewed`},
			{"set web --name site --label c=d", `site`},
			{"listen site --strategy client-address", `tcp/7100`},
			{"listeners", `tcp/7100`},
			{"workers", ``},
			{"connections", ``},
			{"leases", `lse_\w+ .*hour`},
			{"renew hour", `lse_\w+`},
			{"pools", `default`},
			{"close site", `tcp/7100  held`},
			{"backup " + s.dir + "/backup", ``},
			{"restore " + s.dir + "/backup", ``},
			{"release site three group recorded hour path", `tcp/7100  released`},
			{"version", `portctl`},
			{"upgrade", ``},
		} {
			out, err := s.command(ctl, "portctl", strings.Fields(tt.args)...).CombinedOutput()
			if err != nil || !regexp.MustCompile("(?m)"+tt.says).Match(out) {
				t.Errorf("portctl %s: %v; it says\n%s\nand is to say %q", tt.args, err, out, tt.says)
			}
		}
		// What is refused is refused in the same words, with the same exit code.
		for args, code := range map[string]int{"release nothing": 3, "reserve tcp 0": 2, "watch --from 999999": 2, "listen nothing": 3} {
			var exit *exec.ExitError
			var stderr bytes.Buffer
			cmd := s.command(ctl, "portctl", strings.Fields(args)...)
			cmd.Stderr = &stderr
			if err := cmd.Run(); !errors.As(err, &exit) || exit.ExitCode() != code || !strings.HasPrefix(stderr.String(), "portctl: ") {
				t.Errorf("portctl %s ends with %v and says %s", args, err, stderr.String())
			}
		}
	})
}

// A program of a later release is understood as far as this portd can: what a request has besides is passed over, and a call that there is
// not yet is refused in words that say so.
func TestLaterCaller(t *testing.T) {
	directions(t, func(t *testing.T, daemon, _ *release) {
		s := open(t)
		s.install(daemon)
		s.start()
		conn, err := grpc.NewClient("passthrough:///portd", grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
				return (&net.Dialer{}).DialContext(ctx, "unix", s.socket)
			}))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })

		spec, err := client.ParseSpec("tcp/7100")
		if err != nil {
			t.Fatal(err)
		}
		later := protowire.AppendString(protowire.AppendTag(nil, 9000, protowire.BytesType), "of a later time")
		spec.ProtoReflect().SetUnknown(later)
		req := &pb.ReserveRequest{Name: "first", Spec: &pb.ReservationSpec{Endpoints: []*pb.EndpointSpec{spec}}}
		req.ProtoReflect().SetUnknown(later)
		first, err := pb.NewReservationServiceClient(conn).Reserve(t.Context(), req)
		if err != nil {
			t.Fatalf("with fields of a later time: %v", err)
		}
		for _, method := range []string{"/portd.v1.ReservationService/Predict", "/portd.v1.OracleService/Predict"} {
			err := conn.Invoke(t.Context(), method, &pb.GetStatusRequest{}, &pb.GetStatusResponse{})
			if status.Code(err) != codes.Unimplemented || !strings.Contains(err.Error(), "it is older than the program that asks") {
				t.Errorf("%s: %v", method, err)
			}
		}
		// What it has recorded of such a request it reads again.
		s.kill()
		if got := s.look(); len(got.Reservations) != 1 || got.Reservations[0].GetId() != first.GetReservation().GetId() {
			t.Errorf("%v", got)
		}
	})
}
