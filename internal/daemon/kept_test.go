package daemon_test

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/client"
	"github.com/portd/portd/internal/daemon"
	"github.com/portd/portd/internal/keeper"
	"github.com/portd/portd/internal/portdtest"
	pb "github.com/portd/portd/proto/portd/v1"
)

// What the test binary does as a portd that is not quite the real one.
const (
	envStep    = "DAEMON_TEST_STEP"    // "old kill prepared", or a file that says so: what which of the two does at a step; and "exit", "hang", "protocol"
	envVersion = "DAEMON_TEST_VERSION" // what a successor says that it is
	envAtHello = "DAEMON_TEST_HELLO"   // the FIFO that a successor opens, and reads to its end, with the store in its hands
)

// beDaemon is the program portd, as far as package main decides anything, with what a test wants to go wrong.
func beDaemon(args []string) error {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
	defer stop()
	upgrade := make(chan os.Signal, 1)
	signal.Notify(upgrade, unix.SIGUSR2)
	cfg := daemon.Config{Upgrade: upgrade, Args: os.Args, Version: "old", Log: slog.New(slog.NewJSONHandler(os.Stderr, nil))}
	flags := flag.NewFlagSet("portd", flag.ContinueOnError)
	flags.StringVar(&cfg.Socket, "socket", "", "")
	flags.StringVar(&cfg.StateDir, "state", "", "")
	flags.StringVar(&cfg.Policy, "policy", "", "")
	noKeeper, prove := flags.Bool("no-keeper", false, ""), flags.String("prove", "", "")
	if err := flags.Parse(args); err != nil {
		return err
	}
	role := "old"
	if *prove != "" || os.Getenv("PORTD_PREDECESSOR") != "" {
		role, cfg.Version = "new", os.Getenv(envVersion)
	}
	if role == "new" && *prove == "" && wanted() == "new protocol hello" {
		// One of a later time, which says so.
		_, err := unix.Write(3, []byte("HELLO=1\nPROTOCOL=9\nVERSION=new"))
		select {
		case <-ctx.Done():
			return err
		case <-time.After(time.Minute):
			return errors.New("it is not ended")
		}
	}
	cfg.Step = func(name string) {
		if fifo := os.Getenv(envAtHello); fifo != "" && role == "new" && name == "opened-store" {
			_, _ = os.ReadFile(fifo)
		}
		misbehave(role, name)
	}
	if *prove != "" {
		cfg.Step("prove")
		said, err := daemon.Prove(ctx, cfg, *prove)
		fmt.Println(said)
		return err
	}
	if !*noKeeper && keeper.Wanted() {
		return keeper.Become(slog.LevelInfo)
	}
	return daemon.Run(ctx, cfg)
}

// wanted is what is to go wrong now.
func wanted() string {
	what := os.Getenv(envStep)
	if strings.HasPrefix(what, "/") {
		text, _ := os.ReadFile(what)
		return string(text)
	}
	return what
}

func misbehave(role, step string) {
	want := strings.Fields(wanted())
	if len(want) != 3 || want[0] != role || want[2] != step {
		return
	}
	switch want[1] {
	case "kill":
		_ = unix.Kill(os.Getpid(), unix.SIGKILL)
		select {}
	case "exit":
		fmt.Fprintln(os.Stderr, "it had enough")
		os.Exit(3)
	case "hang":
		_ = unix.Kill(os.Getpid(), unix.SIGSTOP)
	}
}

// A kept is a portd with its keeper.
type kept struct {
	*exec.Cmd
	d   *portdtest.Daemon
	log *buffer
}

// startKept starts program, the real portd or the test binary, with what is to be in its environment.
func startKept(t testing.TB, d *portdtest.Daemon, program string, env ...string) *kept {
	t.Helper()
	k := &kept{Cmd: exec.Command(program, "--socket", d.Socket, "--state", d.State, "--policy", d.Policy), d: d, log: &buffer{}}
	k.Env = append(os.Environ(), env...)
	k.Stderr = k.log
	k.WaitDelay = 5 * time.Second
	if err := k.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		k.stop(t)
		if t.Failed() {
			t.Logf("the log of portd:\n%s", k.log)
		}
	})
	k.pid(t, 0)
	return k
}

// stop stops it as a user does.
func (k *kept) stop(t testing.TB) {
	t.Helper()
	if k.ProcessState != nil {
		return
	}
	_ = k.Process.Signal(syscall.SIGTERM)
	late := time.AfterFunc(20*time.Second, func() { _ = k.Process.Kill() })
	defer late.Stop()
	if err := k.Wait(); err != nil {
		t.Errorf("portd ends with %v", err)
	}
}

// pid waits until a portd answers that is not this one, and is its pid.
func (k *kept) pid(t testing.TB, not int) int {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); {
		if st := k.status(); st != nil && int(st.GetPid()) != not {
			return int(st.GetPid())
		}
		time.Sleep(2 * time.Millisecond)
	}
	t.Fatalf("no portd answers; its log: %s", k.log)
	return 0
}

