package netns_test

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/netns"
	"github.com/portd/portd/internal/nstest"
	"github.com/portd/portd/internal/registry"
)

// A program that is started with envStay set stays where it is until its standard input ends. Where it is a path, it connects
// there first.
const envStay = "PORTD_NETNS_STAY"

// With envUnshare it makes user and network namespaces of its own first; with envThread one of its threads goes to where the
// process of that pid lives.
const (
	envUnshare = "PORTD_NETNS_UNSHARE"
	envThread  = "PORTD_NETNS_THREAD"
)

func TestMain(m *testing.M) {
	if path, stay := os.LookupEnv(envStay); stay {
		if os.Getenv(envUnshare) != "" {
			unshared()
		}
		if pid := os.Getenv(envThread); pid != "" {
			moveThread(pid)
		}
		if path != "-" {
			fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
			if err == nil {
				err = unix.Connect(fd, &unix.SockaddrUnix{Name: path})
			}
			if err != nil {
				fmt.Println(err)
				os.Exit(1)
			}
		}
		fmt.Println("there", os.Getpid())
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}
	if path := os.Getenv(envSight); path != "" {
		if err := tellSight(path); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	nstest.Main(m)
}

// unshared starts this program again, in namespaces of its user's own, and is that from then on: a thread of a Go program
// cannot make a user namespace.
func unshared() {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), envUnshare+"=")
	cmd.Stdin, cmd.Stdout = os.Stdin, os.Stdout
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER | unix.CLONE_NEWNET}
	if err := cmd.Run(); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	os.Exit(0)
}

func moveThread(pid string) {
	moved := make(chan error)
	go func() {
		runtime.LockOSThread()
		fd, err := unix.Open("/proc/"+pid+"/ns/net", unix.O_RDONLY, 0)
		if err == nil {
			err = unix.Setns(fd, unix.CLONE_NEWNET)
			_ = unix.Close(fd)
		}
		moved <- err
		select {}
	}()
	if err := <-moved; err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

// open is a Host of this network namespace.
func open(t *testing.T, boot string) *netns.Host {
	t.Helper()
	h, err := netns.New(boot, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.Close)
	return h
}

// needsAdmin skips where no namespace can be entered.
func needsAdmin(t *testing.T) {
	t.Helper()
	if !netns.MayEnter() {
		t.Skip("needs CAP_SYS_ADMIN to enter network namespaces")
	}
}

// A dweller is a process that lives in a network namespace of its own.
type dweller struct {
	pid   int
	inode string
	leave func()
}

// dwell starts a process in a new network namespace; with path it connects there.
func dwell(t *testing.T, flags uintptr, path string) dweller {
	t.Helper()
	attr := &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET | flags}
	if flags&unix.CLONE_NEWUSER != 0 {
		uid, gid := os.Geteuid(), os.Getegid()
		attr.UidMappings = []syscall.SysProcIDMap{{ContainerID: uid, HostID: uid, Size: 1}}
		attr.GidMappings = []syscall.SysProcIDMap{{ContainerID: gid, HostID: gid, Size: 1}}
	}
	return start(t, attr, envStay+"="+path)
}

// dwellAs is dwell as another user, in a user namespace of that user's.
func dwellAs(t *testing.T, attr *syscall.SysProcAttr) dweller {
	t.Helper()
	return start(t, attr, envUnshare+"=1", envStay+"=-")
}

// dwellByThread starts a process of which only a thread lives in the network namespace of another one.
func dwellByThread(t *testing.T, pid int) dweller {
	t.Helper()
	return start(t, nil, fmt.Sprintf("%s=%d", envThread, pid), envStay+"=-")
}

// start starts this program as a dweller.
func start(t *testing.T, attr *syscall.SysProcAttr, env ...string) dweller {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), env...)
	cmd.SysProcAttr = attr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Skipf("needs a network namespace: %v", err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	var d dweller
	if _, serr := fmt.Sscanf(line, "there %d\n", &d.pid); serr != nil {
		t.Fatalf("a process in a network namespace says %q, %v", line, err)
	}
	left := false
	d.leave = func() {
		if !left {
			left = true
			_ = in.Close()
			_ = cmd.Wait()
		}
	}
	t.Cleanup(d.leave)
	link, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", d.pid))
	if err != nil {
		t.Fatal(err)
	}
	d.inode = strings.TrimSuffix(strings.TrimPrefix(link, "net:["), "]")
	return d
}

// me is a caller from portd's own network namespace, with this process's pids.
func me() registry.Caller {
	return registry.Caller{UID: uint32(os.Geteuid()), PID: int32(os.Getpid()), Netns: registry.HostNetns}
}
