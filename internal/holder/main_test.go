package holder_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/holder"
)

// envRole makes this program something else than a test.
const envRole = "PORTD_HOLDER_TEST"

func TestMain(m *testing.M) {
	role := os.Getenv(envRole)
	if role == "" {
		os.Exit(m.Run())
	}
	if err := roles[role](); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// What this program can be. The descriptor 3 leads to the test.
var roles = map[string]func() error{
	"daemon":   func() error { return daemon(nil) },
	"churning": func() error { return daemon(churn) },
	"nproc":    func() error { return refused(noProcesses) },
	"seccomp":  func() error { return refused(noClone) },
}

// A process is this program in a role.
type process struct {
	*exec.Cmd
	conn int // to its descriptor 3
}

func start(t *testing.T, role string, change ...func(*exec.Cmd)) *process {
	t.Helper()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	theirs := os.NewFile(uintptr(pair[1]), "test")
	defer theirs.Close()
	p := &process{exec.Command("/proc/self/exe"), pair[0]}
	t.Cleanup(func() { _ = unix.Close(p.conn) })
	p.Env = append(os.Environ(), envRole+"="+role)
	p.ExtraFiles, p.Stderr = []*os.File{theirs}, os.Stderr
	for _, f := range change {
		f(p.Cmd)
	}
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.kill)
	return p
}

func (p *process) kill() {
	_ = p.Process.Kill() // fails where it has ended
	_ = p.Wait()
}

// said is the process's next message.
func (p *process) said(t *testing.T) (string, []int) {
	t.Helper()
	text, fds, err := receive(p.conn)
	if err != nil {
		t.Fatalf("the process says nothing more: %v", err)
	}
	return text, fds
}

func receive(fd int) (string, []int, error) {
	b, oob := make([]byte, 1<<10), make([]byte, unix.CmsgSpace(4*4))
	n, cn, _, _, err := unix.Recvmsg(fd, b, oob, unix.MSG_CMSG_CLOEXEC)
	if err == nil && n == 0 {
		err = unix.EPIPE
	}
	if err != nil {
		return "", nil, err
	}
	messages, err := unix.ParseSocketControlMessage(oob[:cn])
	var fds []int
	for _, m := range messages {
		more, _ := unix.ParseUnixRights(&m)
		fds = append(fds, more...)
	}
	return string(b[:n]), fds, err
}

func say(format string, args ...any) error {
	return unix.Sendto(3, fmt.Appendf(nil, format, args...), 0, nil)
}

// daemon has a holder, listens, and keeps what it accepts. It tells the number of each connection, and closes those it is told to.
func daemon(work func(stop chan struct{})) error {
	stop := make(chan struct{})
	if work != nil {
		go work(stop)
	}
	h, err := holder.Start()
	if err != nil {
		return err
	}
	ln, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	if err := unix.Bind(ln, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		return err
	}
	if err := unix.Listen(ln, 1024); err != nil {
		return err
	}
	sa, err := unix.Getsockname(ln)
	if err != nil {
		return err
	}
	text := fmt.Sprintf("%s 127.0.0.1:%d", h.Name(), sa.(*unix.SockaddrInet4).Port)
	if err := unix.Sendmsg(3, []byte(text), unix.UnixRights(h.Socket()), nil, 0); err != nil {
		return err
	}
	go func() {
		for {
			fd, _, err := unix.Accept4(ln, unix.SOCK_CLOEXEC)
			if err != nil || say("%d", fd) != nil {
				return
			}
		}
	}()
	for {
		text, _, err := receive(3)
		if err != nil {
			return err
		}
		what, n, _ := strings.Cut(text, " ")
		fd, _ := strconv.Atoi(n)
		switch what {
		case "close":
			_ = unix.Close(fd)
		case "churn":
			for range 4 {
				churned = bytes.Repeat([]byte("portd"), 16<<20/5)
				runtime.GC()
			}
			if err := say("churned"); err != nil {
				return err
			}
		case "gone":
			<-h.Gone()
			if err := say("gone %v", h.Close()); err != nil {
				return err
			}
		case "stop":
			close(stop)
			return h.Close()
		}
	}
}

