package handoff_test

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
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/portd/portd/client"
	"github.com/portd/portd/internal/handoff"
	"github.com/portd/portd/internal/nstest"
	"github.com/portd/portd/internal/registry"
	"golang.org/x/sys/unix"
)

// serveVictim answers each connection with this process's id. SIGTERM drains it, SIGUSR1 lets it detach as it stands; in both cases it ends
// when it has answered what it has. HANDOFF_SLOW makes it take its time before each connection, envNarrow leaves it few descriptors.
func serveVictim(cfg client.AttachConfig) error {
	if limit, err := strconv.ParseUint(os.Getenv(envNarrow), 10, 31); err == nil {
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: limit, Max: limit}); err != nil {
			return err
		}
	}
	slow, _ := time.ParseDuration(os.Getenv("HANDOFF_SLOW"))
	l, err := client.Join(context.Background(), cfg, nil)
	if err != nil {
		return err
	}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGTERM, unix.SIGUSR1)
	go func() {
		if <-signals == unix.SIGTERM {
			_ = l.Drain(context.Background())
		} else {
			_ = l.Close()
		}
	}()
	fmt.Println("ready")
	for {
		time.Sleep(slow)
		c, err := l.Accept()
		if errors.Is(err, unix.EMFILE) {
			time.Sleep(time.Millisecond)
			continue
		} else if err != nil {
			return l.Wait(context.Background())
		}
		go func() {
			defer c.Close()
			buf := make([]byte, 8)
			if _, err := c.Read(buf); err == nil {
				_, _ = fmt.Fprint(c, os.Getpid())
			}
		}()
	}
}

// An account is what became of all connections.
type account struct {
	mu       sync.Mutex
	asked    int
	by       map[int]int // answered, by whom
	failed   []error
	received map[int]int // by those that were killed
}

// ask makes one connection.
func (a *account) ask(addr string) {
	by, err := 0, error(nil)
	c, err := net.Dial("tcp", addr)
	if err == nil {
		_ = c.SetDeadline(time.Now().Add(30 * time.Second))
		var answer []byte
		if _, err = io.WriteString(c, "who?"); err == nil {
			answer, err = io.ReadAll(c)
		}
		if err == nil {
			by, err = strconv.Atoi(string(answer))
		}
		c.Close()
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.asked++
	if err != nil {
		a.failed = append(a.failed, err)
	} else {
		a.by[by]++
	}
}

// A victim is a worker to which something happens.
type victim struct {
	*exec.Cmd
	h   *host
	id  string
	pid int
}

func (h *host) victim(res *registry.Reservation, env ...string) (*victim, error) {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), envAct+"=victim", "HANDOFF_SOCKET="+h.socket, "HANDOFF_REF="+res.ID)
	cmd.Env = append(cmd.Env, env...)
	cmd.Stderr = os.Stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	v := &victim{Cmd: cmd, h: h, pid: cmd.Process.Pid}
	if line, err := bufio.NewReader(stdout).ReadString('\n'); line != "ready\n" {
		v.kill()
		return nil, fmt.Errorf("a worker says %q: %w", line, err)
	}
	for _, w := range h.Workers() {
		if int(w.Caller.PID) == v.pid {
			v.id = w.ID
		}
	}
	return v, nil
}

func (v *victim) kill() {
	_ = v.Process.Kill()
	_ = v.Wait()
}

// until waits for something to be true of the worker as portd sees it.
func (v *victim) until(what string, is func(handoff.Worker) bool) error {
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		for _, w := range v.h.Workers() {
			if w.ID == v.id && is(w) {
				return nil
			}
		}
	}
	return fmt.Errorf("worker %d never: %s", v.pid, what)
}

// serves waits until it has received a number of connections more.
func (v *victim) serves(more uint64) error {
	var from uint64
	_ = v.until("", func(w handoff.Worker) bool { from = w.Received; return true })
	return v.until("it serves", func(w handoff.Worker) bool { return w.Received >= from+more })
}

// halt stops it, and returns when it has stopped.
func (v *victim) halt() error {
	if err := v.Process.Signal(unix.SIGSTOP); err != nil {
		return err
	}
	for {
		var status unix.WaitStatus
		_, err := unix.Wait4(v.pid, &status, unix.WUNTRACED, nil)
		switch {
		case err == unix.EINTR:
		case err != nil || !status.Stopped():
			return fmt.Errorf("worker %d does not stop: %v, %v", v.pid, status, err)
		default:
			return nil
		}
	}
}

// ends waits until it has ended by itself.
func (v *victim) ends(with unix.Signal) error {
	if err := v.Process.Signal(with); err != nil {
		return err
	}
	if err := v.Wait(); err != nil {
		return fmt.Errorf("worker %d: %w", v.pid, err)
	}
	return nil
}