func (k *kept) status() *pb.GetStatusResponse {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	c, err := client.Dial(ctx, client.Options{Socket: k.d.Socket})
	if err != nil {
		return nil
	}
	defer c.Close()
	st, err := c.Daemon.GetStatus(ctx, &pb.GetStatusRequest{})
	if err != nil {
		return nil
	}
	return st
}

// A buffer is what several processes write to, by way of one goroutine, and others read.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// A storm is clients that connect to a port again and again, say something and want it back.
type storm struct {
	served, refused, reset, other atomic.Int64

	mu     sync.Mutex
	last   time.Time       // when one was served
	pauses []time.Duration // without one, of 20 ms and more
	odd    error

	stop context.CancelFunc
	wg   sync.WaitGroup
}

// startStorm starts a worker in this process, which serves ref, and clients of addr.
func startStorm(t testing.TB, d *portdtest.Daemon, ref, addr string, clients int) *storm {
	t.Helper()
	ln, err := client.ListenConfig{Portd: client.Options{Socket: d.Socket}}.Listen(t.Context(), ref)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	l := &storm{stop: cancel, last: time.Now()}
	l.wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			l.wg.Go(func() {
				defer c.Close()
				var b [64]byte
				if _, err := io.ReadFull(c, b[:]); err == nil {
					_, _ = c.Write(b[:])
				}
			})
		}
	})
	var asking sync.WaitGroup
	for range clients {
		asking.Go(func() {
			for ctx.Err() == nil {
				l.count(ask(addr))
			}
		})
	}
	t.Cleanup(func() {
		l.end()
		asking.Wait() // or the last ones would wait for somebody to serve them
		ln.Close()
		l.wg.Wait()
	})
	return l
}

func (l *storm) end() { l.stop() }

func ask(addr string) error {
	c, err := net.DialTimeout("tcp", addr, 20*time.Second)
	if err != nil {
		return err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	var b [64]byte
	if _, err := c.Write(b[:]); err != nil {
		return err
	}
	_, err = io.ReadFull(c, b[:])
	return err
}

func (l *storm) count(err error) {
	switch {
	case err == nil:
		l.served.Add(1)
		l.mu.Lock()
		defer l.mu.Unlock()
		now := time.Now()
		if pause := now.Sub(l.last); pause >= 20*time.Millisecond {
			l.pauses = append(l.pauses, pause)
		}
		l.last = now
	case errors.Is(err, unix.ECONNREFUSED):
		l.refused.Add(1)
	case errors.Is(err, unix.ECONNRESET), errors.Is(err, unix.EPIPE), errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		l.reset.Add(1)
	default:
		l.other.Add(1)
		l.mu.Lock()
		defer l.mu.Unlock()
		l.odd = err
	}
}

func (l *storm) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	text := fmt.Sprintf("%d served, %d refused, %d reset, pauses of 20 ms and more: %d", l.served.Load(), l.refused.Load(), l.reset.Load(), len(l.pauses))
	if n := len(l.pauses); n > 0 {
		slices.Sort(l.pauses)
		at := func(share float64) time.Duration {
			return l.pauses[int(share*float64(n-1))].Round(100 * time.Microsecond)
		}
		text += fmt.Sprintf(", median %v, nine of ten at most %v, longest %v", at(0.5), at(0.9), at(1))
	}
	if n := l.other.Load(); n > 0 {
		text += fmt.Sprintf(", %d others (%v)", n, l.odd)
	}
	return text
}

// self is the test binary, to be started as a portd.
func self(t testing.TB) string {
	t.Helper()
	path, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// many reserves n ports from a number on, as single reservations.
func many(t testing.TB, c *client.Client, from, n int) {
	t.Helper()
	var all sync.WaitGroup
	failed := make(chan error, n)
	for side := range 16 {
		all.Go(func() {
			for i := side; i < n; i += 16 {
				if _, err := c.Reservations.Reserve(t.Context(), &pb.ReserveRequest{Spec: spec(t, fmt.Sprintf("tcp/%d", from+i))}); err != nil {
					failed <- err
					return
				}
			}
		})
	}
	all.Wait()
	close(failed)
	for err := range failed {
		t.Fatal(err)
	}
}

func waitFor(t testing.TB, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !is(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("there is no %s", what)
		}
	}
}

// keeperOf is the pid of the keeper that a daemon has started; 0: there is none yet.
func keeperOf(daemon int) int {
	for _, pid := range children(daemon) {
		if comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid)); err == nil && strings.HasPrefix(string(comm), "portd-keeper") {
			return pid
		}
	}
	return 0
}

// children are the pids of those of a process.
func children(pid int) (all []int) {
	lists, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid)) // of each of its threads
	for _, list := range lists {
		some, _ := os.ReadFile(list)
		for _, text := range strings.Fields(string(some)) {
			child := 0
			_, _ = fmt.Sscan(text, &child)
			all = append(all, child)
		}
	}
	return all
}