var churned []byte

// churn keeps the collector and the scheduler at work until stop is closed.
func churn(stop chan struct{}) {
	for {
		select {
		case <-stop:
			return
		default:
		}
		done := make(chan []byte)
		for range 8 {
			go func() { done <- deep(64, make([]byte, 4<<10)) }()
		}
		for range 8 {
			<-done
		}
		runtime.GC()
	}
}

// deep needs a stack that grows.
func deep(n int, b []byte) []byte {
	var room [512]byte
	if n == 0 {
		return b
	}
	room[n] = b[0]
	return append(deep(n-1, b), room[n])
}

// refused tries to have a holder where there can be none, and says what becomes of it.
func refused(refuse func() error) error {
	runtime.LockOSThread()
	if err := refuse(); err != nil {
		return say("cannot try: %v", err)
	}
	if r, w, err := os.Pipe(); err == nil { // the first that can be polled has the runtime open its epoll
		_, _ = r.Close(), w.Close()
	}
	before := open()
	h, err := holder.Start()
	if err == nil {
		return errors.Join(h.Close(), say("started"))
	}
	if after := open(); after != before {
		return say("%d descriptors are left over: %v", after-before, err)
	}
	return say("%v", err)
}

func open() int {
	entries, _ := os.ReadDir("/proc/self/fd")
	return len(entries)
}

func noProcesses() error {
	return unix.Setrlimit(unix.RLIMIT_NPROC, &unix.Rlimit{Cur: 0, Max: 0})
}

// noClone refuses new processes, not threads, with EPERM.
func noClone() error {
	nr := uint32(unix.SYS_CLONE)
	args := uint32(16)
	if binary.NativeEndian.Uint16([]byte{1, 0}) != 1 {
		args += 4
	}
	program := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: 3, K: nr},
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: args},
		{Code: unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K, Jt: 1, K: unix.CLONE_THREAD},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
	}
	prog := unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	_, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, uintptr(unsafe.Pointer(&prog)))
	if errno != 0 {
		return errno
	}
	return nil
}

// A daemon is a process with a holder.
type daemonProcess struct {
	*process
	name, addr string
	socket     int // the test's, until it is given to a Rest
	holder     *os.Process
	pidfd      int // of the holder
}

func startDaemon(t *testing.T, role string) *daemonProcess {
	t.Helper()
	d := &daemonProcess{process: start(t, role)}
	text, fds := d.said(t)
	d.name, d.addr, _ = strings.Cut(text, " ")
	if len(fds) != 1 {
		t.Fatalf("%q and %d descriptors", text, len(fds))
	}
	d.socket = fds[0]
	pid, err := strconv.Atoi(strings.TrimPrefix(d.name, "holder."))
	if err != nil {
		t.Fatal(err)
	}
	d.holder, _ = os.FindProcess(pid)
	if d.pidfd, err = unix.PidfdOpen(pid, 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = d.holder.Kill()
		_ = unix.Close(d.pidfd)
	})
	return d
}

// dial is n connections to the daemon, and their numbers in it.
func (d *daemonProcess) dial(t *testing.T, n int) (conns []*net.TCPConn, numbers []int) {
	t.Helper()
	for range n {
		c, err := net.Dial("tcp", d.addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		text, _ := d.said(t)
		number, err := strconv.Atoi(text)
		if err != nil {
			t.Fatal(err)
		}
		conns, numbers = append(conns, c.(*net.TCPConn)), append(numbers, number)
	}
	return conns, numbers
}

// ends waits for the holder's end.
func (d *daemonProcess) ends(t *testing.T) {
	t.Helper()
	if !ended(d.pidfd, 10*time.Second) {
		t.Fatal("the holder has not ended")
	}
}

func ended(pidfd int, within time.Duration) bool {
	for deadline := time.Now().Add(within); ; {
		fds := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}
		n, err := unix.Poll(fds, int(max(0, time.Until(deadline).Milliseconds())))
		if !errors.Is(err, unix.EINTR) {
			return err == nil && n == 1
		}
	}
}
