package starvation_test

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/client"
	"github.com/portd/portd/internal/nstest"
	pb "github.com/portd/portd/proto/portd/v1"
)

// envAct makes the test binary a program that is not a test.
const envAct = "STARVATION_TEST_ACT"

type actor struct{ *testing.M }

func TestMain(m *testing.M) { nstest.Main(actor{m}) }

func (a actor) Run() int {
	acts := map[string]func([]string) error{"limited": limited, "grouped": grouped, "worker": worker, "asker": asker}
	act := acts[os.Getenv(envAct)]
	if act == nil {
		defer func() {
			for _, dir := range leftovers {
				os.RemoveAll(dir)
			}
		}()
		_ = flag.Set("test.parallel", "8") // they wait most of the time; what go test is told counts more
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

// limited becomes the program that its other arguments say, with as many descriptors at most as its first one says.
func limited(args []string) error {
	var most uint64
	if _, err := fmt.Sscan(args[0], &most); err != nil {
		return err
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: most, Max: most}); err != nil {
		return err
	}
	return unix.Exec(args[1], args[1:], os.Environ())
}

// grouped becomes the program that its other arguments say, in the cgroup of which its first one is the directory.
func grouped(args []string) error {
	if err := os.WriteFile(args[0]+"/cgroup.procs", []byte("0"), 0); err != nil {
		return err
	}
	return unix.Exec(args[1], args[1:], os.Environ())
}

// worker serves a reservation under a name, which it answers to each line of a client's, until it is ended.
func worker(args []string) error {
	socket, ref, name := args[0], args[1], args[2]
	ended, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	ln, err := client.ListenConfig{Portd: client.Options{Socket: socket}}.Listen(ended, ref)
	if err != nil {
		return err
	}
	context.AfterFunc(ended, func() { ln.Close() })
	fmt.Println("serves")
	for {
		c, err := ln.Accept()
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			return err
		}
		go func() {
			defer c.Close()
			for lines := bufio.NewScanner(c); lines.Scan(); {
				fmt.Fprintln(c, name)
			}
		}()
	}
}

// asker asks portd how it is, once, and says what it is told.
func asker(args []string) error {
	c, err := client.Dial(context.Background(), client.Options{Socket: args[0]})
	if err != nil {
		return err
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if _, err := c.Daemon.GetStatus(ctx, &pb.GetStatusRequest{}); err != nil {
		fmt.Println(err)
	} else {
		fmt.Println("answered")
	}
	return nil
}

// run starts a program and waits until it says a word. It is killed when the test ends.
func run(t *testing.T, cmd *exec.Cmd, word string) *exec.Cmd {
	t.Helper()
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // fails where it has ended
		_ = cmd.Wait()
	})
	if said, err := bufio.NewReader(out).ReadString('\n'); err != nil || strings.TrimSpace(said) != word {
		t.Fatalf("%v said %q, %v; want %s", cmd.Args, said, err, word)
	}
	return cmd
}
