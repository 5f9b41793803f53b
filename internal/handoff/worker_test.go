package handoff_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/portd/portd/client"
	"github.com/portd/portd/internal/handoff"
	"github.com/portd/portd/internal/nstest"
	"golang.org/x/sys/unix"
)

// envAct makes the test binary a worker in place of running tests.
const envAct = "HANDOFF_ACT"

type actor struct{ *testing.M }

func TestMain(m *testing.M) { nstest.Main(actor{m}) }

func (a actor) Run() int {
	act := os.Getenv(envAct)
	if act == "" {
		return a.M.Run()
	}
	if err := perform(act, os.Getenv("HANDOFF_SOCKET"), os.Getenv("HANDOFF_REF")); err != nil {
		fmt.Println(err)
		return 1
	}
	return 0
}

func perform(act, socket, ref string) error {
	cfg := client.AttachConfig{Socket: socket, Wishes: []client.Wish{{Reference: ref}}}
	switch act {
	case "heir":
		return serveHeir()
	case "ignore": // attaches and takes nothing
		a, err := client.Attach(context.Background(), cfg)
		if err != nil {
			return err
		}
		fmt.Println("ready")
		return a.Wait()
	case "bequeath": // leaves its attachment to a child and exits
		conn, err := net.Dial("unixpacket", socket)
		if err != nil {
			return err
		}
		if _, err := conn.Write(attachMessage(ref)); err != nil {
			return err
		}
		file, err := conn.(*net.UnixConn).File()
		if err != nil {
			return err
		}
		if _, err := receive(conn.(*net.UnixConn)); err != nil {
			return err
		}
		child := exec.Command("/bin/sleep", "1000")
		child.ExtraFiles = []*os.File{file}
		child.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		if err := child.Start(); err != nil {
			return err
		}
		fmt.Println("ready", child.Process.Pid)
		_, err = io.Copy(io.Discard, os.Stdin)
		return err
	case "victim":
		return serveVictim(cfg)
	case "narrow":
		return serveNarrow(cfg)
	case "direct":
		return serveDirect()
	case "portd":
		return servePortd(socket)
	case "serve", "serve64":
		l, err := client.Join(context.Background(), cfg, nil)
		if err != nil {
			return err
		}
		fmt.Println("ready")
		if act == "serve64" {
			return serve64(l)
		}
		return echo(l)
	case "echo": // until the client ends
		l, err := client.Join(context.Background(), cfg, nil)
		if err != nil {
			return err
		}
		fmt.Println("ready")
		for {
			c, err := l.Accept()
			if err != nil {
				return err
			}
			go func() {
				defer c.Close()
				_, _ = io.Copy(c, c)
			}()
		}
	}
	return fmt.Errorf("no such act: %s", act)
}

// echo answers every connection with the line that it sends.
func echo(l net.Listener) error {
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer c.Close()
			buf := make([]byte, 64)
			n, err := c.Read(buf)
			if err == nil {
				_, _ = c.Write(buf[:n])
			}
		}()
	}
}

// A process is a worker in a process of its own.
type process struct {
	*exec.Cmd
	said string // its first line
}

// worker starts a worker and waits until it is attached.
func (h *host) worker(act, ref string) process {
	h.t.Helper()
	p, err := h.tryWorker(act, ref, nil)
	if err != nil {
		h.t.Fatal(err)
	}
	return p
}

func (h *host) tryWorker(act, ref string, attr *syscall.SysProcAttr) (process, error) {
	h.t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), envAct+"="+act, "HANDOFF_SOCKET="+h.socket, "HANDOFF_REF="+ref)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = attr
	if _, err := cmd.StdinPipe(); err != nil {
		h.t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		h.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	line, _ := bufio.NewReader(stdout).ReadString('\n')
	if len(line) < 5 || line[:5] != "ready" {
		return process{}, errors.New(line)
	}
	return process{cmd, line}, nil
}

func (p process) kill(t testing.TB) {
	t.Helper()
	if err := p.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = p.Wait()
}

// until waits for something that the pool does by itself.
func until(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
	}
}

// ask makes one short connection and checks the answer.
func ask(addr string, i int) error {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		return err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	want := fmt.Sprintf("request %d", i)
	if _, err := io.WriteString(c, want); err != nil {
		return err
	}
	got, err := io.ReadAll(c)
	if err == nil && string(got) != want {
		err = fmt.Errorf("got %q, want %q", got, want)
	}
	return err
}

