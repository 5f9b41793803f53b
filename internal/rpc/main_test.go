package rpc_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"google.golang.org/grpc/status"

	"github.com/portd/portd/internal/nstest"
	pb "github.com/portd/portd/proto/portd/v1"
)

// envCall makes the test binary a caller of the portd at this socket: a process of its own, whoever it runs as.
const envCall = "RPC_TEST_CALL"

// envCompare makes it one that compares calls, as BenchmarkLookup says.
const envCompare = "RPC_TEST_COMPARE"

type actor struct{ *testing.M }

func TestMain(m *testing.M) { nstest.Main(actor{m}) }

func (a actor) Run() int {
	var said any
	var err error
	if socket := os.Getenv(envCall); socket != "" {
		said, err = ask(socket, os.Args[1])
	} else if socket := os.Getenv(envCompare); socket != "" {
		n, _ := strconv.Atoi(os.Args[2])
		said, err = compare(context.Background(), socket, os.Args[1], n)
	} else {
		return a.M.Run()
	}
	if err == nil {
		err = json.NewEncoder(os.Stdout).Encode(said)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// Answers are what a caller was told, by gRPC and by REST.
type answers struct{ Status, Reserve, Drain, Release, Workers, Add, Import, Undo [2]string }

// ask asks portd who we are, for a port, for workers to drain, for the end of a reservation, for the workers, and for changes of the service registry.
func ask(socket, reservation string) (a answers, err error) {
	conn, err := dialGRPC(socket)
	if err != nil {
		return a, err
	}
	defer conn.Close()
	rest, ctx := newREST(socket), context.Background()

	st, err := pb.NewDaemonServiceClient(conn).GetStatus(ctx, &pb.GetStatusRequest{})
	a.Status[0] = outcome(err, "%s admin=%v", st.GetCaller(), st.GetAdmin())
	st = &pb.GetStatusResponse{}
	err = rest.call(ctx, http.MethodGet, "/v1/status", "", st)
	a.Status[1] = outcome(err, "%s admin=%v", st.GetCaller(), st.GetAdmin())

	reservations := pb.NewReservationServiceClient(conn)
	got, err := reservations.Reserve(ctx, &pb.ReserveRequest{Spec: spec(&pb.EndpointSpec{Choice: &pb.EndpointSpec_Any{Any: &pb.AnyPorts{}}})})
	a.Reserve[0] = outcome(err, "for %s", got.GetReservation().GetOwner())
	got = &pb.ReserveResponse{}
	err = rest.call(ctx, http.MethodPost, "/v1/reservations", `{"spec": {"endpoints": [{"protocols": ["PROTOCOL_TCP"], "any": {}}]}}`, got)
	a.Reserve[1] = outcome(err, "for %s", got.GetReservation().GetOwner())

	handoffs := pb.NewHandoffServiceClient(conn)
	_, err = handoffs.DrainWorkers(ctx, &pb.DrainWorkersRequest{Reservation: reservation})
	a.Drain[0] = outcome(err, "done")
	err = rest.call(ctx, http.MethodPost, "/v1/workers:drain", `{"reservation": "`+reservation+`"}`, &pb.DrainWorkersResponse{})
	a.Drain[1] = outcome(err, "done")

	_, err = reservations.Release(ctx, &pb.ReleaseRequest{Reservation: reservation})
	a.Release[0] = outcome(err, "done")
	err = rest.call(ctx, http.MethodDelete, "/v1/reservations/"+reservation, "", &pb.ReleaseResponse{})
	a.Release[1] = outcome(err, "done")

	workers, err := handoffs.ListWorkers(ctx, &pb.ListWorkersRequest{})
	a.Workers[0] = outcome(err, "%d", len(workers.GetWorkers()))
	workers = &pb.ListWorkersResponse{}
	err = rest.call(ctx, http.MethodGet, "/v1/workers", "", workers)
	a.Workers[1] = outcome(err, "%d", len(workers.GetWorkers()))

	services := pb.NewServiceRegistryServiceClient(conn)
	_, err = services.AddServices(ctx, &pb.AddServicesRequest{Services: []*pb.ServiceEntry{myapp()}})
	a.Add[0] = outcome(err, "done")
	err = rest.call(ctx, http.MethodPost, "/v1/services",
		`{"services": [{"name": "myapp", "protocol": "PROTOCOL_TCP", "ports": {"first": 8123}, "description": "what we make"}]}`, &pb.AddServicesResponse{})
	a.Add[1] = outcome(err, "done")

	_, err = send(ctx, services, []byte("x"))
	a.Import[0] = outcome(err, "done")
	_, err = sendREST(ctx, rest, []byte("x"))
	a.Import[1] = outcome(err, "done")

	_, err = services.UndoImport(ctx, &pb.UndoImportRequest{})
	a.Undo[0] = outcome(err, "done")
	err = rest.call(ctx, http.MethodPost, "/v1/services:undoImport", "{}", &pb.UndoImportResponse{})
	a.Undo[1] = outcome(err, "done")
	return a, nil
}

func outcome(err error, format string, args ...any) string {
	if err != nil {
		return fmt.Sprintf("%v: %s", status.Code(err), status.Convert(err).Message())
	}
	return fmt.Sprintf(format, args...)
}

// asked runs ask in a process with these attributes.
func (h *host) asked(t *testing.T, attr *syscall.SysProcAttr, reservation string) (a answers) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", reservation)
	cmd.Env = append(os.Environ(), envCall+"="+h.socket)
	cmd.SysProcAttr = attr
	out, err := cmd.Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			t.Fatalf("%v: %s", err, exit.Stderr)
		}
		t.Fatal(err)
	}
	if err := json.NewDecoder(strings.NewReader(string(out))).Decode(&a); err != nil {
		t.Fatalf("%s: %v", out, err)
	}
	return a
}

func both(s string) [2]string { return [2]string{s, s} }
