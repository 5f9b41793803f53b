package keeper_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

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
	t.Run("the daemon alone, which fails", func(t *testing.T) {
		t.Parallel()
		p := start(t)
		p.write(t, "fails to stop", "5")
		if err := unix.Kill(p.daemonPID(t), unix.SIGTERM); err != nil {
			t.Fatal(err)
		}
		if code := p.ends(t); code != 5 {
			t.Errorf("exit code %d", code)
		}
	})
	t.Run("before it listens", func(t *testing.T) {
		t.Parallel()
		p := prepare(t)
		p.write(t, "young", "")
		if err := p.Start(); err != nil {
			t.Fatal(err)
		}
		eventually(t, "there is a daemon", func() bool {
			_, err := os.Stat(filepath.Join(p.dir, "is young"))
			return err == nil
		})
		if err := p.Process.Signal(unix.SIGTERM); err != nil {
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
