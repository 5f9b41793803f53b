package model

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/portdtest"
)

// A theatre is where real programs play: each daemon stops at each of its points until the theatre lets it go on.
type theatre struct {
	d   *portdtest.Daemon
	cmd *exec.Cmd // the first keeper
	log *os.File

	mu      sync.Mutex
	changed *sync.Cond
	actors  []*player // daemons that live, in the order in which they began
	blow    *blow     // that is to come; nil: everybody goes on
	still   bool      // nobody goes on: somebody is just dying
}

// A player is a daemon.
type player struct {
	pid  int
	at   string          // where it waits
	seen map[string]bool // where it has been
	ends bool            // it is killed, or will be by the keeper or the kernel, or leaves
}

// openTheatre starts a portd that plays in one.
func openTheatre(t *testing.T) *theatre {
	t.Helper()
	s := &theatre{d: portdtest.New(t)}
	s.changed = sync.NewCond(&s.mu)
	path := filepath.Join(s.d.Dir, "stage")
	ln, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: path, Net: "unixpacket"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go s.direct(ln)
	if s.log, err = os.Create(filepath.Join(s.d.Dir, "log")); err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	s.cmd = exec.Command(self, "--socket", s.d.Socket, "--state", s.d.State, "--policy", s.d.Policy)
	s.cmd.Env = append(os.Environ(), envStage+"="+path, "GORACE=atexit_sleep_ms=0")
	s.cmd.Stdout, s.cmd.Stderr = s.log, s.log
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.clear(t) })
	s.wait(t, "a portd", s.alone)
	return s
}

// clear stops what still runs, as a user does, and waits for it.
func (s *theatre) clear(t *testing.T) {
	t.Helper()
	s.mu.Lock()
	s.blow = nil
	s.changed.Broadcast()
	actors := append([]*player(nil), s.actors...)
	s.mu.Unlock()
	for _, p := range actors {
		_ = unix.Kill(p.pid, unix.SIGTERM)
	}
	s.wait(t, "end", func() bool { return len(s.actors) == 0 })
	late := time.AfterFunc(20*time.Second, func() { _ = s.cmd.Process.Kill() })
	_ = s.cmd.Wait()
	late.Stop()
	if t.Failed() {
		said, _ := os.ReadFile(s.log.Name())
		t.Logf("the log of portd:\n%s", said)
	}
	s.log.Close()
}

func (s *theatre) direct(ln *net.UnixListener) {
	for {
		conn, err := ln.Accept()
		if err != nil {
			return
		}
		go s.follow(conn)
	}
}

// follow hears a daemon, and answers when it may go on.
func (s *theatre) follow(conn net.Conn) {
	defer conn.Close()
	var p *player
	buf := make([]byte, 64)
	for {
		n, err := conn.Read(buf)
		if err != nil {
			return
		}
		var pid int
		var point string
		if _, err := fmt.Sscan(string(buf[:n]), &pid, &point); err != nil {
			return
		}
		s.mu.Lock()
		if p == nil {
			p = &player{pid: pid, seen: map[string]bool{}}
			if pidfd, err := unix.PidfdOpen(pid, 0); err == nil {
				s.actors = append(s.actors, p)
				go s.mourn(p, pidfd)
			}
		}
		p.at, p.seen[point] = point, true
		s.changed.Broadcast()
		for s.holds(p) {
			s.changed.Wait()
		}
		p.at = ""
		s.changed.Broadcast()
		s.mu.Unlock()
		if _, err := conn.Write([]byte{0}); err != nil {
			return
		}
	}
}

// mourn waits for the end of a daemon, of which its holder's end of the socket tells nothing.
func (s *theatre) mourn(p *player, pidfd int) {
	defer unix.Close(pidfd)
	dead(pidfd)
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range s.actors {
		if s.actors[i] == p {
			s.actors = append(s.actors[:i:i], s.actors[i+1:]...)
			break
		}
	}
	s.changed.Broadcast()
}

// dead returns when the process is.
func dead(pidfd int) {
	for {
		if n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, -1); n > 0 || err != unix.EINTR {
			return
		}
	}
}

// gone waits until these have died. The lock is held.
func (s *theatre) gone(some ...*player) {
	for slices.ContainsFunc(some, func(p *player) bool { return slices.Contains(s.actors, p) }) {
		s.changed.Wait()
	}
}

// place is where the scene wants the daemon that is the n-th to be.
func (b *blow) place(n int) place {
	switch {
	case n == 0:
		return b.older
	case n == 1:
		return b.newer
	}
	return off
}

// holds says whether p waits where the scene wants it.
func (s *theatre) holds(p *player) bool {
	if s.still || s.blow == nil {
		return s.still
	}
	for n := range s.actors {
		if s.actors[n].ends {
			return false // first they go
		}
		if s.actors[n] == p {
			point := points[s.blow.place(n)]
			return point != "" && point == p.at
		}
	}
	return false
}

// set says whether the scene is.
func (s *theatre) set() bool {
	want := 1
	if s.blow.newer != off {
		want = 2
	}
	if len(s.actors) != want {
		return false
	}
	for n, p := range s.actors {
		switch at := s.blow.place(n); {
		case p.ends,
			points[at] != "" && p.at != points[at],
			at == serving && (!p.seen["ready"] || p.at != ""),
			at == waiting && !p.seen["hello"]:
			return false
		}
	}
	return true
}

// alone says whether one daemon serves, and no other is left.
func (s *theatre) alone() bool {
	return len(s.actors) == 1 && s.actors[0].seen["ready"] && !s.actors[0].ends
}

// wait waits for what the theatre sees.
func (s *theatre) wait(t *testing.T, what string, is func() bool) {
	t.Helper()
	late := false
	timer := time.AfterFunc(30*time.Second, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		late = true
		s.changed.Broadcast()
	})
	defer timer.Stop()
	s.mu.Lock()
	defer s.mu.Unlock()
	for !is() && !late {
		s.changed.Wait()
	}
	if late {
		var at []string
		for _, p := range s.actors {
			at = append(at, fmt.Sprintf("%d %s", p.pid, p.at))
		}
		t.Errorf("there is no %s; daemons are %s", what, strings.Join(at, ", "))
	}
}

// await waits until the log says something.
func (s *theatre) await(t *testing.T, what string) {
	t.Helper()
	for until := time.Now().Add(30 * time.Second); ; time.Sleep(time.Millisecond) {
		said, err := os.ReadFile(s.log.Name())
		switch {
		case err != nil:
			t.Fatal(err)
		case strings.Contains(string(said), what):
			return
		case time.Now().After(until):
			t.Fatalf("nobody says: %s", what)
		}
	}
}

// keeperOf is the pid of the keeper that a daemon has started; 0: there is none.
func keeperOf(daemon int) int {
	children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", daemon, daemon))
	if err != nil {
		return 0
	}
	for _, text := range strings.Fields(string(children)) {
		if comm, err := os.ReadFile("/proc/" + text + "/comm"); err == nil && strings.HasPrefix(string(comm), "portd-keeper") {
			pid := 0
			_, _ = fmt.Sscan(text, &pid)
			return pid
		}
	}
	return 0
}