// askMany asks n times at once and returns a function that waits for the answers and counts the failures.
func askMany(t testing.TB, addr string, n int) (answered *atomic.Int64, failures func() int) {
	answered = new(atomic.Int64)
	failed := new(atomic.Int64)
	var asking sync.WaitGroup
	for i := range n {
		asking.Go(func() {
			if err := ask(addr, i); err != nil {
				failed.Add(1)
				t.Logf("request %d: %v", i, err)
				return
			}
			answered.Add(1)
		})
	}
	return answered, func() int {
		asking.Wait()
		return int(failed.Load())
	}
}

// repeat is how often something is done that may be done a few times or many.
func repeat(few, many int) int {
	if os.Getenv("PORTD_LONG") != "" {
		return many
	}
	return few
}

// A worker that takes nothing and is killed loses nothing, and holds up nobody: its connections, one message's worth, go to
// another worker, each once.
func TestKilledWorkerLosesNothing(t *testing.T) {
	nstest.Descriptors(t)
	h := newHost(t)
	defer h.stop()
	res := h.listen("127.0.0.1")
	const requests = 40
	var handed, redelivered uint64
	for range repeat(3, 300) {
		stuck := h.worker("ignore", res.ID)
		answered, failures := askMany(t, addrOf(res), requests)
		until(t, "its queue is full", func() bool {
			w := h.Workers()
			return len(w) == 1 && w[0].Sent > 0
		})
		inQueue := h.Workers()[0].Sent
		good := h.worker("serve", res.ID)
		until(t, "all others are answered", func() bool { return answered.Load() == requests-int64(inQueue) })
		if n := h.Workers(); len(n) != 2 {
			t.Fatalf("%d workers", len(n))
		}
		stuck.kill(t)
		if n := failures(); n > 0 {
			t.Fatalf("%d of %d requests failed", n, requests)
		}
		handed += requests + inQueue
		redelivered += inQueue
		if got := h.Totals(keyOf(res)); got.HandedOver != handed || got.Redelivered != redelivered {
			t.Fatalf("%+v, want %d handed over and %d redelivered", got, handed, redelivered)
		}
		good.kill(t)
		until(t, "both are gone", func() bool { return len(h.Workers()) == 0 })
	}
	n := 0
	for _, c := range recorded(t, h, handoff.ConnectionQuery{}) {
		if c.Redelivered {
			n++
		}
	}
	if repeat(0, 1) == 0 && n != int(redelivered) {
		t.Errorf("the record has %d redelivered connections, want %d", n, redelivered)
	}
}

// Without another worker they are held until one comes.
func TestHeldUntilAnotherComes(t *testing.T) {
	h := newHost(t)
	res := h.listen("127.0.0.1")
	stuck := h.worker("ignore", res.ID)
	_, failures := askMany(t, addrOf(res), handoff.PerMessage+3)
	until(t, "its queue is full", func() bool { return h.Workers()[0].Sent > 0 })
	stuck.kill(t)
	until(t, "it is gone", func() bool { return len(h.Workers()) == 0 })
	h.worker("serve", res.ID)
	if n := failures(); n > 0 {
		t.Errorf("%d requests failed", n)
	}
}

// What waits for another worker ends with its listener.
func TestHeldEndsWithTheListener(t *testing.T) {
	nstest.Descriptors(t)
	h := newHost(t)
	defer h.stop()
	res := h.listen("127.0.0.1")
	stuck := h.worker("ignore", res.ID)
	_, failures := askMany(t, addrOf(res), 1)
	until(t, "it is in the queue", func() bool { return h.Workers()[0].Sent == 1 })
	stuck.kill(t)
	until(t, "it is gone", func() bool { return len(h.Workers()) == 0 })
	h.Closing(keyOf(res))
	if n := failures(); n != 1 {
		t.Error("the client of a closed listener was answered")
	}
}

// The process is what counts: a child may keep the connection.
func TestWorkerEndsWithItsProcess(t *testing.T) {
	h := newHost(t)
	res := h.listen("127.0.0.1")
	p := h.worker("bequeath", res.ID)
	var child int
	if _, err := fmt.Sscanf(p.said, "ready %d", &child); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Kill(child, unix.SIGKILL) }()
	_, failures := askMany(t, addrOf(res), 1)
	until(t, "its queue is full", func() bool { return h.Workers()[0].Sent == 1 })
	p.kill(t)
	until(t, "it is gone", func() bool { return len(h.Workers()) == 0 })
	h.worker("serve", res.ID)
	if n := failures(); n > 0 {
		t.Error("the request failed")
	}
	if err := unix.Kill(child, 0); err != nil {
		t.Errorf("the child did not outlive it: %v", err)
	}
}

