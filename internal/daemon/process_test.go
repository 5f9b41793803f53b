package daemon_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/client"
	"github.com/portd/portd/internal/paths"
	"github.com/portd/portd/internal/portdtest"
	pb "github.com/portd/portd/proto/portd/v1"
)

// binary is the real portd, built once.
func binary(t testing.TB) string {
	t.Helper()
	path, err := built()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

var built = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "portd")
	if err != nil {
		return "", err
	}
	leftovers = append(leftovers, dir)
	path := filepath.Join(dir, "portd")
	build := exec.Command("go", "build", "-buildvcs=false", "-o", path, "github.com/portd/portd/cmd/portd")
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build portd: %w: %s", err, out)
	}
	return path, nil
})

var leftovers []string // removed after all tests

// A process is a real portd, in the places of a portdtest.Daemon that is not started itself.
type process struct {
	*exec.Cmd
	log    bytes.Buffer // complete after Wait
	notify *net.UnixConn
}

var notified atomic.Int64 // each process has a socket of its own to notify

// portd is a portd without a keeper that is about to be started. The files are its descriptors from 3 on, for LISTEN_FDS, and names is
// LISTEN_FDNAMES.
func portd(t testing.TB, d *portdtest.Daemon, names string, files ...*os.File) *process {
	t.Helper()
	path := filepath.Join(d.Dir, fmt.Sprintf("notify%d", notified.Add(1)))
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	p := &process{Cmd: exec.Command(binary(t), "--no-keeper", "--socket", d.Socket, "--state", d.State, "--policy", d.Policy), notify: conn}
	p.Env = append(os.Environ(), "NOTIFY_SOCKET="+path)
	if files != nil { // LISTEN_PID is known only to the process itself
		p.Args = append([]string{"sh", "-c", `LISTEN_PID=$$ exec "$@"`, "sh"}, p.Args...)
		if p.Path, p.Err = exec.LookPath("sh"); p.Err != nil {
			t.Fatal(p.Err)
		}
		p.Env = append(p.Env, fmt.Sprintf("LISTEN_FDS=%d", len(files)), "LISTEN_FDNAMES="+names)
		p.ExtraFiles = files
	}
	p.Stderr = &p.log
	return p
}

// begin starts it and returns when it says that it is ready, as the service manager hears it.
func (p *process) begin(t testing.TB) {
	t.Helper()
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = p.Process.Kill() // fails where it has ended
		_ = p.Wait()
	})
	p.said(t, "READY=1")
}

// said waits for a message to the service manager.
func (p *process) said(t testing.TB, want string) {
	t.Helper()
	if got := p.says(t, want); got != want {
		t.Fatalf("portd said %q, want %s", got, want)
	}
}

// says is the next message to the service manager, which is to be want or something like it.
func (p *process) says(t testing.TB, want string) string {
	t.Helper()
	if err := p.notify.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	msg := make([]byte, 4096)
	n, err := p.notify.Read(msg)
	if err != nil {
		_ = p.Process.Kill()
		_ = p.Wait()
		t.Fatalf("portd did not say %s: %v; its log: %s", want, err, &p.log)
	}
	return string(msg[:n])
}

// ends waits for it and returns its exit code.
func (p *process) ends(t testing.TB) int {
	t.Helper()
	var exit *exec.ExitError
	if err := p.Wait(); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return p.ProcessState.ExitCode()
}

func TestProcess(t *testing.T) {
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		t.Run(sig.String(), func(t *testing.T) {
			clean(t)
			d := portdtest.New(t)
			p := portd(t, d, "")
			p.begin(t)
			c := d.Client(t)
			port := reserve(t, c, "web", "tcp/any").GetAssigned()[0].GetEndpoint().GetPorts().GetFirst()
			wantHeld(t, port)

			second := portd(t, d, "")
			if err := second.Start(); err != nil {
				t.Fatal(err)
			}
			if code := second.ends(t); code != 1 || !strings.Contains(second.log.String(), fmt.Sprintf("pid %d", p.Process.Pid)) {
				t.Errorf("a second portd exits %d and says %s", code, &second.log)
			}

			if err := p.Process.Signal(sig); err != nil {
				t.Fatal(err)
			}
			p.said(t, "STOPPING=1")
			if code := p.ends(t); code != 0 {
				t.Errorf("exit %d; its log: %s", code, &p.log)
			}
			wantFree(t, port)
			var last map[string]any
			for line := range strings.Lines(p.log.String()) {
				if err := json.Unmarshal([]byte(line), &last); err != nil {
					t.Errorf("the log has %q: %v", line, err)
				}
			}
			if last["msg"] != "stopped" {
				t.Errorf("the last words are %v", last)
			}
		})
	}
}

