package keeper_test

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
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

	"github.com/portd/portd/internal/keeper"
	"github.com/portd/portd/internal/nstest"
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

func (c *client) ask(words string) (string, error) {
	if _, err := fmt.Fprintln(c, words); err != nil {
		return "", err
	}
	if !c.lines.Scan() {
		return "", errors.Join(errors.New("no answer"), c.lines.Err())
	}
	return c.lines.Text(), nil
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

// ends waits for the keeper and returns what a shell would.
func (p *portd) ends(t *testing.T) int {
	t.Helper()
	var exit *exec.ExitError
	if err := p.Wait(); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	if status := p.ProcessState.Sys().(syscall.WaitStatus); status.Signaled() {
		return 128 + int(status.Signal())
	}
	return p.ProcessState.ExitCode()
}

func rounds(short, long int) int {
	if os.Getenv("PORTD_LONG") != "" {
		return long
	}
	return short
}

func descriptors(t *testing.T, pid int) int {
	t.Helper()
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	return len(fds)
}

// TestKilled kills the daemon again and again, at random moments. No client is refused, and everything that was put is there.
func TestKilled(t *testing.T) {
	t.Parallel()
	p := start(t)
	p.ask(t, "put s. 40")
	want := p.ask(t, "items")
	p.ask(t, "settle")
	before := descriptors(t, p.Process.Pid)
	for range rounds(25, 300) {
		pid := p.daemonPID(t)
		if err := unix.Kill(pid, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if now := p.daemonPID(t); now == pid {
			t.Error("a dead daemon answers")
		}
		if rand.IntN(3) > 0 { // else it dies as soon as it answers
			if got := p.ask(t, "items"); got != want {
				t.Fatalf("the daemon has %s, want %s", got, want)
			}
		}
	}
	if got := p.ask(t, "items"); got != want {
		t.Errorf("the daemon has %s, want %s", got, want)
	}
	if after := descriptors(t, p.Process.Pid); after != before {
		t.Errorf("the keeper has %d descriptors, had %d", after, before)
	}
	if log := p.log.String(); !strings.Contains(log, "signal 9 (killed)") {
		t.Error("the log does not say what the daemon died of")
	}
}

// TestBothKilled kills the daemon and the keeper in turns.
func TestBothKilled(t *testing.T) {
	t.Parallel()
	p := start(t)
	p.ask(t, "put s. 300") // more than there is room for in a socket
	want := p.ask(t, "items")
	for i := range rounds(20, 300) {
		var victim int
		if i%2 == 0 {
			victim = p.theKeeper(t)
		} else {
			victim = p.daemonPID(t)
		}
		if err := unix.Kill(victim, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		eventually(t, "everything is kept", func() bool { return p.ask(t, "kept") == "true" && p.daemonPID(t) != victim && p.theKeeper(t) != victim })
		p.ask(t, "settle")
		if got := p.ask(t, "items"); got != want {
			t.Fatalf("after %d rounds the daemon has %s, want %s", i, got, want)
		}
	}
	if n := len(p.all(t)); n != 2 {
		t.Errorf("%d processes are there", n)
	}
	// The last keeper is nobody's child. It goes when the daemon does.
	if err := unix.Kill(p.theKeeper(t), unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	eventually(t, "all have gone", func() bool { return len(p.all(t)) == 0 })
}

// theKeeper waits for there to be one.
func (p *portd) theKeeper(t *testing.T) int {
	t.Helper()
	var all []int
	eventually(t, "there is one keeper", func() bool {
		all = p.keepers(t)
		return len(all) == 1
	})
	return all[0]
}

func TestStops(t *testing.T) {
	t.Parallel()
	for _, sig := range []syscall.Signal{unix.SIGTERM, unix.SIGINT} {
		t.Run(sig.String(), func(t *testing.T) {
			t.Parallel()
			p := start(t)
			if err := p.Process.Signal(sig); err != nil {
				t.Fatal(err)
			}
			if code := p.ends(t); code != 0 {
				t.Errorf("exit code %d", code)
			}
		})
	}
	t.Run("the group", func(t *testing.T) { // as Ctrl-C does, and systemd
		t.Parallel()
		p := prepare(t)
		p.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		p.begin(t)
		if err := unix.Kill(-p.Process.Pid, unix.SIGINT); err != nil {
			t.Fatal(err)
		}
		if code := p.ends(t); code != 0 {
			t.Errorf("exit code %d", code)
		}
	})
	t.Run("the daemon alone", func(t *testing.T) {
		t.Parallel()
		p := start(t)
		if err := unix.Kill(p.daemonPID(t), unix.SIGTERM); err != nil {
			t.Fatal(err)
		}
		if code := p.ends(t); code != 0 {
			t.Errorf("exit code %d", code)
		}
	})
	t.Run("twice", func(t *testing.T) {
		t.Parallel()
		p := start(t)
		p.write(t, "deaf", "")
		for range 2 {
			if err := p.Process.Signal(unix.SIGTERM); err != nil {
				t.Fatal(err)
			}
			time.Sleep(50 * time.Millisecond) // two signals of a kind that wait at the same time are one
		}
		if code := p.ends(t); code != 128+9 {
			t.Errorf("exit code %d", code)
		}
		if left := p.all(t); len(left) != 0 {
			t.Errorf("%v are left over", left)
		}
	})
}

func (p *portd) write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(p.dir, name), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestPassesSignalsOn(t *testing.T) {
	t.Parallel()
	p := start(t)
	for _, sig := range []syscall.Signal{unix.SIGHUP, unix.SIGUSR2} {
		if err := p.Process.Signal(sig); err != nil {
			t.Fatal(err)
		}
		eventually(t, sig.String(), func() bool {
			text, _ := os.ReadFile(filepath.Join(p.dir, "heard"))
			return string(text) == sig.String()
		})
	}
}

// A daemon that cannot start at all is not started again: it has said why.
func TestFirstStartFails(t *testing.T) {
	t.Parallel()
	p := prepare(t)
	p.write(t, "exit", "3")
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	if code := p.ends(t); code != 3 {
		t.Errorf("exit code %d", code)
	}
}

// One that has been ready once is, with pauses.
func TestBacksOff(t *testing.T) {
	t.Parallel()
	for _, how := range []string{"exit", "late"} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			p := start(t)
			p.ask(t, "put s. 3")
			want := p.ask(t, "items")
			p.write(t, how, "7")
			if err := unix.Kill(p.daemonPID(t), unix.SIGKILL); err != nil {
				t.Fatal(err)
			}
			eventually(t, "pauses grow", func() bool { return strings.Contains(p.log.String(), `"in":"80ms"`) })
			log := p.log.String()
			for _, words := range []string{"exit code 7", `"in":"0s"`, `"in":"10ms"`, `"in":"40ms"`} {
				if !strings.Contains(log, words) {
					t.Errorf("the log does not have %s", words)
				}
			}
			if err := os.Remove(filepath.Join(p.dir, how)); err != nil {
				t.Fatal(err)
			}
			if got := p.ask(t, "items"); got != want { // the client waits in the backlog
				t.Errorf("the daemon has %s, want %s", got, want)
			}
		})
	}
}

// While the daemon cannot be brought back, asking to stop stops.
func TestStopsWhileDown(t *testing.T) {
	t.Parallel()
	p := start(t)
	p.write(t, "exit", "7")
	if err := unix.Kill(p.daemonPID(t), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "pauses grow", func() bool { return strings.Contains(p.log.String(), `"in":"640ms"`) })
	if err := p.Process.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if code := p.ends(t); code != 0 && code != 7 { // asked between two, or while one was on its way down
		t.Errorf("exit code %d", code)
	}
}

// The file that the daemon was started from may be gone, or be one that does not work.
func TestBinary(t *testing.T) {
	t.Parallel()
	p := start(t)
	p.ask(t, "binary "+filepath.Join(p.dir, "gone"))
	pid := p.daemonPID(t)
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if p.daemonPID(t) == pid || !strings.Contains(p.log.String(), "the one that ran before is") {
		t.Error("the log does not say what was started")
	}
	p.write(t, "broken", "#!/bin/sh\nexit 6\n")
	if err := os.Chmod(filepath.Join(p.dir, "broken"), 0o700); err != nil {
		t.Fatal(err)
	}
	p.ask(t, "binary "+filepath.Join(p.dir, "broken"))
	if err := unix.Kill(p.daemonPID(t), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	p.daemonPID(t)
	if !strings.Contains(p.log.String(), "exit code 6") {
		t.Error("the other file was not tried")
	}
}

// The keeper becomes another program and goes on where it was.
func TestUpgrade(t *testing.T) {
	t.Parallel()
	p := start(t)
	p.ask(t, "put s. 50")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p.ask(t, "settle")
	before := descriptors(t, p.Process.Pid)
	for i := range 3 {
		p.ask(t, "upgrade-keeper "+self)
		eventually(t, "the log says so", func() bool { return strings.Count(p.log.String(), "another program now") == i+1 })
		p.ask(t, "put s. 1")
		p.ask(t, "settle")
		want := p.ask(t, "items")
		pid := p.daemonPID(t)
		if err := unix.Kill(pid, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if got := p.ask(t, "items"); got != want {
			t.Errorf("the daemon has %s, want %s", got, want)
		}
		if now := p.daemonPID(t); now == pid || parent(t, now) != p.Process.Pid {
			t.Errorf("the daemon is %d, child of %d; the keeper is %d", now, parent(t, now), p.Process.Pid)
		}
	}
	if after := descriptors(t, p.Process.Pid); after > before+3+2 { // the three things, and the file of the last daemon
		t.Errorf("the keeper has %d descriptors, had %d", after, before)
	}
	p.ask(t, "upgrade-keeper /nosuch/portd")
	p.ask(t, "settle")
	eventually(t, "the log says so", func() bool { return strings.Contains(p.log.String(), "the keeper stays what it is") })
	if err := p.Process.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if code := p.ends(t); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

func parent(t *testing.T, pid int) int {
	t.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	ppid, err := strconv.Atoi(fields[1])
	if err != nil {
		t.Fatal(err)
	}
	return ppid
}

// Another process takes the daemon's place, with the same keeper.
func TestSuccessor(t *testing.T) {
	t.Parallel()
	p := start(t)
	p.ask(t, "put s. 20")
	want := p.ask(t, "items")
	for range 3 {
		old := p.dial(t)
		pid, err := old.ask("succeed")
		if err != nil {
			t.Fatal(err)
		}
		eventually(t, "the successor answers", func() bool { return p.ask(t, "pid") == pid })
		if _, err := old.ask("leave"); err == nil {
			t.Error("the old one stays")
		}
		old.Close()
		eventually(t, "the old one has left", func() bool { return len(p.all(t)) == 2 })
		if got := p.ask(t, "items"); got != want {
			t.Errorf("the daemon has %s, want %s", got, want)
		}
		p.ask(t, "put x. 1")
		p.ask(t, "settle")
		want = p.ask(t, "items")
		if err := unix.Kill(p.daemonPID(t), unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if got := p.ask(t, "items"); got != want {
			t.Errorf("the daemon has %s, want %s", got, want)
		}
	}
	if !strings.Contains(p.log.String(), "another process is the daemon") {
		t.Error("the log does not say who is the daemon")
	}
	if strings.Contains(p.log.String(), "not known") {
		t.Error("how a successor ended is not known")
	}
	if err := p.Process.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if code := p.ends(t); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

// Orphans of the daemon are the keeper's, which waits for them.
func TestReapsOrphans(t *testing.T) {
	t.Parallel()
	p := start(t)
	p.ask(t, "orphan")
	daemon := p.daemonPID(t)
	eventually(t, "no zombies are left", func() bool {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", p.Process.Pid))
		if errors.Is(err, os.ErrNotExist) {
			t.Skip("the kernel does not list children (CONFIG_PROC_CHILDREN)")
		}
		return strings.TrimSpace(string(text)) == strconv.Itoa(daemon)
	})
}

// Memory: what a keeper takes with thousands of descriptors, after many have come and gone.
func TestMemory(t *testing.T) {
	t.Parallel()
	p := start(t)
	p.ask(t, "put s. 3000")
	p.ask(t, fmt.Sprintf("churn %d", rounds(20000, 1000000)))
	if n := descriptors(t, p.Process.Pid); n < 3000 || n > 3050 {
		t.Errorf("the keeper has %d descriptors", n)
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, "RssAnon:"); ok {
			kb, err := strconv.Atoi(strings.Fields(rest)[0])
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("RssAnon is %d kB", kb)
			if kb > 4096 && !raceEnabled {
				t.Errorf("the keeper takes %d kB", kb)
			}
		}
	}
}

// What a service manager passes goes by way of the keeper, and what the daemon says to it too.
func TestServiceManager(t *testing.T) {
	nstest.Descriptors(t)
	p := prepare(t)
	notify, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(p.dir, "notify"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer notify.Close()
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(p.dir, "sock"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	file, err := ln.File()
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	p.ExtraFiles = []*os.File{file}
	p.Args = []string{"sh", "-c", `LISTEN_PID=$$ exec "$@"`, "sh", p.Path}
	p.Path = "/bin/sh"
	p.Env = append(p.Env, "LISTEN_FDS=1", "LISTEN_FDNAMES=listen", "NOTIFY_SOCKET="+notify.LocalAddr().String())
	p.begin(t)
	if err := notify.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	hears := func(want string) {
		t.Helper()
		text := make([]byte, 4096)
		n, err := notify.Read(text)
		if err != nil || string(text[:n]) != want {
			t.Errorf("heard %q, %v; want %q", text[:n], err, want)
		}
	}
	hears("READY=1")
	if got := p.ask(t, "items"); !strings.HasPrefix(got, "listen=") {
		t.Errorf("the daemon has %s", got)
	}
	if err := unix.Kill(p.daemonPID(t), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	p.daemonPID(t)
	hears("READY=1")
	if err := p.Process.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	hears("STOPPING=1")
	if code := p.ends(t); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

// With an FD store there is no keeper.
func TestWanted(t *testing.T) {
	for _, tt := range []struct {
		notify, store, keeper string
		want                  bool
	}{
		{"", "", "", true},
		{"/run/systemd/notify", "", "", true},
		{"/run/systemd/notify", "0", "", true},
		{"/run/systemd/notify", "512", "", false},
		{"", "512", "", true},
		{"", "", "3", false},
	} {
		t.Setenv("NOTIFY_SOCKET", tt.notify)
		t.Setenv("FDSTORE", tt.store)
		t.Setenv(keeper.EnvKeeper, tt.keeper)
		if got := keeper.Wanted(); got != tt.want {
			t.Errorf("%+v: %v", tt, got)
		}
	}
}

// Where nobody keeps anything a daemon starts all the same.
func TestConnectWithout(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	t.Setenv(keeper.EnvKeeper, "")
	s, items, err := keeper.Connect(slog.New(slog.DiscardHandler))
	if err != nil || items != nil || s.Kept() {
		t.Errorf("%v, %v, %v", items, err, s.Kept())
	}
	for _, wrong := range []string{"x", "0", "999"} {
		t.Setenv(keeper.EnvKeeper, wrong)
		if _, _, err := keeper.Connect(slog.New(slog.DiscardHandler)); err == nil {
			t.Errorf("%s=%s is taken", keeper.EnvKeeper, wrong)
		}
	}
}

// Connections of a daemon that does not come back are given up.
func TestDropsHolder(t *testing.T) {
	if os.Getenv("PORTD_LONG") == "" {
		t.Skip("it takes ten seconds; PORTD_LONG=1 runs it")
	}
	t.Parallel()
	p := start(t)
	p.ask(t, "holder")
	p.write(t, "exit", "7")
	if err := unix.Kill(p.daemonPID(t), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "they are given up", func() bool { return strings.Contains(p.log.String(), "are given up") })
	if err := os.Remove(filepath.Join(p.dir, "exit")); err != nil {
		t.Fatal(err)
	}
	if got := p.ask(t, "items"); strings.Contains(got, "holder") {
		t.Errorf("the daemon has %s", got)
	}
}
