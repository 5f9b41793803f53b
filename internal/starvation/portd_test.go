package starvation_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/client"
	"github.com/portd/portd/internal/nstest"
	"github.com/portd/portd/internal/portdtest"
	pb "github.com/portd/portd/proto/portd/v1"
)

// binary is the real portd, built once.
var built = sync.OnceValues(func() (string, error) {
	if path := os.Getenv(envPortd); path != "" {
		return path, nil
	}
	dir, err := os.MkdirTemp("", "portd")
	if err != nil {
		return "", err
	}
	leftovers = append(leftovers, dir)
	if err := os.Chmod(dir, 0o755); err != nil {
		return "", err
	}
	path := filepath.Join(dir, "portd")
	build := exec.Command("go", "build", "-buildvcs=false", "-o", path, "github.com/portd/portd/cmd/portd")
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build portd: %w: %s", err, out)
	}
	return path, nil
})

// envPortd names the binary where a test of another user has built it.
const envPortd = "STARVATION_TEST_PORTD"

// asNobody runs a test as a user who is not root.
func asNobody(t *testing.T) {
	t.Helper()
	path, err := built()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe", "-test.v", "-test.run", "^"+t.Name()+"$")
	cmd.Env = append(os.Environ(), envPortd+"="+path)
	cmd.Dir = "/"
	cmd.SysProcAttr = as(t, 65534)
	out, err := cmd.CombinedOutput()
	switch {
	case err != nil:
		t.Fatalf("as uid 65534: %v\n%s", err, out)
	case strings.Contains(string(out), "--- SKIP"):
		t.Skipf("as uid 65534:\n%s", out)
	}
	t.Logf("%s", out)
}

var leftovers []string // removed after all tests

// A process is a real portd in the places of a portdtest.Daemon that is not started itself.
type process struct {
	*exec.Cmd
	*portdtest.Daemon
	pid    int // of the daemon, which need not be the one that was started
	log    string
	notify *net.UnixConn
	// keeperEnds says that the process that was started need not end well: the test has its daemon find another keeper.
	keeperEnds bool
}

// prepare is a portd that is about to be started; begin starts it. What it is to be started by, with arguments, may come before it.
func prepare(t *testing.T, before ...string) *process {
	t.Helper()
	nstest.Need(t)
	path, err := built()
	if err != nil {
		t.Fatal(err)
	}
	d := portdtest.New(t)
	p := &process{Daemon: d, log: filepath.Join(d.Dir, "log")}
	listen := filepath.Join(d.Dir, "notify")
	if p.notify, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Name: listen, Net: "unixgram"}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.notify.Close() })
	if err := os.Chmod(listen, 0o777); err != nil {
		t.Fatal(err)
	}
	args := append(before, path, "--socket", d.Socket, "--state", d.State, "--policy", d.Policy)
	p.Cmd = exec.Command(args[0], args[1:]...)
	p.Env = append(os.Environ(), "NOTIFY_SOCKET="+listen)
	log, err := os.Create(p.log)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { log.Close() })
	p.Stderr = log
	return p
}

// descriptors is a portd that may have so many.
func descriptors(t *testing.T, most int) *process {
	t.Helper()
	p := prepare(t, "/proc/self/exe", strconv.Itoa(most))
	p.Env = append(p.Env, envAct+"=limited")
	return p
}

// begin starts it and returns when it is ready. It is to stop when the test ends.
func (p *process) begin(t *testing.T) *process {
	t.Helper()
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- p.Wait() }()
	t.Cleanup(func() {
		_ = p.Process.Signal(unix.SIGTERM)
		select {
		case err := <-ended:
			if err != nil && !p.keeperEnds {
				t.Errorf("portd ended: %v", err)
			}
		case <-time.After(20 * time.Second):
			t.Error("portd does not stop")
			_ = p.Process.Signal(unix.SIGABRT)
			_ = unix.Kill(p.pid, unix.SIGKILL)
			<-ended
		}
		if t.Failed() {
			text, _ := os.ReadFile(p.log)
			t.Logf("portd's log:\n%s", text[max(0, len(text)-8000):])
		}
	})
	p.ready(t)
	p.pid = int(p.status(t, p.Client(t)).GetPid())
	return p
}

// ready waits until it says so to the service manager.
func (p *process) ready(t *testing.T) {
	t.Helper()
	if err := p.notify.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	for msg := make([]byte, 4096); ; {
		n, err := p.notify.Read(msg)
		if err != nil {
			t.Fatalf("portd is not ready: %v", err)
		}
		if strings.Contains("\n"+string(msg[:n])+"\n", "\nREADY=1\n") {
			return
		}
	}
}

func (p *process) status(t *testing.T, c *client.Client) *pb.GetStatusResponse {
	t.Helper()
	st, err := c.Daemon.GetStatus(within(t, 10*time.Second), &pb.GetStatusRequest{})
	if err != nil {
		t.Fatalf("status: %v", err)
	}
	return st
}

