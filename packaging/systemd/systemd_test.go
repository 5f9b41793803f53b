package systemd

import (
	"bufio"
	"errors"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const (
	served = "tcp/127.0.0.1:7000"
	held   = "tcp/127.0.0.1:7001"
	where  = "127.0.0.1:7000"
)

// TestUnit goes through a life of the unit: a start, deaths, restarts, upgrades and a stop, with clients all the time.
func TestUnit(t *testing.T) {
	m := boot(t)
	if _, err := exec.LookPath("systemd-analyze"); err == nil {
		if out, err := m.try("systemd-analyze", "verify", "--man=no", "/run/units/portd.service"); err != nil || out != "" {
			t.Errorf("%v: %s", err, out)
		}
	}
	m.run(t, "systemctl", "start", "portd")
	m.run(t, "portctl", "reserve", held)
	w := m.command("env", envWorker+"="+served, "/proc/self/fd/3")
	self, err := os.Open("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	defer self.Close()
	w.ExtraFiles = []*os.File{self}
	w.Stderr = os.Stderr
	out, err := w.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Start(); err != nil {
		t.Fatal(err)
	}
	defer w.Wait()
	defer w.Process.Kill()
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		t.Fatalf("the worker says %q, %v", line, err)
	}
	clients := m.load(t, where)
	clients.more(t, 100)

	t.Run("no keeper", func(t *testing.T) {
		for _, command := range m.processes(t) {
			if strings.Contains(command, "keeper") {
				t.Errorf("there is a %q", command)
			}
		}
		if n, _ := strconv.Atoi(m.property(t, "NFileDescriptorStore")); n < 5 {
			t.Errorf("systemd keeps %d descriptors", n)
		}
	})
	t.Run("killed", func(t *testing.T) {
		kills := 5
		if os.Getenv("PORTD_LONG") != "" {
			kills = 100
		}
		for range kills {
			clients.more(t, 50)
			pid := m.property(t, "MainPID")
			m.run(t, "systemctl", "kill", "--kill-whom=main", "-s", "KILL", "portd")
			m.await(t, pid)
		}
		clients.more(t, 50)
		clients.check(t)
		m.taken(t)
	})
	t.Run("restarted", func(t *testing.T) {
		for range 3 {
			clients.more(t, 50)
			pid := m.property(t, "MainPID")
			m.run(t, "systemctl", "restart", "portd")
			m.await(t, pid)
		}
		clients.more(t, 50)
		clients.check(t)
		m.taken(t)
	})
	t.Run("reloaded", func(t *testing.T) {
		for range 3 {
			clients.more(t, 50)
			pid := m.property(t, "MainPID")
			m.run(t, "systemctl", "reload", "portd")
			if now := m.property(t, "MainPID"); now == pid {
				t.Errorf("process %s is the daemon still", pid)
			}
		}
		clients.more(t, 50)
		clients.check(t)
		m.taken(t)
		pid := m.property(t, "MainPID")
		m.run(t, "systemctl", "kill", "--kill-whom=main", "-s", "KILL", "portd")
		m.await(t, pid)
		clients.more(t, 50)
		clients.check(t)
	})
	t.Run("stopped", func(t *testing.T) {
		clients.end()
		m.run(t, "systemctl", "stop", "portd")
		if n := m.property(t, "NFileDescriptorStore"); n != "0" {
			t.Errorf("systemd keeps %s descriptors", n)
		}
		for until := time.Now().Add(5 * time.Second); ; time.Sleep(5 * time.Millisecond) {
			left := m.processes(t)
			if len(left) == 0 {
				break
			}
			if time.Now().After(until) {
				t.Fatalf("these are left: %q", left)
			}
		}
		m.inside(t, func() {
			if err := echo(where); !errors.Is(err, unix.ECONNREFUSED) {
				t.Errorf("a client gets %v", err)
			}
		})
		m.run(t, "systemctl", "start", "portd")
		m.taken(t)
	})
	_ = w.Process.Signal(unix.SIGTERM)
}

// processes are the commands in the unit's control group.
func (m *machine) processes(t *testing.T) (commands []string) {
	t.Helper()
	out, _ := m.try("sh", "-c", `for p in $(cat /sys/fs/cgroup/system.slice/portd.service/cgroup.procs); do tr '\0' ' ' </proc/$p/cmdline; cat /proc/$p/comm; done`)
	for line := range strings.Lines(out) {
		if !strings.Contains(line, "No such file") {
			commands = append(commands, strings.TrimSpace(line))
		}
	}
	return commands
}

// taken fails the test where portd does not hold what it is to hold.
func (m *machine) taken(t *testing.T) {
	t.Helper()
	if out := m.run(t, "portctl", "list"); !strings.Contains(out, "7000") || !strings.Contains(out, "7001") || strings.Contains(out, "lost") {
		t.Errorf("portd has\n%s", out)
	}
	m.inside(t, func() {
		if ln, err := net.Listen("tcp4", "127.0.0.1:7001"); !errors.Is(err, unix.EADDRINUSE) {
			t.Errorf("%s is free: %v", held, err)
			if err == nil {
				ln.Close()
			}
		}
	})
}
