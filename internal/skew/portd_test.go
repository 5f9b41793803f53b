package skew_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/client"
	pb "github.com/portd/portd/proto/portd/v1"
)

// A stage is one portd in the course of a test, whatever release it is of at the moment, with those who use it.
type stage struct {
	*testing.T
	dir, socket, state, policy string
	path                       string // of the file that it is started from: a link to some release's
	log                        *os.File
	cmd                        *exec.Cmd // its keeper; nil while it does not run
	client                     *client.Client
	repeated                   string // what a request that is made again and again has reserved

	workers []*worker
	crowds  []*crowd
	watches []*watch
}

// open makes a place for a portd. It starts none.
func open(t *testing.T) *stage {
	t.Helper()
	dir, err := os.MkdirTemp("", "portd") // t.TempDir's names may not fit into a socket address
	if err != nil {
		t.Fatal(err)
	}
	s := &stage{
		T: t, dir: dir, state: filepath.Join(dir, "state"), policy: filepath.Join(dir, "policy.yaml"), path: filepath.Join(dir, "portd"),
		socket: filepath.Join(dir, "state", "portd.sock"), // beside the state, where portctl finds that without a portd
	}
	if s.log, err = os.Create(filepath.Join(dir, "log")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.stop()
		if t.Failed() {
			text, _ := os.ReadFile(s.log.Name())
			t.Logf("the log of portd:\n%s", text[max(0, len(text)-20_000):])
		}
		s.log.Close()
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	if err := errors.Join(os.WriteFile(s.policy, nil, 0o644), os.Chmod(dir, 0o755)); err != nil {
		t.Fatal(err)
	}
	return s
}

// install puts a release's portd where the next one is started from, as a package manager does.
func (s *stage) install(r *release) {
	s.Helper()
	if err := errors.Join(os.Link(r.portd(), s.path+".new"), os.Rename(s.path+".new", s.path)); err != nil {
		s.Fatal(err)
	}
}

// start starts what is installed, and returns when it answers.
func (s *stage) start() {
	s.Helper()
	s.cmd = exec.Command(s.path, "--socket", s.socket, "--state", s.state, "--policy", s.policy)
	s.cmd.Env = append(os.Environ(), "GOMAXPROCS=8") // as on a larger machine, where several threads hand over
	s.cmd.Stdout, s.cmd.Stderr = s.log, s.log
	if err := s.cmd.Start(); err != nil {
		s.Fatal(err)
	}
	s.daemon(0)
	if s.client == nil {
		cl, err := client.Dial(s.Context(), client.Options{Socket: s.socket})
		if err != nil {
			s.Fatal(err)
		}
		s.client = cl
		s.Cleanup(func() { cl.Close() })
	}
}

// stop stops it as a user does.
func (s *stage) stop() {
	s.Helper()
	if s.cmd == nil {
		return
	}
	_ = s.cmd.Process.Signal(unix.SIGTERM)
	late := time.AfterFunc(20*time.Second, func() { _ = s.cmd.Process.Kill() })
	defer late.Stop()
	if err := s.cmd.Wait(); err != nil {
		s.Errorf("portd ends with %v", err)
	}
	s.cmd = nil
}

// crash ends all of it at once, as the power does: keeper, daemon and holder.
func (s *stage) crash() {
	s.Helper()
	keeper := s.cmd.Process.Pid
	all := append([]int{keeper}, descendants(keeper)...)
	for _, sig := range []unix.Signal{unix.SIGSTOP, unix.SIGKILL} { // nobody comes to start another
		for _, pid := range all {
			if err := unix.Kill(pid, sig); err != nil {
				s.Fatal(err)
			}
		}
	}
	_ = s.cmd.Wait()
	s.cmd = nil
	for _, pid := range all[1:] {
		s.wait(fmt.Sprintf("end of %d", pid), func() bool {
			stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
			return err != nil || strings.Contains(string(stat), ") Z ")
		})
	}
}

// descendants are the processes that have come from one.
func descendants(pid int) (all []int) {
	lists, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, list := range lists {
		text, _ := os.ReadFile(list)
		for _, field := range strings.Fields(string(text)) {
			child := 0
			if _, err := fmt.Sscan(field, &child); err == nil {
				all = append(append(all, child), descendants(child)...)
			}
		}
	}
	return all
}

// daemon waits until a portd answers that is not this one, and is its pid.
func (s *stage) daemon(not int) (pid int) {
	s.Helper()
	s.wait("portd that answers", func() bool {
		ctx, cancel := context.WithTimeout(s.Context(), 5*time.Second)
		defer cancel()
		c, err := client.Dial(ctx, client.Options{Socket: s.socket})
		if err != nil {
			return false
		}
		defer c.Close()
		st, err := c.Daemon.GetStatus(ctx, &pb.GetStatusRequest{})
		pid = int(st.GetPid())
		return err == nil && pid != not
	})
	return pid
}

// kill kills the daemon, and waits for the next one.
func (s *stage) kill() {
	s.Helper()
	pid := s.daemon(0)
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		s.Fatal(err)
	}
	s.daemon(pid)
}

