package holder_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/holder"
	"github.com/portd/portd/internal/nstest"
)

// A process is killed with connections open: their peers see nothing of it, a successor finds them all and goes on with those it
// wants, and the others end when it closes the rest.
func TestKilled(t *testing.T) {
	for _, role := range []string{"daemon", "churning"} {
		t.Run(role, func(t *testing.T) {
			d := startDaemon(t, role)
			conns, numbers := d.dial(t, 300)
			d.kill()
			for _, c := range conns {
				wantQuiet(t, c)
			}

			r, err := holder.Open(d.name, d.socket)
			if err != nil {
				t.Fatal(err)
			}
			connected, err := r.Connected()
			if err != nil {
				t.Fatal(err)
			}
			for _, n := range numbers {
				if !slices.Contains(connected, n) {
					t.Errorf("number %d is a connection, and not among those that are", n)
				}
			}
			all, err := r.Numbers()
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(inProc(t, d.holder.Pid), all); diff != "" {
				t.Errorf("what is open (-/proc +holder):\n%s", diff)
			}

			free := all[len(all)-1] + 1
			if _, err := r.Get(free); !errors.Is(err, unix.EBADF) {
				t.Errorf("number %d, which is free: %v, want EBADF", free, err)
			}
			want := append(slices.Clone(numbers[:280]), free)
			fds, err := r.Take(want)
			if err != nil {
				t.Fatal(err)
			}
			if fds[280] != -1 {
				t.Errorf("number %d, which is free, is %d", free, fds[280])
			}
			for i, fd := range fds[:280] {
				if fd == -1 {
					t.Fatalf("number %d is not open", want[i])
				}
				defer unix.Close(fd)
				if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
					t.Errorf("flags of a descriptor: %#x, %v", flags, err)
				}
				if _, err := unix.Write(fd, []byte("hello")); err != nil {
					t.Fatal(err)
				}
				b := make([]byte, 5)
				if _, err := io.ReadFull(conns[i], b); err != nil || string(b) != "hello" {
					t.Fatalf("the client reads %q, %v", b, err)
				}
			}
			if err := r.Close(); err != nil {
				t.Error(err)
			}
			if !ended(d.pidfd, 0) {
				t.Error("Close has returned, and the holder has not ended")
			}
			for _, c := range conns[:280] {
				wantQuiet(t, c)
			}
			for _, c := range conns[280:] {
				wantEnd(t, c)
			}
		})
	}
}

// As long as the process lives, its table is one: what it closes is closed.
func TestClose(t *testing.T) {
	d := startDaemon(t, "daemon")
	conns, numbers := d.dial(t, 2)
	if err := unix.Sendto(d.conn, fmt.Appendf(nil, "close %d", numbers[0]), 0, nil); err != nil {
		t.Fatal(err)
	}
	wantEnd(t, conns[0])
	wantQuiet(t, conns[1])
}

// Nobody has the other end but the dead process itself: the holder ends, and all is closed.
func TestNobodyWants(t *testing.T) {
	t.Run("before the death", func(t *testing.T) {
		d := startDaemon(t, "daemon")
		conns, _ := d.dial(t, 1)
		_ = unix.Close(d.socket)
		d.dial(t, 1) // the process goes on
		if ended(d.pidfd, 50*time.Millisecond) {
			t.Fatal("the holder has ended, though its process has the socket for another keeper")
		}
		d.kill()
		d.ends(t)
		wantEnd(t, conns[0])
	})
	t.Run("after it", func(t *testing.T) {
		d := startDaemon(t, "daemon")
		conns, _ := d.dial(t, 1)
		d.kill()
		wantQuiet(t, conns[0])
		_ = unix.Close(d.socket)
		d.ends(t)
		wantEnd(t, conns[0])
	})
}

// A process that stops takes its holder with it, though somebody has the socket.
func TestOrderlyStop(t *testing.T) {
	d := startDaemon(t, "churning")
	defer unix.Close(d.socket)
	if err := unix.Sendto(d.conn, []byte("stop"), 0, nil); err != nil {
		t.Fatal(err)
	}
	if err := d.Wait(); err != nil {
		t.Error(err)
	}
	d.ends(t)
}

// A holder that is killed is reaped, and its process hears of it.
func TestHolderKilled(t *testing.T) {
	d := startDaemon(t, "daemon")
	conns, _ := d.dial(t, 1)
	_ = d.holder.Kill()
	if err := unix.Sendto(d.conn, []byte("gone"), 0, nil); err != nil {
		t.Fatal(err)
	}
	if text, _ := d.said(t); text != "gone <nil>" {
		t.Error(text)
	}
	if err := d.holder.Signal(unix.Signal(0)); err == nil {
		t.Error("it has not been reaped")
	}
	wantQuiet(t, conns[0])
	if _, err := holder.Open(d.name, d.socket); !errors.Is(err, unix.ESRCH) {
		t.Errorf("open the rest: %v, want ESRCH", err)
	}
}

