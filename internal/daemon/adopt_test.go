package daemon_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/client"
	"github.com/portd/portd/internal/nstest"
	pb "github.com/portd/portd/proto/portd/v1"
)

// serving is a program that answers every connection with a word until it is told to end, and then has answered all that it has
// accepted. It gets them from a listener of its own ("own", an address), from portd ("attached", a control socket and a
// reservation), or from the socket itself, lent by portd ("borrowed", a hand-off socket and a reservation).
func serving(args []string) error {
	word, how, at, ref := args[0], args[1], args[2], args[3]
	ended, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	var ln net.Listener
	var err error
	switch how {
	case "own":
		ln, err = net.Listen("tcp", at)
	case "attached":
		ln, err = client.ListenConfig{Portd: client.Options{Socket: at}}.Listen(ended, ref)
	case "borrowed":
		var a *client.Attachment
		if a, err = client.Attach(ended, client.AttachConfig{Socket: at, Wishes: []client.Wish{{Reference: ref, Socket: true}}}); err == nil {
			defer a.Close()
			ln, err = net.FileListener(a.Listeners[0].Sockets[0])
		}
	}
	if err != nil {
		return err
	}
	fmt.Println("serves")
	go func() {
		<-ended.Done()
		ln.Close()
	}()
	var inHand sync.WaitGroup
	defer inHand.Wait()
	for {
		c, err := ln.Accept()
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			return err
		}
		inHand.Go(func() {
			fmt.Fprintln(c, word)
			c.Close()
		})
	}
}

// blocker is such a program that waits in accept, as programs without an event loop do. A signal is looked for between two
// connections only, so that none is dropped.
const blocker = `
import signal, socket, sys
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
s = socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=128)
print("serves", flush=True)
while not signal.sigpending():
    c, _ = s.accept()
    c.sendall(b"old\n")
    c.close()
`

// A program is one of these.
type program struct {
	t    testing.TB
	cmd  *exec.Cmd
	once sync.Once
}

// run starts a program and returns when it serves.
func run(t testing.TB, cmd *exec.Cmd) *program {
	t.Helper()
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Skipf("needs %s: %v", cmd.Path, err)
	}
	p := &program{t: t, cmd: cmd}
	t.Cleanup(func() { p.stop() })
	if said, err := bufio.NewReader(out).ReadString('\n'); err != nil || said != "serves\n" {
		t.Fatalf("%s said %q, %v", cmd.Args, said, err)
	}
	return p
}

// stop tells it to end and waits until it has.
func (p *program) stop() {
	p.once.Do(func() {
		_ = p.cmd.Process.Signal(unix.SIGTERM)
		if err := p.cmd.Wait(); err != nil {
			p.t.Errorf("%s: %v", p.cmd.Args, err)
		}
	})
}

// A load is clients that connect one after the other, side by side.
type load struct {
	t    testing.TB
	stop func() // ends them

	mu    sync.Mutex
	more  sync.Cond
	count map[string]int
}

func newLoad(t testing.TB, addr string) *load {
	l := &load{t: t, count: map[string]int{}}
	l.more.L = &l.mu
	end := make(chan struct{})
	var clients sync.WaitGroup
	for range 8 {
		clients.Go(func() {
			for {
				select {
				case <-end:
					return
				default:
					l.ask(addr)
				}
			}
		})
	}
	l.stop = sync.OnceFunc(func() { close(end); clients.Wait() })
	t.Cleanup(l.stop)
	return l
}

