package skew_test

import (
	"bytes"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	pb "github.com/portd/portd/proto/portd/v1"
)

// A worker is a program that serves, and was made with a release's client.
type worker struct {
	*exec.Cmd
	s      *stage
	of     *release
	where  string
	socket bool // it has the socket itself, so that portd does not see what it serves
	stderr bytes.Buffer
}

// languages are those that there are workers in, and how one of a release is started.
var languages = map[string]func(s *stage, r *release, where string) *exec.Cmd{
	"go": func(s *stage, r *release, where string) *exec.Cmd { return s.command(r, "http-worker", where) },
	"c": func(s *stage, r *release, where string) *exec.Cmd {
		if r.echo == "" {
			return nil
		}
		return s.command(r, "echo", "--socket", s.socket, "--generation", r.name, where)
	},
	"python": func(s *stage, r *release, where string) *exec.Cmd {
		return s.python(r, where)
	},
	"python-socket": func(s *stage, r *release, where string) *exec.Cmd { return s.python(r, "--lend", where) },
}

func (s *stage) python(r *release, args ...string) *exec.Cmd {
	python, err := exec.LookPath("python3")
	if err != nil {
		return nil
	}
	args = append([]string{filepath.Join(r.src, "clients/testdata/worker.py"), "--socket", s.socket, "--generation", r.name}, args...)
	cmd := exec.CommandContext(s.Context(), python, args...)
	cmd.Env = append(os.Environ(), "PYTHONDONTWRITEBYTECODE=1", "PYTHONWARNINGS=error")
	return cmd
}

// work starts a worker and waits until portd has it. It reports whether this machine can run one in that language.
func (s *stage) work(language string, r *release, where string) bool {
	s.Helper()
	cmd := languages[language](s, r, where)
	if cmd == nil {
		s.Logf("nothing here runs a worker in %s", language)
		return false
	}
	w := &worker{Cmd: cmd, s: s, of: r, where: where, socket: language == "python-socket"}
	w.Stderr = &w.stderr
	w.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
	if err := w.Start(); err != nil {
		s.Fatal(err)
	}
	s.workers = append(s.workers, w)
	s.Cleanup(func() {
		if w.ProcessState == nil {
			_ = w.Process.Kill()
			_ = w.Wait()
		}
		if s.Failed() {
			s.Logf("the %v worker of %s says:\n%s", r, where, w.stderr.String())
		}
	})
	s.wait("worker that attaches", func() bool { return w.seen() != nil })
	return true
}

// seen is what portd knows of a worker; nil: nothing.
func (w *worker) seen() *pb.Worker {
	got, err := w.s.client.Handoff.ListWorkers(w.s.Context(), &pb.ListWorkersRequest{})
	if err != nil {
		w.s.Fatal(err)
	}
	for _, seen := range got.GetWorkers() {
		if int(seen.GetPid()) == w.Process.Pid {
			return seen
		}
	}
	return nil
}

// serves fails the test unless each worker is sent connections, and takes them.
func (s *stage) serves() {
	s.Helper()
	began := map[*worker]uint64{}
	for _, w := range s.workers {
		s.wait("worker that is attached", func() bool { return w.seen() != nil })
		seen := w.seen()
		began[w] = seen.GetDone()
		if seen.GetGeneration() != w.of.name {
			s.Errorf("the %v worker of %s is of generation %q", w.of, w.where, seen.GetGeneration())
		}
	}
	for _, w := range s.workers {
		if !w.socket {
			s.wait("connections of the "+w.of.name+" worker of "+w.where, func() bool { return w.seen().GetDone() > began[w]+5 })
			continue
		}
		conn, err := net.Dial("udp", "127.0.0.1:"+w.where[strings.LastIndexByte(w.where, '/')+1:])
		if err != nil {
			s.Fatal(err)
		}
		_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
		answer := make([]byte, 16)
		if _, err := conn.Write([]byte("here?")); err != nil {
			s.Error(err)
		}
		if n, err := conn.Read(answer); err != nil || string(answer[:n]) != "here?" {
			s.Errorf("the %v worker of %s answers %q, %v", w.of, w.where, answer[:n], err)
		}
		conn.Close()
	}
}

// drain has each worker leave as it does when it is replaced, and fails the test where it complains.
func (s *stage) drain() {
	s.Helper()
	for _, w := range s.workers {
		if w.socket {
			continue // it knows nothing of that
		}
		_ = w.Process.Signal(unix.SIGTERM)
		late := time.AfterFunc(20*time.Second, func() { _ = w.Process.Signal(unix.SIGABRT) })
		if err := w.Wait(); err != nil {
			s.Errorf("the %v worker of %s ends by %v", w.of, w.where, err)
		}
		late.Stop()
		for _, bad := range []string{"Traceback", "Warning", "ERROR", "panic"} {
			if strings.Contains(w.stderr.String(), bad) {
				s.Errorf("the %v worker of %s says:\n%s", w.of, w.where, w.stderr.String())
				break
			}
		}
	}
}
