package main

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/nstest"
	"github.com/portd/portd/internal/portdtest"
	pb "github.com/portd/portd/proto/portd/v1"
)

// envMain makes the test binary portd.
const envMain = "PORTD_TEST_MAIN"

func TestMain(m *testing.M) {
	if os.Getenv(envMain) != "" {
		main()
	}
	nstest.Main(m)
}

// A portd is one that runs, in the places of a portdtest.Daemon.
type portd struct {
	*portdtest.Daemon
	*exec.Cmd
	log *lines
}

type lines struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

func prepare(t *testing.T, args ...string) *portd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	d := portdtest.New(t)
	p := &portd{Daemon: d, log: &lines{}}
	p.Cmd = exec.Command(self, append(args, "--socket", d.Socket, "--state", d.State, "--policy", d.Policy)...)
	p.Env = append(os.Environ(), envMain+"=1")
	p.Stderr = p.log
	p.WaitDelay = 10 * time.Second
	p.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	t.Cleanup(func() {
		if p.Process != nil {
			_ = unix.Kill(-p.Process.Pid, unix.SIGKILL) // both processes at once; ESRCH: they have ended
			_ = p.Wait()
		}
		if t.Failed() {
			t.Logf("the log:\n%s", p.log)
		}
	})
	return p
}

// start returns when it is ready.
func start(t *testing.T, args ...string) *portd {
	t.Helper()
	p := prepare(t, args...)
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "portd is ready", func() bool { return strings.Contains(p.log.String(), `"msg":"ready"`) })
	return p
}

func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !is(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never: %s", what)
		}
	}
}

func (p *portd) ends(t *testing.T) int {
	t.Helper()
	var exit *exec.ExitError
	if err := p.Wait(); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return p.ProcessState.ExitCode()
}

func (p *portd) status(t *testing.T) *pb.GetStatusResponse {
	t.Helper()
	st, err := p.Client(t).Daemon.GetStatus(t.Context(), &pb.GetStatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	return st
}

// TestKeeper: the process that is started is small, stays, and has its daemon come back.
func TestKeeper(t *testing.T) {
	p := start(t)
	for range 3 {
		before := p.status(t).GetPid()
		if int(before) == p.Process.Pid {
			t.Fatal("the daemon is the process that was started")
		}
		if err := unix.Kill(int(before), unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if now := p.status(t).GetPid(); now == before {
			t.Error("a dead daemon answers")
		}
	}
	if kb := rssAnon(t, p.Process.Pid); kb > 4096 && !raceEnabled {
		t.Errorf("the keeper takes %d kB", kb)
	}
	if err := p.Process.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if code := p.ends(t); code != 0 {
		t.Errorf("exit code %d", code)
	}
	if _, err := net.Dial("unix", p.Socket); err == nil {
		t.Error("somebody still answers")
	}
}

func rssAnon(t *testing.T, pid int) int {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "RssAnon:"); ok {
			kb, err := strconv.Atoi(strings.Fields(rest)[0])
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("RssAnon is %d kB", kb)
			return kb
		}
	}
	t.Fatal("/proc does not say RssAnon")
	return 0
}

// TestOneProcess: who wants no keeper, or has one in the service manager, gets the daemon itself.
func TestOneProcess(t *testing.T) {
	t.Run("--no-keeper", func(t *testing.T) {
		p := start(t, "--no-keeper")
		if pid := p.status(t).GetPid(); int(pid) != p.Process.Pid {
			t.Errorf("the daemon is %d, and %d was started", pid, p.Process.Pid)
		}
	})
	t.Run("FDSTORE", func(t *testing.T) {
		p := prepare(t)
		path := p.Daemon.Dir + "/notify"
		notify, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
		if err != nil {
			t.Fatal(err)
		}
		defer notify.Close()
		p.Env = append(p.Env, "NOTIFY_SOCKET="+path, "FDSTORE=100")
		if err := p.Start(); err != nil {
			t.Fatal(err)
		}
		// What the service manager does with it is its own; here everything is closed as soon as it comes.
		var said bytes.Buffer
		if err := notify.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
			t.Fatal(err)
		}
		for !strings.Contains(said.String(), "READY=1") {
			text, control := make([]byte, 4096), make([]byte, 1024)
			n, cn, _, _, err := notify.ReadMsgUnix(text, control)
			if err != nil {
				t.Fatalf("%v; portd said %q", err, &said)
			}
			said.Write(append(text[:n], '\n'))
			closeRights(t, control[:cn])
		}
		if !strings.Contains(said.String(), "FDSTORE=1\nFDNAME=lock\nFDPOLL=0\n") {
			t.Errorf("portd said %q", &said)
		}
		go func() { // BARRIER=1 at the end
			for {
				control := make([]byte, 1024)
				_, cn, _, _, err := notify.ReadMsgUnix(make([]byte, 4096), control)
				if err != nil {
					return
				}
				closeRights(t, control[:cn])
			}
		}()
		if pid := p.status(t).GetPid(); int(pid) != p.Process.Pid {
			t.Errorf("the daemon is %d, and %d was started", pid, p.Process.Pid)
		}
		if err := p.Process.Signal(unix.SIGTERM); err != nil {
			t.Fatal(err)
		}
		if code := p.ends(t); code != 0 {
			t.Errorf("exit code %d", code)
		}
	})
}

func closeRights(t *testing.T, control []byte) {
	messages, err := unix.ParseSocketControlMessage(control)
	if err != nil {
		t.Error(err)
	}
	for _, m := range messages {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			t.Error(err)
		}
		for _, fd := range fds {
			_ = unix.Close(fd)
		}
	}
}

// TestFails: what a portd cannot do is said through its keeper, which does not try it again and again.
func TestFails(t *testing.T) {
	first := start(t)
	second := prepare(t)
	second.Args = append(second.Args, "--socket", first.Socket)
	if err := second.Start(); err != nil {
		t.Fatal(err)
	}
	if code := second.ends(t); code != 1 || !strings.Contains(second.log.String(), fmt.Sprintf("pid %d", first.status(t).GetPid())) {
		t.Errorf("a second portd exits with %d", code)
	}
	for _, arg := range []string{"--nonsense", "--acceptors=9"} {
		wrong := prepare(t, arg)
		if err := wrong.Start(); err != nil {
			t.Fatal(err)
		}
		if code := wrong.ends(t); code != 2 {
			t.Errorf("%s: wrong usage exits with %d", arg, code)
		}
	}
}

// TestStopsWhileStarting: whenever it is asked to stop, it stops, and that is no failure.
func TestStopsWhileStarting(t *testing.T) {
	for i := range 24 {
		p := prepare(t)
		if err := p.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(i) * 4 * time.Millisecond) // some moment of the start
		if err := p.Process.Signal(unix.SIGTERM); err != nil {
			t.Fatal(err)
		}
		deaf := time.AfterFunc(10*time.Second, func() { _ = unix.Kill(-p.Process.Pid, unix.SIGKILL) })
		code := p.ends(t)
		if !deaf.Stop() {
			t.Errorf("asked in millisecond %d, it did not stop", 4*i)
		}
		// The kernel ends what does not listen yet.
		if young := p.ProcessState.Sys().(syscall.WaitStatus).Signal() == unix.SIGTERM; code != 0 && !young {
			t.Errorf("asked in millisecond %d, it exits with %d", 4*i, code)
		}
	}
}