// Signals do not end a holder while its process lives. After its death SIGTERM does: who stops a service waits for all of it.
func TestSignals(t *testing.T) {
	d := startDaemon(t, "daemon")
	for sig := unix.Signal(1); sig <= 64; sig++ {
		if sig != unix.SIGKILL && sig != unix.SIGSTOP && sig != unix.SIGTERM {
			if err := unix.Kill(d.holder.Pid, sig); err != nil {
				t.Fatal(err)
			}
		}
	}
	conns, _ := d.dial(t, 1)
	d.kill()
	wantQuiet(t, conns[0])
	if ended(d.pidfd, 50*time.Millisecond) {
		t.Fatal("it has ended")
	}
	if err := unix.Kill(d.holder.Pid, unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	d.ends(t)
	wantEnd(t, conns[0])
	_ = unix.Close(d.socket)
}

// A holder that was stopped does not answer; what it holds is let go in the end.
func TestStopped(t *testing.T) {
	d := startDaemon(t, "daemon")
	conns, numbers := d.dial(t, 1)
	d.kill()
	r, err := holder.Open(d.name, d.socket)
	if err != nil {
		t.Fatal(err)
	}
	defer holder.SetPatience(200 * time.Millisecond)()
	if err := unix.Kill(d.holder.Pid, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Get(numbers[0]); !errors.Is(err, unix.ETIMEDOUT) {
		t.Errorf("%v, want ETIMEDOUT", err)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	wantEnd(t, conns[0])
}

// One that was stopped before goes on for the successor.
func TestStoppedBefore(t *testing.T) {
	d := startDaemon(t, "daemon")
	conns, numbers := d.dial(t, 1)
	if err := unix.Kill(d.holder.Pid, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	d.kill()
	r, err := holder.Open(d.name, d.socket)
	if err != nil {
		t.Fatal(err)
	}
	fd, err := r.Get(numbers[0])
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	wantQuiet(t, conns[0])
}

// A successor that dies too leaves questions and answers to the next one.
func TestSuccessorDies(t *testing.T) {
	d := startDaemon(t, "daemon")
	_, numbers := d.dial(t, 3)
	d.kill()
	dup, err := unix.FcntlInt(uintptr(d.socket), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	first, err := holder.Open(d.name, dup)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range numbers {
		if err := first.Ask(n); err != nil { // and dies before it reads the answers
			t.Fatal(err)
		}
	}
	nstest.Descriptors(t) // those in the answers are closed
	second, err := holder.Open(d.name, d.socket)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range numbers {
		fd, err := second.Get(n)
		if err != nil {
			t.Fatal(err)
		}
		_ = unix.Close(fd)
	}
	if err := second.Close(); err != nil {
		t.Error(err)
	}
	first.Forget()
}

// What is no question is passed over.
func TestNonsense(t *testing.T) {
	d := startDaemon(t, "daemon")
	_, numbers := d.dial(t, 1)
	for _, size := range []int{1, 8, 23, 25, 24 + 4000, 60000} {
		b := make([]byte, size)
		if size > 100 {
			b[0] = 1
		}
		if err := unix.Sendto(d.socket, b, 0, nil); err != nil {
			t.Fatal(err)
		}
	}
	fd, err := unix.Open(os.DevNull, unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Sendmsg(d.socket, []byte("a present"), unix.UnixRights(fd), nil, 0); err != nil {
		t.Fatal(err)
	}
	before := len(inProc(t, d.Process.Pid))
	r, err := holder.Open(d.name, d.socket)
	if err != nil {
		t.Fatal(err)
	}
	got, err := r.Get(numbers[0])
	if err != nil {
		t.Fatal(err)
	}
	_ = unix.Close(got)
	if after := len(inProc(t, d.Process.Pid)); after != before {
		t.Errorf("%d descriptors before, %d after: what is sent to the holder gets into the process", before, after)
	}
	d.kill()
	if err := r.Close(); err != nil {
		t.Error(err)
	}
}

// The process is killed at any moment from its first instruction on. Whatever came of a holder ends by itself, for nobody has its socket.
func TestKilledAtAnyMoment(t *testing.T) {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		t.Skipf("needs a subreaper: %v", err)
	}
	defer unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
	rounds := 60
	if os.Getenv("PORTD_LONG") != "" {
		rounds = 1000
	}
	holders := 0
	for i := range rounds {
		p := start(t, "churning")
		time.Sleep(time.Duration(i%30) * 2 * time.Millisecond) // the moment, not a wait for anything
		_ = p.Process.Kill()
		_ = p.Wait()
		_ = unix.Close(p.conn) // the messages that nobody read have the socket too
		p.conn = -1
		for deadline := time.Now().Add(10 * time.Second); ; {
			pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil)
			if errors.Is(err, unix.ECHILD) {
				break
			}
			if pid > 0 {
				holders++
			}
			if time.Now().After(deadline) {
				t.Fatalf("round %d: a holder is left over", i)
			}
			runtime.Gosched()
		}
	}
	t.Logf("%d of %d had a holder", holders, rounds)
	if holders == 0 {
		t.Error("that proves nothing")
	}
}

// Many holders, one after the other and at the same time, while the collector and the scheduler are at work, leave nothing behind.
func TestMany(t *testing.T) {
	nstest.Descriptors(t)
	stop := make(chan struct{})
	var working sync.WaitGroup
	working.Go(func() { churn(stop) })
	defer working.Wait()
	defer close(stop)
	n := 60
	if os.Getenv("PORTD_LONG") != "" {
		n = 1000
	}
	var starting sync.WaitGroup
	for range 4 {
		starting.Go(func() {
			for range n {
				h, err := holder.Start()
				if err != nil {
					t.Error(err)
					return
				}
				if err := h.Close(); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	starting.Wait()
	if children, err := os.ReadFile("/proc/thread-self/children"); err == nil && len(children) > 0 {
		t.Errorf("processes are left over: %s", children)
	}
}

// Where there can be no holder Start says so, and nothing is left of the attempt.
func TestRefused(t *testing.T) {
	nobody := func(c *exec.Cmd) {
		if os.Getuid() == 0 { // to whom the limit does not apply
			c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		}
	}
	for role, want := range map[string]struct {
		errno  unix.Errno
		change func(*exec.Cmd)
	}{
		"nproc":   {unix.EAGAIN, nobody},
		"seccomp": {unix.EPERM, func(*exec.Cmd) {}},
	} {
		t.Run(role, func(t *testing.T) {
			text, _ := start(t, role, want.change).said(t)
			if strings.HasPrefix(text, "cannot try") {
				t.Skip(text)
			}
			if want := "start a holder of descriptors: clone: " + want.errno.Error(); text != want {
				t.Errorf("%s, want %s", text, want)
			}
		})
	}
}

// The holder has memory of its own that does not grow with the process's.
func TestMemory(t *testing.T) {
	d := startDaemon(t, "daemon")
	defer unix.Close(d.socket)
	before := status(t, d.holder.Pid, "RssAnon:")
	if err := unix.Sendto(d.conn, []byte("churn"), 0, nil); err != nil {
		t.Fatal(err)
	}
	d.said(t)
	after := status(t, d.holder.Pid, "RssAnon:")
	t.Logf("RssAnon %d KB, %d KB after 64 MB in the process, which has %d KB", before, after, status(t, d.Process.Pid, "RssAnon:"))
	if after > 400 || after != before {
		t.Errorf("RssAnon was %d KB and is %d KB", before, after)
	}
	comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", d.holder.Pid))
	if err != nil || string(comm) != holder.Command+"\n" {
		t.Errorf("its name is %q, %v", comm, err)
	}
	if parent := status(t, d.holder.Pid, "PPid:"); parent != d.Process.Pid {
		t.Errorf("its parent is %d, want %d", parent, d.Process.Pid)
	}
	if err := kcmpFiles(d.holder.Pid, d.Process.Pid); err != nil {
		t.Errorf("the table is not shared: %v", err)
	}
	if dir, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", d.holder.Pid)); err != nil || dir != "/" {
		t.Errorf("its directory is %s, %v", dir, err)
	}
}

func status(t *testing.T, pid int, field string) int {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(b), "\n"+field)
	n, err := strconv.Atoi(strings.Fields(rest)[0])
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// kcmpFiles is nil where two processes have one table (kcmp(2), KCMP_FILES).
func kcmpFiles(a, b int) error {
	different, _, errno := unix.Syscall6(unix.SYS_KCMP, uintptr(a), uintptr(b), 2, 0, 0, 0)
	if errno == unix.ENOSYS || errno == unix.EPERM {
		return nil
	}
	if errno != 0 || different != 0 {
		return fmt.Errorf("kcmp %d: %w", different, errno)
	}
	return nil
}

// inProc is what a process has open, as /proc has it.
func inProc(t *testing.T, pid int) []int {
	t.Helper()
	names, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	if err != nil || len(names) == 0 {
		t.Fatalf("descriptors of %d: %v", pid, err)
	}
	var numbers []int
	for _, name := range names {
		n, err := strconv.Atoi(filepath.Base(name))
		if err != nil {
			t.Fatal(err)
		}
		numbers = append(numbers, n)
	}
	slices.Sort(numbers)
	return numbers
}

// wantQuiet fails t where a connection has ended, or was sent something.
func wantQuiet(t *testing.T, c *net.TCPConn) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	_ = raw.Control(func(fd uintptr) {
		if n, _, err := unix.Recvfrom(int(fd), make([]byte, 1), unix.MSG_PEEK|unix.MSG_DONTWAIT); !errors.Is(err, unix.EAGAIN) {
			t.Errorf("a client sees %d bytes, %v, and is to see nothing", n, err)
		}
	})
}

// wantEnd waits for the end of a connection.
func wantEnd(t *testing.T, c *net.TCPConn) {
	t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
	if n, err := c.Read(make([]byte, 1)); n > 0 || err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a client sees %d bytes, %v, and is to see the end", n, err)
	}
}