var misfortunes = []struct {
	name   string
	env    []string
	befall func(*victim, *account) error
}{
	{"killed", nil, func(v *victim, a *account) error {
		// What it has received is read while it stands still, and not in the middle of taking something.
		for {
			if err := v.halt(); err != nil {
				return err
			}
			if received, known := v.h.Taken(v.id); known {
				a.mu.Lock()
				a.received[v.pid] = int(received)
				a.mu.Unlock()
				v.kill()
				return nil
			}
			if err := v.Process.Signal(unix.SIGCONT); err != nil {
				return err
			}
		}
	}},
	{"stopped", nil, func(v *victim, _ *account) error {
		if err := v.halt(); err != nil {
			return err
		}
		if err := v.until("it is stuck", func(w handoff.Worker) bool { return w.Stuck }); err != nil {
			return err
		}
		if err := v.Process.Signal(unix.SIGCONT); err != nil {
			return err
		}
		if err := v.serves(20); err != nil {
			return err
		}
		return v.ends(unix.SIGTERM)
	}},
	{"slow", []string{"HANDOFF_SLOW=40ms"}, func(v *victim, _ *account) error {
		if err := v.until("something is taken back", func(w handoff.Worker) bool { return w.TakenBack > 0 }); err != nil {
			return err
		}
		return v.ends(unix.SIGTERM)
	}},
	{"out of descriptors", []string{envNarrow + "=16"}, func(v *victim, _ *account) error { return v.ends(unix.SIGTERM) }},
	{"leaves", nil, func(v *victim, _ *account) error { return v.ends(unix.SIGUSR1) }},
	{"drains", nil, func(v *victim, _ *account) error { return v.ends(unix.SIGTERM) }},
	{"drained", nil, func(v *victim, _ *account) error {
		d := handoff.Drain{Reservation: v.h.reservation(v.id), Workers: []string{v.id}, Wait: time.Minute}
		if _, err := v.h.Pool.Drain(context.Background(), d); err != nil {
			return err
		}
		return v.Wait()
	}},
}

func (h *host) reservation(worker string) (id string) {
	for _, w := range h.Workers() {
		if w.ID == worker {
			id = w.Listeners[0].Key.Reservation
		}
	}
	return id
}

// Workers die, stop, are slow, run out of descriptors, leave and drain, under load. Each connection is answered by exactly one of them, but
// for those that a killed worker had received: of these it is counted how many it had, and how many of them it had answered.
func TestNothingLost(t *testing.T) {
	nstest.Descriptors(t)
	h := newHost(t)
	defer h.stop()
	res := h.listen("127.0.0.1")
	// In turn, so that one that stands still gets something, too, whatever it has to do already.
	h.options(res, registry.HandoffOptions{Strategy: registry.RoundRobin, TakeBackAfter: 20 * time.Millisecond})
	for range 2 {
		v, err := h.victim(res)
		if err != nil {
			t.Fatal(err)
		}
		defer v.kill()
	}
	a := &account{by: map[int]int{}, received: map[int]int{}}
	const lanes = 3
	times := repeat(len(misfortunes), 1000/lanes+1) // in each lane
	stop := make(chan struct{})
	var asking, befalling sync.WaitGroup
	for range 16 {
		asking.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					a.ask(addrOf(res))
				}
			}
		})
	}
	for lane := range lanes {
		befalling.Go(func() {
			for i := range times {
				m := misfortunes[(i+lane*2)%len(misfortunes)]
				v, err := h.victim(res, m.env...)
				if err == nil {
					if err = v.serves(8); err == nil {
						err = m.befall(v, a)
					}
					v.kill()
				}
				if err != nil {
					t.Errorf("%s: %v", m.name, err)
					return
				}
			}
		})
	}
	befalling.Wait()
	close(stop)
	asking.Wait()
	a.check(t, lanes*times, h.Totals(keyOf(res)))
}

func (a *account) check(t *testing.T, workers int, got handoff.Totals) {
	died := 0 // with their worker, which had received them
	for pid, received := range a.received {
		if a.by[pid] > received {
			t.Errorf("worker %d answered %d and had received %d", pid, a.by[pid], received)
		}
		died += received - a.by[pid]
	}
	if len(a.failed) != died {
		t.Errorf("%d connections failed, %d had been received by workers that were killed", len(a.failed), died)
		for i := 0; i < min(len(a.failed), 10); i++ {
			t.Log(a.failed[i])
		}
	}
	if got.HandedOver-got.Redelivered != uint64(a.asked) || got.Lost != 0 {
		t.Errorf("%d asked: %+v", a.asked, got)
	}
	t.Logf("%d workers, %d of them killed; %d connections, %d handed over again, %d of them taken back from the living, %d lost; %d died with the worker that had received them",
		workers, len(a.received), a.asked, got.Redelivered, got.TakenBack, got.Lost, died)
}
