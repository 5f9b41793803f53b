package keeper_test

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/keeper"
)

func TestMain(m *testing.M) {
	switch os.Getenv(envAct) {
	case "become":
		if keeper.Wanted() {
			fmt.Fprintln(os.Stderr, keeper.Become(slog.LevelDebug))
			os.Exit(8)
		}
		os.Exit(daemon())
	case "daemon", "successor":
		os.Exit(daemon())
	}
	os.Exit(m.Run())
}

// patience is how long a test waits for what should take milliseconds.
const patience = 20 * time.Second

// A portd is a keeper with its daemon.
type portd struct {
	*exec.Cmd
	dir string
	log logBuffer
}

type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// prepare is a portd that is about to be started.
func prepare(t *testing.T) *portd {
	t.Helper()
	dir, err := os.MkdirTemp("", "keeper") // short, for a socket's path
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p := &portd{Cmd: exec.Command(self), dir: dir}
	p.Env = append(os.Environ(), envAct+"=become", envDir+"="+dir)
	p.Stderr = &p.log
	p.WaitDelay = patience // a log that a process which is left over has open
	t.Cleanup(func() {
		for _, pid := range p.all(t) {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
		if p.Process != nil {
			_ = p.Process.Kill()
			_ = p.Wait()
		}
		for _, pid := range p.all(t) { // started in between
			_ = unix.Kill(pid, unix.SIGKILL)
		}
		if t.Failed() {
			t.Logf("the log:\n%s", &p.log)
		}
		os.RemoveAll(dir)
	})
	return p
}

func start(t *testing.T) *portd {
	t.Helper()
	p := prepare(t)
	p.begin(t)
	return p
}

func (p *portd) begin(t *testing.T) {
	t.Helper()
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the daemon answers", func() bool {
		conn, err := net.Dial("unix", filepath.Join(p.dir, "sock"))
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
}

// all are the processes of this portd, by their environment.
func (p *portd) all(t *testing.T) []int {
	t.Helper()
	var all []int
	procs, err := filepath.Glob("/proc/[0-9]*/environ")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range procs {
		env, err := os.ReadFile(file)
		if err != nil || !bytes.Contains(env, []byte(envDir+"="+p.dir+"\x00")) {
			continue
		}
		if pid, err := strconv.Atoi(strings.Split(file, "/")[2]); err == nil {
			all = append(all, pid)
		}
	}
	return all
}

// keepers are those that go by the name of one.
func (p *portd) keepers(t *testing.T) []int {
	t.Helper()
	var all []int
	for _, pid := range p.all(t) {
		if comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid)); err == nil && string(comm) == "portd-keeper\n" {
			all = append(all, pid)
		}
	}
	return all
}

func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !is(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not after %v: %s", patience, what)
		}
	}
}

// A client asks the daemon over one connection.
type client struct {
	net.Conn
	lines *bufio.Scanner
}

// dial is never refused.
func (p *portd) dial(t *testing.T) *client {
	t.Helper()
	conn, err := net.Dial("unix", filepath.Join(p.dir, "sock"))
	if err != nil {
		t.Fatal(err)
	}
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	lines := bufio.NewScanner(conn)
	lines.Buffer(nil, 1<<20)
	return &client{conn, lines}
}

// ask asks whichever daemon there is. One that dies over it is not asked again.
func (p *portd) ask(t *testing.T, words string) string {
	t.Helper()
	c := p.dial(t)
	defer c.Close()
	answer, err := c.ask(words)
	if err != nil {
		t.Fatalf("%s: %v", words, err)
	}
	return answer
}

func (p *portd) daemonPID(t *testing.T) int {
	t.Helper()
	pid, err := strconv.Atoi(p.ask(t, "pid"))
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

func (c *client) ask(words string) (string, error) {
	if _, err := fmt.Fprintln(c, words); err != nil {
		return "", err
	}
	if !c.lines.Scan() {
		return "", errors.Join(errors.New("no answer"), c.lines.Err())
	}
	return c.lines.Text(), nil
}
