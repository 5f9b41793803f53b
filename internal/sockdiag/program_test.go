package sockdiag_test

import (
	"errors"
	"net"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/sockdiag"
)

func openProgram(t *testing.T, pid int) *sockdiag.Program {
	t.Helper()
	p, err := sockdiag.OpenProgram(pid)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

func rights(t *testing.T, p *sockdiag.Program) sockdiag.Rights {
	t.Helper()
	r, err := p.Rights()
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// sleeper is a process of this user's.
func sleeper(t *testing.T) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Skipf("needs sleep(1): %v", err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return cmd
}

func TestProgramRights(t *testing.T) {
	cmd := sleeper(t)
	r := rights(t, openProgram(t, cmd.Process.Pid))
	if r.PID != cmd.Process.Pid || r.UID != uint32(os.Geteuid()) || r.GID != uint32(os.Getegid()) || r.Viewer != r.UID || r.Changed {
		t.Errorf("%+v, want a plain process of uid %d", r, os.Geteuid())
	}
	if root := os.Geteuid() == 0; root && !r.Privileged {
		t.Error("root's process is said to have no capabilities")
	}
}

// A user of very many groups has a long description, at whose end the capabilities are.
func TestProgramOfManyGroups(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to give a process groups and capabilities")
	}
	cmd := exec.Command("sleep", "60")
	cred := &syscall.Credential{Uid: 65534, Gid: 65534}
	for i := range uint32(2000) {
		cred.Groups = append(cred.Groups, 1_000_000+i)
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: cred, AmbientCaps: []uintptr{unix.CAP_NET_BIND_SERVICE}}
	if err := cmd.Start(); err != nil {
		t.Skipf("needs a process with groups and a capability: %v", err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	if r := rights(t, openProgram(t, cmd.Process.Pid)); !r.Privileged || r.UID != 65534 {
		t.Errorf("%+v, want a privileged process of uid 65534", r)
	}
}

// A process that guards itself is root's to look into, whoever runs it.
func TestProgramGuardsItself(t *testing.T) {
	before, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	switch os.Geteuid() {
	case 0:
		t.Skip("needs an ordinary user: root's processes are root's to look into anyway")
	case 65534:
		t.Skip("needs another user: this number is root's too where the user namespace does not know him (overflowuid)")
	}
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Prctl(unix.PR_SET_DUMPABLE, uintptr(before), 0, 0, 0); err != nil {
			t.Error(err)
		}
	}()
	if r := rights(t, openProgram(t, os.Getpid())); r.Viewer == r.UID {
		t.Errorf("viewer %d, want root", r.Viewer)
	}
}

func TestProgramIsGone(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if tid := unix.Gettid(); tid != os.Getpid() {
		if p, err := sockdiag.OpenProgram(tid); !errors.Is(err, unix.ESRCH) {
			t.Errorf("a thread: %v, %v; want ESRCH", p, err)
		}
	}
	if p, err := sockdiag.OpenProgram(1 << 22); !errors.Is(err, unix.ESRCH) {
		t.Errorf("a number beyond pid_max: %v, %v; want ESRCH", p, err)
	}
	cmd := sleeper(t)
	p := openProgram(t, cmd.Process.Pid)
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	_, err := p.Rights()
	if !errors.Is(err, unix.ESRCH) {
		t.Errorf("rights of what has ended: %v, want ESRCH", err)
	}
	if _, err := p.Descriptors(1); !errors.Is(err, unix.ESRCH) {
		t.Errorf("descriptors of what has ended: %v, want ESRCH", err)
	}
	if fd, err := p.Duplicate(0); !errors.Is(err, unix.ESRCH) {
		t.Errorf("a descriptor of what has ended: %d, %v; want ESRCH", fd, err)
	}
}

func TestProgramDuplicate(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f, err := ln.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	ln.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		t.Fatal(err)
	}
	p := openProgram(t, os.Getpid())
	fds, err := p.Descriptors(st.Ino, st.Ino+1<<40)
	if err != nil {
		t.Fatal(err)
	}
	if len(fds) != 1 || fds[st.Ino] != int(f.Fd()) {
		t.Fatalf("descriptors %v, want %d alone", fds, f.Fd())
	}
	fd, err := p.Duplicate(fds[st.Ino])
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	var dup unix.Stat_t
	if err := unix.Fstat(fd, &dup); err != nil || dup.Ino != st.Ino {
		t.Errorf("the duplicate is inode %d, %v; want %d", dup.Ino, err, st.Ino)
	}
	if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
		t.Errorf("the duplicate would be inherited: %#x, %v", flags, err)
	}
	closed := fds[st.Ino]
	f.Close()
	if fd, err := p.Duplicate(closed); !errors.Is(err, unix.EBADF) {
		t.Errorf("one that is closed: %d, %v; want EBADF", fd, err)
	}
}
