package client

import (
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"sync/atomic"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/portd/portd/internal/paths"
	"github.com/portd/portd/internal/peercred"
)

// A hearing is a connection that notes whether anything has ever come over it.
type hearing struct {
	*net.UnixConn
	heard atomic.Bool
	by    int // pid of who made the socket, 0 where that cannot be told
}

func listenTo(conn *net.UnixConn) *hearing {
	c := &hearing{UnixConn: conn}
	if cred, err := peercred.Of(conn); err == nil {
		c.by = int(cred.PID)
	}
	return c
}

func (c *hearing) Read(b []byte) (int, error) {
	n, err := c.UnixConn.Read(b)
	if n > 0 {
		c.heard.Store(true)
	}
	return n, err
}

// silence is what is known of a portd whose socket takes connections and which says nothing: it hangs, or is stopped. by is the pid of who
// made the socket, or 0.
func silence(path string, by int) *Error {
	e := &Error{text: fmt.Sprintf("portd at %s does not answer", path), is: []error{ErrUnavailable, ErrNoDaemon, ErrNoAnswer}}
	if pid := serves(path, by); pid != 0 {
		e.Metadata = map[string]string{"pid": strconv.Itoa(pid)}
		e.text = fmt.Sprintf("portd (pid %d) at %s does not answer", pid, path)
		if stopped(pid) {
			e.Metadata["state"] = "stopped"
			e.text += ": the process is stopped"
		}
	}
	e.status = status.New(codes.Unavailable, e.text)
	return e
}

// serves is the pid of the daemon, 0 where that cannot be told. Its lock says so to who may read that; who made the socket may have
// been a daemon before this one.
func serves(path string, by int) int {
	pids := []int{by}
	if text, err := os.ReadFile(paths.Lock(path)); err == nil {
		if pid, err := strconv.Atoi(strings.TrimSpace(string(text))); err == nil {
			pids = []int{pid, by}
		}
	}
	for _, pid := range pids {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
		comm := strings.TrimSpace(string(text))
		if err == nil && strings.HasPrefix(comm, "portd") && comm != "portd-keeper" && comm != "portd-holder" {
			return pid
		}
	}
	return 0
}

// stopped says whether a process is, by a signal or a debugger (proc_pid_stat(5)).
func stopped(pid int) bool {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, rest, _ := strings.Cut(string(text), ") ")
	return strings.HasPrefix(rest, "T") || strings.HasPrefix(rest, "t")
}