// ask is one client. Anything but an answer is a failure of the test: refused, reset, or closed without a word.
func (l *load) ask(addr string) {
	said, err := func() (string, error) {
		c, err := net.DialTimeout("tcp", addr, 20*time.Second)
		if err != nil {
			return "", err
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
		text, err := io.ReadAll(c)
		return strings.TrimSpace(string(text)), err
	}()
	if err != nil || said == "" {
		said = "failed"
		l.t.Errorf("a client was not served: %v", err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.count[said]++
	l.more.Broadcast()
}

// wait waits until so many more have got this answer.
func (l *load) wait(answer string, n int) {
	l.t.Helper()
	late := time.AfterFunc(30*time.Second, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.count["late"]++
		l.more.Broadcast()
	})
	defer late.Stop()
	l.mu.Lock()
	defer l.mu.Unlock()
	for want := l.count[answer] + n; l.count[answer] < want; l.more.Wait() {
		if l.count["late"]+l.count["failed"] > 0 {
			l.t.Fatalf("waiting for %d answers of %q: %v", want, answer, l.count)
		}
	}
}

// A program's port is adopted, the program stops, and its successor serves: all the time clients come, and each of them is served.
func TestAdoptUnderLoad(t *testing.T) {
	adoptUnderLoad(t)
}

// The same where portd, the program and its successor are an ordinary user's.
func TestAdoptUnderLoadAsNobody(t *testing.T) {
	nstest.Need(t)
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestAdoptUnderLoad$", "-test.v")
	cmd.Env = append(os.Environ(), "HOME=/", "GORACE=atexit_sleep_ms=0")
	cmd.SysProcAttr = nstest.As(t, 65534, 65534)
	if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "--- PASS: TestAdoptUnderLoad") {
		t.Errorf("as another user: %v\n%s", err, out)
	}
}

func adoptUnderLoad(t *testing.T) {
	for i, tt := range []struct {
		name  string
		old   func(port string) *exec.Cmd
		how   string // its successor has the connections
		first bool   // the program stops before its successor starts
	}{
		{"go, then a worker", goServer, "attached", false},
		{"go, then the socket lent", goServer, "borrowed", false},
		{"go, then nobody for a while, then a worker", goServer, "attached", true},
		{"python, then a worker", pythonServer, "attached", true},
		{"python, then the socket lent", pythonServer, "borrowed", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d, c := start(t)
			port := fmt.Sprint(7840 + i)
			old := run(t, tt.old(port))
			clients := newLoad(t, "127.0.0.1:"+port)
			clients.wait("old", 100)
			res := adopted(t, c, "tcp/"+port, old.cmd.Process.Pid)
			clients.wait("old", 100)
			at := d.Socket
			if tt.how == "borrowed" {
				at = d.Handoff()
			}
			if tt.first {
				old.stop()
			}
			next := run(t, acting("serving", "new", tt.how, at, res.GetId()))
			if !tt.first {
				clients.wait("new", 100)
				old.stop()
			}
			clients.wait("new", 300)
			clients.stop()
			next.stop()
			t.Logf("answers: %v", clients.count)
		})
	}
}

func goServer(port string) *exec.Cmd { return acting("serving", "old", "own", ":"+port, "") }

func pythonServer(port string) *exec.Cmd {
	python := "/usr/bin/python3" // the first in PATH may be in somebody's home
	return exec.Command(python, "-c", blocker, port)
}

func adopted(t testing.TB, c *client.Client, endpoint string, pid int) *pb.Reservation {
	t.Helper()
	got, err := c.Reservations.Adopt(t.Context(), &pb.AdoptRequest{Endpoint: spec(t, endpoint).GetEndpoints()[0], Pid: int32(pid)})
	if err != nil {
		t.Fatalf("adopt %s from process %d: %v", endpoint, pid, err)
	}
	if also := got.GetAlsoOpenIn(); len(also) != 1 || int(also[0].GetPid()) != pid {
		t.Errorf("also open in %v, want process %d alone", also, pid)
	}
	return got.GetReservation()
}

// A restart of portd while the program runs loses the port, for the socket is the program's alone then; when it ends portd has
// the port again, and nothing of this changes what the reservation is.
func TestRestartWhileAdopted(t *testing.T) {
	d, c := start(t)
	old := run(t, goServer("7850"))
	res := adopted(t, c, "tcp/7850", old.cmd.Process.Pid)
	d.Restart(t)
	if said, err := io.ReadAll(connect(t, "127.0.0.1:7850")); err != nil || string(said) != "old\n" {
		t.Errorf("after a restart of portd the program says %q, %v", said, err)
	}
	after := get(t, c, res.GetId()).GetAssigned()[0]
	if after.GetState() != pb.EndpointState_ENDPOINT_STATE_LOST || len(after.GetExceptions()) != 1 {
		t.Fatalf("while the program runs: %v, want it lost", after)
	}
	if h := after.GetExceptions()[0].GetHolders(); len(h) == 0 || int(h[0].GetProcesses()[0].GetPid()) != old.cmd.Process.Pid {
		t.Errorf("held by %v, want process %d first", h, old.cmd.Process.Pid)
	}
	old.stop()
	awaitState(t, c, res.GetId(), pb.EndpointState_ENDPOINT_STATE_LISTENING)
	wantHeld(t, 7850)
}

func connect(t testing.TB, addr string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// awaitState follows the watch until the first endpoint of a reservation is in this state.
func awaitState(t testing.TB, c *client.Client, id string, want pb.EndpointState) {
	t.Helper()
	stream, err := c.Reservations.WatchReservations(t.Context(), &pb.WatchReservationsRequest{StartRevision: 1})
	if err != nil {
		t.Fatal(err)
	}
	for get(t, c, id).GetAssigned()[0].GetState() != want {
		if _, err := stream.Recv(); err != nil {
			t.Fatal(err)
		}
	}
}