// Under load, a SIGKILL costs what the worker had received, and nothing else.
func TestKillsUnderLoad(t *testing.T) {
	h := newHost(t)
	res := h.listen("127.0.0.1")
	workers := []process{h.worker("serve", res.ID), h.worker("serve", res.ID)}
	ctx, stop := context.WithCancel(t.Context())
	var asked, failed atomic.Int64
	var load sync.WaitGroup
	for range 16 {
		load.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				asked.Add(1)
				if err := ask(addrOf(res), i); err != nil {
					failed.Add(1)
				}
			}
		})
	}
	kills := repeat(6, 300)
	for i := range kills {
		for enough := asked.Load() + 100 + rand.Int64N(100); asked.Load() < enough; {
			runtime.Gosched()
		}
		workers[i%2].kill(t)
		workers[i%2] = h.worker("serve", res.ID)
	}
	stop()
	load.Wait()
	// What a worker has received it may hold: a batch, and what its goroutines are at.
	t.Logf("%d requests, %d kills, %d connections lost that a worker had received", asked.Load(), kills, failed.Load())
	if most := int64(kills * 2 * handoff.PerMessage); failed.Load() > most {
		t.Errorf("%d lost in %d kills", failed.Load(), kills)
	}
}

func TestBacklogWaitsForAWorker(t *testing.T) {
	h := newHost(t)
	res := h.listen("127.0.0.1")
	answered, failures := askMany(t, addrOf(res), 50)
	h.worker("serve", res.ID)
	if n := failures(); n > 0 || answered.Load() != 50 {
		t.Errorf("%d answered, %d failed", answered.Load(), n)
	}
	if got := h.Totals(keyOf(res)); got.HandedOver != 50 || got.Workers != 1 || got.Redelivered != 0 {
		t.Errorf("%+v", got)
	}
}

// A slow worker gets one message, and the others go on.
func TestSlowWorkerHoldsUpNobody(t *testing.T) {
	h := newHost(t)
	res := h.listen("127.0.0.1")
	slow := h.join(res) // does not accept for now
	fast := h.join(res)
	go func() { _ = echo(fast) }()
	const requests = 200
	answered, failures := askMany(t, addrOf(res), requests)
	until(t, "all but one message are answered", func() bool { return answered.Load() >= requests-handoff.PerMessage })
	go func() { _ = echo(slow) }()
	if n := failures(); n > 0 {
		t.Errorf("%d failed", n)
	}
	if got := h.Totals(keyOf(res)); got.HandedOver != requests || got.Redelivered != 0 {
		t.Errorf("%+v", got)
	}
}

// Who has the least open connections gets the next one.
func TestLeastActiveFirst(t *testing.T) {
	h := newHost(t)
	res := h.listen("127.0.0.1")
	accepted := make(chan int)
	for i := range 2 {
		l := h.join(res)
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				defer c.Close() // with the test
				accepted <- i
			}
		}()
	}
	var open [2]int
	for range 10 {
		c, err := net.Dial("tcp", addrOf(res))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		open[<-accepted]++
	}
	if open != [2]int{5, 5} {
		t.Errorf("%d connections, all still open", open)
	}
}

// Closing a listener's Accept: what this process had not received goes to another worker.
func TestListenerCloseHandsBack(t *testing.T) {
	h := newHost(t)
	res := h.listen("127.0.0.1")
	first := h.join(res)
	_, failures := askMany(t, addrOf(res), handoff.PerMessage)
	until(t, "its queue is full", func() bool { return h.Workers()[0].Sent > 0 })
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := first.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept after Close: %v", err)
	}
	if err := first.Close(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("second Close: %v", err)
	}
	go func() { _ = echo(h.join(res)) }()
	if n := failures(); n > 0 {
		t.Errorf("%d failed", n)
	}
}

// What had been received when Close came is given out first, so that http.Server.Shutdown still serves it.
func TestCloseGivesOutWhatWasReceived(t *testing.T) {
	h := newHost(t)
	res := h.listen("127.0.0.1")
	_, failures := askMany(t, addrOf(res), handoff.PerMessage)
	until(t, "they are in the backlog", func() bool { return backlog(t, h.fds[keyOf(res)]) == handoff.PerMessage })
	l := h.join(res)
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	for n := 1; ; n++ {
		_, err := io.CopyN(c, c, 9)
		if c.Close(); err != nil {
			t.Error(err)
		}
		if c, err = l.Accept(); err == nil {
			continue
		}
		if !errors.Is(err, net.ErrClosed) || n != handoff.PerMessage {
			t.Errorf("%d connections, then %v", n, err)
		}
		break
	}
	if n := failures(); n > 0 {
		t.Errorf("%d failed", n)
	}
}

// backlog is how many connections wait to be accepted.
func backlog(t testing.TB, fd int) int {
	info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
	if err != nil {
		t.Fatal(err)
	}
	return int(info.Unacked) // tcp_info of a listener: the length of its accept queue
}
