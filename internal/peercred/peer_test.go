package peercred_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	"github.com/portd/portd/internal/nstest"
	"github.com/portd/portd/internal/peercred"
	"golang.org/x/sys/unix"
)

// envAct makes the test binary the process at the other end, with its arguments after it.
const envAct = "PEERCRED_ACT"

type actor struct{ *testing.M }

func TestMain(m *testing.M) { nstest.Main(actor{m}) }

func (a actor) Run() int {
	os.Setenv("GORACE", "atexit_sleep_ms=0") // for the peers: else each one takes a second to exit under -race
	act := os.Getenv(envAct)
	if act == "" {
		return a.M.Run()
	}
	if err := perform(act, os.Getenv("PEERCRED_NETWORK"), os.Getenv("PEERCRED_PATH")); err != nil {
		fmt.Fprintln(os.Stderr, act, err)
		return 1
	}
	return 0
}

func perform(act, network, path string) error {
	if act == "hold" { // what a child of the peer does: it keeps its standard output, the connection
		_, err := io.Copy(io.Discard, os.Stdin)
		return err
	}
	c, err := net.Dial(network, path)
	if err != nil {
		return err
	}
	conn := c.(*net.UnixConn)
	defer conn.Close()
	switch act {
	case "stay":
		_, err = io.Copy(io.Discard, os.Stdin)
		return err
	case "bequeath":
		file, err := conn.File()
		if err != nil {
			return err
		}
		child := exec.Command("/proc/self/exe")
		child.Env = append(os.Environ(), envAct+"=hold")
		child.Stdin, child.Stdout = os.Stdin, file
		return child.Start()
	case "look": // what this process sees of its own peer, the listener
		cred, err := peercred.Of(conn)
		if err != nil {
			return err
		}
		_, numberErr := peercred.ByNumber(conn)
		p, err := peercred.Open(conn)
		if err == nil {
			p.Close()
		}
		return json.NewEncoder(conn).Encode(view{cred, fmt.Sprint(err), fmt.Sprint(numberErr)})
	}
	return fmt.Errorf("no such act")
}

type view struct {
	Cred           peercred.Cred
	Open, ByNumber string
}

// A peer is a process that connected to us.
type peer struct {
	conn *net.UnixConn
	cmd  *exec.Cmd
	// leave is the standard input of the peer and its children; closing it ends them.
	leave io.Closer
}

// meet starts this test binary as a peer that does act and accepts its connection.
func meet(t *testing.T, network, act string, attr *syscall.SysProcAttr) peer {
	t.Helper()
	dir, err := os.MkdirTemp("", "peer") // t.TempDir's names may not fit into a socket address
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "s")
	ln, err := net.ListenUnix(network, &net.UnixAddr{Net: network, Name: path})
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	for _, p := range []string{dir, path} {
		if err := os.Chmod(p, 0o777); err != nil {
			t.Fatal(err)
		}
	}

	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), envAct+"="+act, "PEERCRED_NETWORK="+network, "PEERCRED_PATH="+path)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = attr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		stdin.Close()
		t.Fatal(err)
	}
	t.Cleanup(func() {
		stdin.Close()
		_ = cmd.Wait()
	})
	conn, err := ln.AcceptUnix()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return peer{conn, cmd, stdin}
}

// inNamespaces returns attributes for a process in new namespaces of the given kinds, in a new user namespace unless we are root.
func inNamespaces(t *testing.T, flags uintptr) *syscall.SysProcAttr {
	t.Helper()
	attr := &syscall.SysProcAttr{Cloneflags: flags}
	if uid, gid := os.Geteuid(), os.Getegid(); uid != 0 {
		attr.Cloneflags |= unix.CLONE_NEWUSER
		attr.UidMappings = []syscall.SysProcIDMap{{ContainerID: uid, HostID: uid, Size: 1}}
		attr.GidMappings = []syscall.SysProcIDMap{{ContainerID: gid, HostID: gid, Size: 1}}
		attr.AmbientCaps = []uintptr{unix.CAP_NET_ADMIN} // nstest brings loopback up in there
	}
	try := exec.Command("/proc/self/exe", "-test.run=^$")
	try.SysProcAttr = attr
	if err := try.Run(); err != nil {
		t.Skipf("needs a process in new namespaces (%#x): %v", attr.Cloneflags, err)
	}
	return attr
}

func asOther(t *testing.T, groups ...uint32) *syscall.SysProcAttr {
	t.Helper()
	attr := nstest.As(t, 65533, 65532)
	attr.Credential.Groups = groups
	return attr
}

func sorted(groups []uint32) []uint32 {
	slices.Sort(groups)
	return groups
}