// upgrade has a release's portd take over, by asking with a release's portctl.
func (s *stage) upgrade(by, to *release) {
	s.Helper()
	pid := s.daemon(0)
	s.portctl(by, "upgrade", "--binary", to.portd())
	if s.daemon(0) == pid {
		s.Errorf("%d is still the daemon", pid)
	}
}

// runs fails the test unless the daemon and its keeper are of these releases, and the keeper is the process that was started.
func (s *stage) runs(daemon, keeper *release) {
	s.Helper()
	pid, parent := s.daemon(0), s.cmd.Process.Pid
	if !is(pid, daemon) {
		s.Errorf("the daemon is not of the %v release", daemon)
	}
	s.wait(fmt.Sprintf("keeper of the %v release", keeper), func() bool { return is(parent, keeper) }) // it hears of it after the daemon answers
	s.wait(fmt.Sprintf("keeper %d that is the parent of the daemon", parent), func() bool {            // it is, once the daemon of before has ended
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			s.Fatal(err)
		}
		_, rest, _ := strings.Cut(string(stat), ") ") // state, parent, …
		return strings.Fields(rest)[1] == fmt.Sprint(parent)
	})
}

// alone says whether there is one daemon, which answers, and nothing is left of another one.
func (s *stage) alone() bool {
	s.Helper()
	pid, daemons := s.daemon(0), 0
	for _, some := range descendants(s.cmd.Process.Pid) {
		comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", some))
		if err == nil && string(comm) == "portd\n" {
			daemons++
		}
	}
	return daemons == 1 && s.daemon(0) == pid
}

// is says whether a process runs a release's portd.
func is(pid int, r *release) bool {
	runs, err1 := os.Stat(fmt.Sprintf("/proc/%d/exe", pid))
	file, err2 := os.Stat(r.portd())
	return err1 == nil && err2 == nil && os.SameFile(runs, file)
}

// portctl runs a release's portctl and returns what it prints.
func (s *stage) portctl(r *release, args ...string) string {
	s.Helper()
	out, err := s.command(r, "portctl", args...).Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			err = fmt.Errorf("%w: %s", err, exit.Stderr)
		}
		s.Fatalf("%v portctl %s: %v\n%s", r, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// command is a release's program that knows where portd is.
func (s *stage) command(r *release, program string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(s.Context(), filepath.Join(r.bin, program), args...)
	cmd.Env = append(os.Environ(), "PORTD_SOCKET="+s.socket, "PORTD_GENERATION="+r.name)
	return cmd
}

// wait asks until it is so.
func (s *stage) wait(what string, so func() bool) {
	s.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for late := time.After(20 * time.Second); !so(); {
		select {
		case <-tick.C:
		case <-late:
			s.Fatalf("waited in vain for: %s", what)
		}
	}
}
