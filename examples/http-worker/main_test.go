package main

import (
	"bufio"
	"errors"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/portd/portd/client"
	"github.com/portd/portd/internal/nstest"
	"github.com/portd/portd/internal/portdtest"
	pb "github.com/portd/portd/proto/portd/v1"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/durationpb"
)

// envAct makes the test binary http-worker itself.
const envAct = "HTTP_WORKER"

type actor struct{ *testing.M }

func TestMain(m *testing.M) { nstest.Main(actor{m}) }

func (a actor) Run() int {
	if os.Getenv(envAct) == "" {
		return a.M.Run()
	}
	main()
	return 0
}

// work starts a worker and waits until it serves.
func work(t *testing.T, socket, where, generation string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", where)
	cmd.Env = append(os.Environ(), envAct+"=1", "PORTD_SOCKET="+socket, "PORTD_GENERATION="+generation)
	cmd.Stderr = os.Stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	if line, err := bufio.NewReader(stdout).ReadString('\n'); !strings.Contains(line, " serves "+where) {
		t.Fatalf("it says %q: %v", line, err)
	}
	return cmd
}

// An asker makes connections, a few at a time, and counts the answers by who gave them.
type asker struct {
	stop chan struct{}
	all  sync.WaitGroup

	mu     sync.Mutex
	by     map[int]int
	failed []error
}

func ask(url string) *asker {
	a := &asker{stop: make(chan struct{}), by: map[int]int{}}
	tr := &http.Transport{DisableKeepAlives: true}
	for range 8 {
		a.all.Go(func() {
			for {
				select {
				case <-a.stop:
					return
				default:
				}
				pid, err := get(&http.Client{Transport: tr, Timeout: 20 * time.Second}, url)
				a.mu.Lock()
				if err != nil {
					a.failed = append(a.failed, err)
				} else {
					a.by[pid]++
				}
				a.mu.Unlock()
			}
		})
	}
	return a
}

func get(cl *http.Client, url string) (pid int, err error) {
	resp, err := cl.Get(url)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, err
	}
	first, _, _ := strings.Cut(string(text), " ")
	return strconv.Atoi(first)
}

// answeredBy waits until a process has answered some more.
func (a *asker) answeredBy(t *testing.T, pid int) {
	t.Helper()
	count := func() int {
		a.mu.Lock()
		defer a.mu.Unlock()
		return a.by[pid]
	}
	from := count()
	for deadline := time.Now().Add(20 * time.Second); count() < from+20; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d does not answer", pid)
		}
	}
}

// A service is restarted again and again, while it is asked: by a signal to the old one, by somebody who drains it, and with a new
// one that never gets ready, which changes nothing. Nobody who asks notices.
func TestRestartWithoutAGap(t *testing.T) {
	d := portdtest.Start(t)
	cl, err := client.Dial(t.Context(), client.Options{Socket: d.Socket})
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	res, err := cl.Reservations.Reserve(t.Context(), &pb.ReserveRequest{Name: "web", Spec: &pb.ReservationSpec{Endpoints: []*pb.EndpointSpec{{
		Protocols: []pb.Protocol{pb.Protocol_PROTOCOL_TCP}, Addresses: []string{"127.0.0.1"}, Choice: &pb.EndpointSpec_Any{Any: &pb.AnyPorts{}},
	}}}})
	if err != nil {
		t.Fatal(err)
	}
	_, where, _ := strings.Cut(res.GetReservation().GetAssigned()[0].GetEndpoint().GetText(), "/")
	old := work(t, d.Socket, "web", "v0")
	a := ask("http://" + where)
	a.answeredBy(t, old.Process.Pid)
	drain := func(except string, ready uint32, within time.Duration) error {
		_, err := cl.Handoff.DrainWorkers(t.Context(), &pb.DrainWorkersRequest{
			Reservation: "web", ExceptGeneration: &except, Ready: ready, Within: durationpb.New(within), Wait: durationpb.New(20 * time.Second),
		})
		return err
	}
	rounds := 3
	if os.Getenv("PORTD_LONG") != "" {
		rounds = 100
	}
	for i := range rounds {
		generation := "v" + strconv.Itoa(i+1)
		next := work(t, d.Socket, "web", generation)
		switch i % 3 {
		case 0:
			err = old.Process.Signal(unix.SIGTERM)
		case 1:
			err = drain(generation, 1, time.Minute)
		case 2: // of two, one never comes
			if err = drain(generation, 2, time.Millisecond); err != nil {
				var refused *client.Error
				if !errors.As(err, &refused) || refused.Reason != "NOT_READY" {
					t.Fatal(err)
				}
				err = nil
			}
			old, next = next, old
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := old.Wait(); err != nil {
			t.Fatalf("round %d: the one that was drained: %v", i, err)
		}
		old = next
		a.answeredBy(t, old.Process.Pid)
	}
	close(a.stop)
	a.all.Wait()
	if len(a.failed) > 0 {
		t.Errorf("%d failed, the first: %v", len(a.failed), a.failed[0])
	}
	got, err := cl.Handoff.ListListeners(t.Context(), &pb.ListListenersRequest{})
	if err != nil {
		t.Fatal(err)
	}
	answered := 0
	for _, n := range a.by {
		answered += n
	}
	if diff := cmp.Diff(uint64(answered), got.GetListeners()[0].GetHandedOver()); diff != "" {
		t.Errorf("answered, and handed over: %s", diff)
	}
	t.Logf("%d restarts, %d answered", rounds, answered)
}