// limit sets one of its soft limits, and returns what sets it back.
func (p *process) limit(t *testing.T, resource int, cur uint64) (lift func()) {
	t.Helper()
	var was unix.Rlimit
	if err := unix.Prlimit(p.pid, resource, nil, &was); err != nil {
		t.Fatal(err)
	}
	if err := unix.Prlimit(p.pid, resource, &unix.Rlimit{Cur: cur, Max: was.Max}, nil); err != nil {
		t.Fatal(err)
	}
	return sync.OnceFunc(func() {
		if err := unix.Prlimit(p.pid, resource, &was, nil); err != nil {
			t.Error(err)
		}
	})
}

// stat are the fields of a process's /proc/PID/stat from the third on, its state (proc_pid_stat(5)).
func stat(t *testing.T, pid int) []string {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	return strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:])) // the name before it may have anything in it
}

// stop stops a process, and returns when all of its threads have.
func stop(t *testing.T, pid int) {
	t.Helper()
	if err := unix.Kill(pid, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the process stops", func() bool { return stat(t, pid)[0] == "T" })
}

// used is the processor time that a process has used.
func used(t *testing.T, pid int) time.Duration {
	t.Helper()
	f := stat(t, pid)
	user, err1 := strconv.ParseInt(f[11], 10, 64)
	system, err2 := strconv.ParseInt(f[12], 10, 64)
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	return time.Duration(user+system) * (time.Second / 100) // USER_HZ
}

// rests fails t unless there is a second in which portd uses less than a fifth of a processor. What spins never has one.
func (p *process) rests(t *testing.T) {
	t.Helper()
	const window = time.Second
	var least time.Duration
	for try := range 5 {
		before := used(t, p.pid)
		<-time.After(window)
		took := used(t, p.pid) - before
		if try == 0 || took < least {
			least = took
		}
		if took < window/5 {
			return
		}
	}
	t.Errorf("portd used %v of each second at least", least)
}

// lines are those of its log that have a text in them.
func (p *process) lines(t *testing.T, having string) (all []string) {
	t.Helper()
	text, err := os.ReadFile(p.log)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if strings.Contains(line, having) {
			all = append(all, strings.TrimSpace(line))
		}
	}
	return all
}

// open is how many descriptors it has.
func (p *process) open(t *testing.T) int {
	t.Helper()
	all, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p.pid))
	if err != nil {
		t.Fatal(err)
	}
	return len(all)
}

func within(t testing.TB, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// eventually fails t unless f comes to be true.
func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	deadline := time.After(20 * time.Second)
	again := time.NewTicker(20 * time.Millisecond)
	defer again.Stop()
	for !f() {
		select {
		case <-again.C:
		case <-deadline:
			t.Fatalf("%s: not within 20 s", what)
		}
	}
}

// reserve reserves a port of portd's choice under a name.
func reserve(ctx context.Context, c *client.Client, name string) (*pb.Reservation, error) {
	ep, err := client.ParseSpec("tcp/any")
	if err != nil {
		return nil, err
	}
	got, err := c.Reservations.Reserve(ctx, &pb.ReserveRequest{Name: name, Spec: &pb.ReservationSpec{Endpoints: []*pb.EndpointSpec{ep}}})
	return got.GetReservation(), err
}

// listens reserves a port and makes it listen. It returns the address for clients.
func listens(t *testing.T, c *client.Client, name string, opt *pb.ListenOptions) string {
	t.Helper()
	res, err := reserve(t.Context(), c, name)
	if err == nil {
		_, err = c.Reservations.Listen(t.Context(), &pb.ListenRequest{Reservation: name, Options: opt})
	}
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("127.0.0.1:%d", res.GetAssigned()[0].GetEndpoint().GetPorts().GetFirst())
}

// serve starts a worker.
func (p *process) serve(t *testing.T, ref, name string) *exec.Cmd {
	t.Helper()
	return run(t, acting("worker", p.Socket, ref, name), "serves")
}

// A visitor is a client of a port, who has said a line and waits for the answer.
type visitor struct{ net.Conn }

// visit connects n clients.
func visit(t *testing.T, addr string, n int) (all []visitor) {
	t.Helper()
	for range n {
		c, err := net.DialTimeout("tcp", addr, 10*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		if _, err := fmt.Fprintln(c, "who?"); err != nil {
			t.Fatal(err)
		}
		all = append(all, visitor{c})
	}
	return all
}

// answer is what a visitor is told within a time.
func (v visitor) answer(patience time.Duration) (string, error) {
	_ = v.SetReadDeadline(time.Now().Add(patience))
	line, err := bufio.NewReader(v).ReadString('\n')
	return strings.TrimSpace(line), err
}

// wantAnswers fails t unless all are answered.
func wantAnswers(t *testing.T, all []visitor) (by map[string]int) {
	t.Helper()
	by = map[string]int{}
	for i, v := range all {
		who, err := v.answer(20 * time.Second)
		if err != nil {
			t.Fatalf("visitor %d of %d: %v", i+1, len(all), err)
		}
		by[who]++
	}
	return by
}

// as is how to start a program as another user.
func as(t *testing.T, uid uint32) *syscall.SysProcAttr { return nstest.As(t, uid, uid) }

// memory is what it has in memory that is its own, in bytes.
func (p *process) memory(t *testing.T) int {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "RssAnon:"); ok {
			kb, err := strconv.Atoi(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")))
			if err != nil {
				t.Fatal(err)
			}
			return kb << 10
		}
	}
	t.Fatal("there is no RssAnon")
	return 0
}
