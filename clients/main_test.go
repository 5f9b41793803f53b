// Package clients tests the workers in other languages against a whole portd, in processes of their own.
package clients_test

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
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

// built is where portd and programs in C go, until the tests are over.
var built string

type actor struct{ *testing.M }

func TestMain(m *testing.M) { nstest.Main(actor{m}) }

func (a actor) Run() int {
	dir, err := os.MkdirTemp("", "portd")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	built = dir
	return a.M.Run()
}

// portd is the real one, built once, without the race detector: what is tested here is its workers.
var portd = sync.OnceValues(func() (string, error) {
	path := filepath.Join(built, "portd")
	if out, err := exec.Command("go", "build", "-buildvcs=false", "-o", path, "../cmd/portd").CombinedOutput(); err != nil {
		return "", fmt.Errorf("build portd: %w: %s", err, out)
	}
	return path, nil
})

// A host has a portd that listens on one port, and workers there.
type host struct {
	*testing.T
	dir, socket, addr, endpoint string
	portd                       *exec.Cmd
	logged                      chan struct{} // closed when portd's log is complete
	client                      *client.Client
}

func newHost(t *testing.T) *host {
	t.Helper()
	dir, err := os.MkdirTemp("", "portd") // t.TempDir's names may not fit into a socket address
	if err != nil {
		t.Fatal(err)
	}
	h := &host{T: t, dir: dir, socket: filepath.Join(dir, "portd.sock")}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.WriteFile(filepath.Join(dir, "policy.yaml"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	h.startPortd()
	t.Cleanup(h.killPortd)
	if h.client, err = client.Dial(t.Context(), client.Options{Socket: h.socket}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.client.Close() })
	h.endpoint = h.reserve("tcp/127.0.0.1:any")
	_, h.addr, _ = strings.Cut(h.endpoint, "/")
	h.listen(nil)
	return h
}

// reserve returns what portd chose, as in "tcp/127.0.0.1:20000".
func (h *host) reserve(what string) string {
	h.Helper()
	spec, err := client.ParseSpec(what)
	if err != nil {
		h.Fatal(err)
	}
	got, err := h.client.Reservations.Reserve(h.Context(), &pb.ReserveRequest{
		Spec: &pb.ReservationSpec{Endpoints: []*pb.EndpointSpec{spec}},
	})
	if err != nil {
		h.Fatal(err)
	}
	return got.GetReservation().GetAssigned()[0].GetEndpoint().GetText()
}

func (h *host) listen(opt *pb.ListenOptions) {
	h.Helper()
	_, err := h.client.Reservations.Listen(h.Context(), &pb.ListenRequest{Reservation: h.endpoint, Options: opt})
	if err != nil {
		h.Fatal(err)
	}
}

func (h *host) startPortd() {
	h.Helper()
	path, err := portd()
	if err != nil {
		h.Fatal(err)
	}
	h.portd = exec.Command(path, "--no-keeper", "--socket", h.socket,
		"--state", filepath.Join(h.dir, "state"), "--policy", filepath.Join(h.dir, "policy.yaml"))
	h.portd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
	out, err := h.portd.StderrPipe()
	if err != nil {
		h.Fatal(err)
	}
	if err := h.portd.Start(); err != nil {
		h.Fatal(err)
	}
	ready, logged := make(chan struct{}), make(chan struct{})
	h.logged = logged
	go func() {
		defer close(logged)
		lines := bufio.NewReader(io.TeeReader(out, h.Output()))
		for line := ""; !strings.Contains(line, `"msg":"ready"`); {
			var err error
			if line, err = lines.ReadString('\n'); err != nil {
				return
			}
		}
		close(ready)
		_, _ = io.Copy(io.Discard, lines)
	}()
	select {
	case <-ready:
	case <-logged:
		h.Fatal("portd did not start")
	}
}

func (h *host) killPortd() {
	_ = h.portd.Process.Kill()
	<-h.logged
	_ = h.portd.Wait()
}

// A worker is a program that serves. In its log are the clients that it received.
type worker struct {
	*exec.Cmd
	h      *host
	log    string
	stderr bytes.Buffer
}

// start starts a worker and waits until portd has it ready. Below limit descriptors it has no more; 0 is as many as we have.
func (h *host) start(l language, limit int, args ...string) *worker {
	h.Helper()
	argv := append(l.command(h), "--socket", h.socket)
	argv = append(append(argv, args...), h.endpoint)
	if limit > 0 {
		argv = append([]string{"sh", "-c", fmt.Sprintf(`ulimit -n %d && exec "$@"`, limit), "sh"}, argv...)
	}
	log, err := os.CreateTemp(h.dir, "log")
	if err != nil {
		h.Fatal(err)
	}
	defer log.Close()
	w := &worker{Cmd: exec.Command(argv[0], argv[1:]...), h: h, log: log.Name()}
	w.Stdout, w.Stderr = log, &w.stderr
	w.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
	w.Env = append(os.Environ(), "PYTHONDONTWRITEBYTECODE=1", "PYTHONWARNINGS=error")
	before := len(h.workers())
	if err := w.Start(); err != nil {
		h.Fatal(err)
	}
	h.Cleanup(w.kill)
	h.wait("a worker to attach", func() bool { return len(h.workers()) == before+1 })
	return w
}

func (w *worker) kill() {
	if w.ProcessState == nil {
		_ = w.Process.Kill()
		_ = w.Wait()
		w.check()
	}
}

// check fails the test where the worker complained of itself.
func (w *worker) check() {
	w.h.Helper()
	for _, bad := range []string{"Traceback", "Warning", "ERROR", "runtime error"} {
		if strings.Contains(w.stderr.String(), bad) {
			w.h.Errorf("the worker says:\n%s", w.stderr.String())
			return
		}
	}
}

func (w *worker) signal(sig os.Signal) {
	w.h.Helper()
	if err := w.Process.Signal(sig); err != nil {
		w.h.Fatal(err)
	}
}

// leave waits for a worker that was told to end.
func (w *worker) leave() {
	w.h.Helper()
	late := time.AfterFunc(20*time.Second, func() { _ = w.Process.Signal(unix.SIGABRT) })
	defer late.Stop()
	if err := w.Wait(); err != nil {
		w.h.Errorf("the worker ends by %v", err)
	}
	w.check()
}

// received counts the clients' ports that the worker wrote down, each before it served it.
func (w *worker) received(count map[string]int) (n int) {
	w.h.Helper()
	text, err := os.ReadFile(w.log)
	if err != nil {
		w.h.Fatal(err)
	}
	for _, port := range strings.Fields(string(text)) {
		count[port]++
		n++
	}
	return n
}

func (h *host) workers() []*pb.Worker {
	h.Helper()
	got, err := h.client.Handoff.ListWorkers(h.Context(), &pb.ListWorkersRequest{})
	if err != nil {
		h.Fatal(err)
	}
	return got.GetWorkers()
}

// seen is what portd knows of a worker.
func (h *host) seen(w *worker) *pb.Worker {
	h.Helper()
	for _, seen := range h.workers() {
		if int(seen.GetPid()) == w.Process.Pid {
			return seen
		}
	}
	return nil
}

func (h *host) listener() *pb.Listener {
	h.Helper()
	got, err := h.client.Handoff.ListListeners(h.Context(), &pb.ListListenersRequest{Reservation: h.endpoint})
	if err != nil || len(got.GetListeners()) != 1 {
		h.Fatal(got, err)
	}
	return got.GetListeners()[0]
}

// wait asks until it is so. What portd shows, it shows a moment later.
func (h *host) wait(what string, so func() bool) {
	h.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for late := time.After(20 * time.Second); !so(); {
		select {
		case <-tick.C:
		case <-late:
			h.Fatalf("waited in vain for %s: %v", what, h.workers())
		}
	}
}

// A language has a worker that echoes, and with --log writes down whom it received.
type language struct {
	name    string
	command func(h *host) []string
}

var languages = []language{
	{"c", func(h *host) []string { return []string{compile(h.T, "c/echo.c")} }},
	{"c-sanitized", func(h *host) []string { return []string{compile(h.T, "c/echo.c", sanitize...)} }},
	{"python", func(h *host) []string { return []string{python(h.T), "testdata/worker.py"} }},
	{"python-asyncio", func(h *host) []string { return []string{python(h.T), "testdata/worker.py", "--asyncio"} }},
}

// each runs a test for every language.
func each(t *testing.T, f func(h *host, l language)) {
	nstest.Need(t)
	for _, l := range languages {
		t.Run(l.name, func(t *testing.T) {
			h := newHost(t)
			f(h, l)
		})
	}
}

var sanitize = []string{"-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"}

var compiled sync.Map // command line to func() (string, error)

// compile makes a program of one of our files, once.
func compile(t testing.TB, source string, flags ...string) string {
	t.Helper()
	cc, err := exec.LookPath("cc")
	if err != nil {
		t.Skip("no C compiler:", err)
	}
	args := append([]string{"-std=c11", "-O2", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-Ic"}, flags...)
	build, _ := compiled.LoadOrStore(source+strings.Join(flags, " "), sync.OnceValues(func() (string, error) {
		f, err := os.CreateTemp(built, "program")
		if err != nil {
			return "", err
		}
		f.Close()
		if out, err := exec.Command(cc, append(args, "-o", f.Name(), source)...).CombinedOutput(); err != nil {
			return "", fmt.Errorf("%s: %w\n%s", source, err, out)
		}
		return f.Name(), nil
	}))
	path, err := build.(func() (string, error))()
	if err == nil {
		return path
	}
	if len(flags) > 0 && exec.Command(cc, append(args, "-o", os.DevNull, "testdata/empty.c")...).Run() != nil {
		t.Skip("this C compiler has no sanitizers")
	}
	t.Fatal(err)
	return ""
}

// python finds a Python that is new enough.
func python(t testing.TB) string {
	t.Helper()
	path, err := findPython()
	if err != nil {
		t.Skip("no Python of 3.9 or later:", err)
	}
	return path
}

// What is called python3 may be a script that looks for one each time.
var findPython = sync.OnceValues(func() (string, error) {
	out, err := exec.Command("python3", "-c", "import sys; print(sys.executable); sys.exit(sys.version_info < (3, 9))").Output()
	return strings.TrimSpace(string(out)), err
})

// run runs a program to its end and fails the test with what it wrote.
func run(t testing.TB, input []byte, argv ...string) string {
	t.Helper()
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdin = bytes.NewReader(input)
	cmd.Env = append(os.Environ(), "PYTHONDONTWRITEBYTECODE=1")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(argv, " "), err, out)
	}
	return string(out)
}

// port is the port of an address, as the workers write it down.
func port(addr string) string { return addr[strings.LastIndexByte(addr, ':')+1:] }
