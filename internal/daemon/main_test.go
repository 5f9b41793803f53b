package daemon_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/status"

	"github.com/portd/portd/client"
	"github.com/portd/portd/internal/nstest"
	"github.com/portd/portd/internal/portdtest"
	pb "github.com/portd/portd/proto/portd/v1"
)

// envAct makes the test binary a program that is not portd: a thief of ports, or a stranger to its socket.
const envAct = "DAEMON_TEST_ACT"

type actor struct{ *testing.M }

func TestMain(m *testing.M) { nstest.Main(actor{m}) }

func (a actor) Run() int {
	acts := map[string]func([]string) error{"thief": thief, "stranger": stranger, "steps": beStepped, "reserver": reserver, "serving": serving, "holding": holding, "reading": reading, "daemon": beDaemon}
	act := acts[os.Getenv(envAct)]
	if act == nil {
		defer func() {
			for _, dir := range leftovers {
				os.RemoveAll(dir)
			}
		}()
		return a.M.Run()
	}
	if err := act(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// acting is the test binary as such a program.
func acting(act string, args ...string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Env = append(os.Environ(), envAct+"="+act, "GORACE=atexit_sleep_ms=0")
	cmd.Stderr = os.Stderr
	return cmd
}

// thief listens on its arguments, as ":8080", until its input ends.
func thief(addrs []string) error {
	for _, addr := range addrs {
		ln, err := net.Listen("tcp", addr)
		if err != nil {
			return err
		}
		defer ln.Close()
	}
	fmt.Println("has them")
	_, err := io.Copy(io.Discard, os.Stdin)
	return err
}

// steal starts a thief; it is gone when let returns.
func steal(t *testing.T, addrs ...string) (pid int, let func()) {
	t.Helper()
	cmd := acting("thief", addrs...)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	said := make([]byte, len("has them\n"))
	if _, err := io.ReadFull(out, said); err != nil {
		t.Fatalf("the thief got nothing: %v", err)
	}
	gone := false
	let = func() {
		if gone {
			return
		}
		gone = true
		in.Close()
		if err := cmd.Wait(); err != nil {
			t.Errorf("thief: %v", err)
		}
	}
	t.Cleanup(let)
	return cmd.Process.Pid, let
}

// start is a portd of the test's own that must leave nothing behind. The test needs fixed ports.
func start(t *testing.T) (*portdtest.Daemon, *client.Client) {
	t.Helper()
	nstest.Need(t)
	clean(t)
	d := portdtest.Start(t)
	return d, d.Client(t)
}

// clean fails t if it ends with goroutines or descriptors that were not there.
func clean(t *testing.T) {
	t.Helper()
	nstest.Descriptors(t)
	ignore := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, ignore) })
}

func spec(t testing.TB, endpoints ...string) *pb.ReservationSpec {
	t.Helper()
	s := &pb.ReservationSpec{}
	for _, text := range endpoints {
		ep, err := client.ParseSpec(text)
		if err != nil {
			t.Fatal(err)
		}
		s.Endpoints = append(s.Endpoints, ep)
	}
	return s
}

func reserve(t testing.TB, c *client.Client, name string, endpoints ...string) *pb.Reservation {
	t.Helper()
	got, err := c.Reservations.Reserve(t.Context(), &pb.ReserveRequest{Name: name, Spec: spec(t, endpoints...)})
	if err != nil {
		t.Fatalf("reserve %v: %v", endpoints, err)
	}
	return got.GetReservation()
}

func get(t testing.TB, c *client.Client, ref string) *pb.Reservation {
	t.Helper()
	got, err := c.Reservations.GetReservation(t.Context(), &pb.GetReservationRequest{Reservation: ref})
	if err != nil {
		t.Fatalf("get %s: %v", ref, err)
	}
	return got.GetReservation()
}

// wantHeld fails t unless these ports are refused to a program that binds them.
func wantHeld(t testing.TB, ports ...uint32) {
	t.Helper()
	for _, port := range ports {
		ln, err := net.Listen("tcp", fmt.Sprintf(":%d", port))
		if err == nil {
			ln.Close()
		}
		if !errors.Is(err, unix.EADDRINUSE) {
			t.Errorf("bind of tcp/%d: %v, want EADDRINUSE", port, err)
		}
	}
}

// wantFree fails t unless a program can have these ports.
func wantFree(t testing.TB, ports ...uint32) {
	t.Helper()
	for _, port := range ports {
		ln, err := net.Listen("tcp", fmt.Sprintf(":%d", port))
		if err != nil {
			t.Errorf("tcp/%d is not free: %v", port, err)
			continue
		}
		ln.Close()
	}
}

// answer is an error's code and reason, as "AlreadyExists IN_USE"; "OK" for none.
func answer(err error) string {
	text := status.Code(err).String()
	if e := (*client.Error)(nil); errors.As(err, &e) {
		text += " " + e.Reason
	}
	return strings.TrimSpace(text)
}