func TestUsage(t *testing.T) {
	for _, tt := range []struct {
		arg  string
		code int
		want string
	}{
		{"--help", 0, "--socket PATH"},
		{"--policy=/nosuch/policy.yaml", 1, "/nosuch/policy.yaml: no such file"},
		{"--version", 0, "portd "},
		{"--nonsense", 2, "--help"},
		{"--log-level=loud", 2, "log-level"},
		{"nonsense", 2, "nonsense"},
	} {
		cmd := exec.Command(binary(t), tt.arg)
		out, err := cmd.CombinedOutput()
		if code := cmd.ProcessState.ExitCode(); code != tt.code || !strings.Contains(string(out), tt.want) {
			t.Errorf("portd %s: exit %d (%v)\n%s", tt.arg, code, err, out)
		}
	}
}

// unixListener is a socket as a service manager makes one.
func unixListener(t *testing.T, network, path string) *os.File {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	ln, err := net.ListenUnix(network, &net.UnixAddr{Name: path, Net: network})
	if err != nil {
		t.Fatal(err)
	}
	ln.SetUnlinkOnClose(false)
	f, err := ln.File()
	if err != nil {
		t.Fatal(err)
	}
	ln.Close()
	t.Cleanup(func() { f.Close() })
	return f
}

func TestInheritedSockets(t *testing.T) {
	clean(t)
	d := portdtest.New(t)
	control := unixListener(t, "unix", d.Socket)
	handoff := unixListener(t, "unixpacket", paths.Handoff(d.Socket))
	for path, f := range map[string]*os.File{d.Socket: control, d.Handoff(): handoff} {
		if err := os.Chmod(path, 0o640); err != nil { // not what portd would give its own
			t.Fatalf("%s: %v", f.Name(), err)
		}
	}
	before := inode(t, d.Socket)
	// Who comes before portd is served by it.
	early, err := net.Dial("unix", d.Socket)
	if err != nil {
		t.Fatal(err)
	}
	defer early.Close()
	if _, err := io.WriteString(early, "GET /v1/status HTTP/1.0\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the sockets outlive a portd
		p := portd(t, d, "handoff:control", handoff, control)
		p.begin(t)
		c := d.Client(t)
		if _, err := c.Daemon.GetStatus(t.Context(), &pb.GetStatusRequest{}); err != nil {
			t.Fatal(err)
		}
		reserve(t, c, "web", "udp/any")
		a, err := client.Attach(t.Context(), client.AttachConfig{Socket: d.Handoff(), Wishes: []client.Wish{{Reference: "web", Socket: true}}})
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range a.Listeners[0].Sockets {
			f.Close()
		}
		a.Close()
		if err := p.Process.Signal(unix.SIGTERM); err != nil {
			t.Fatal(err)
		}
		if code := p.ends(t); code != 0 {
			t.Errorf("exit %d; its log: %s", code, &p.log)
		}
		if after := inode(t, d.Socket); after != before {
			t.Error("portd replaced the service manager's socket")
		}
	}
	if text, err := io.ReadAll(early); err != nil || !strings.HasPrefix(string(text), "HTTP/1.0 200") {
		t.Errorf("the early one got %q, %v", text, err)
	}
}

func inode(t *testing.T, path string) string {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%d %o", st.Ino, st.Mode)
}

func TestInheritedRefused(t *testing.T) {
	clean(t)
	for _, tt := range []struct{ network, names, want string }{
		{"unix", "web", "a socket named"},
		{"unix", "handoff", "SOCK_SEQPACKET"},
		{"unixpacket", "control", "SOCK_STREAM"},
		{"unix", "control:control", "two sockets named control"},
		{"pipe", "control", "control"},
		{"tcp", "control", "not a unix socket"},
	} {
		t.Run(tt.network+" "+tt.names, func(t *testing.T) {
			d := portdtest.New(t)
			var files []*os.File
			for range strings.Count(tt.names, ":") + 1 {
				switch tt.network {
				case "pipe":
					r, w, err := os.Pipe()
					if err != nil {
						t.Fatal(err)
					}
					defer w.Close()
					defer r.Close()
					files = append(files, r)
				case "tcp":
					ln, err := net.Listen("tcp", "127.0.0.1:0")
					if err != nil {
						t.Fatal(err)
					}
					f, err := ln.(*net.TCPListener).File()
					if err != nil {
						t.Fatal(err)
					}
					ln.Close()
					defer f.Close()
					files = append(files, f)
				default:
					files = append(files, unixListener(t, tt.network, filepath.Join(d.Dir, fmt.Sprint(len(files)))))
				}
			}
			p := portd(t, d, tt.names, files...)
			if err := p.Start(); err != nil {
				t.Fatal(err)
			}
			if code := p.ends(t); code != 1 || !strings.Contains(p.log.String(), tt.want) {
				t.Errorf("exit %d: %s; want %s in it", code, &p.log, tt.want)
			}
		})
	}
}
