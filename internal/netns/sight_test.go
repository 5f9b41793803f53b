package netns_test

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/netns"
)

// With envSight set to a path a program listens there, and tells what it thinks of the network namespace of who connects, from a pid
// namespace of its own.
const envSight = "PORTD_NETNS_SIGHT"

func tellSight(path string) error {
	if err := unix.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		return err
	}
	h, err := netns.New("boot", nil)
	if err != nil {
		return err
	}
	defer h.Close()
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return err
	}
	defer ln.Close()
	fmt.Println("listens")
	conn, err := ln.AcceptUnix()
	if err != nil {
		return err
	}
	defer conn.Close()
	name, leave, err := h.Join(conn)
	if err != nil {
		return err
	}
	defer leave()
	var gone []string
	for range 5 {
		gone = append(gone, h.Gone([]string{name})...)
	}
	fmt.Println(len(gone), "gone")
	return nil
}

// Who lives in a network namespace, but in a pid namespace that portd does not see, is there all the same.
func TestNotGoneOutOfSight(t *testing.T) {
	needsAdmin(t)
	path := filepath.Join(t.TempDir(), "s")
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), envSight+"="+path)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID, Unshareflags: unix.CLONE_NEWNS}
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Skipf("needs a pid namespace: %v", err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	lines := bufio.NewScanner(out)
	if !lines.Scan() || lines.Text() != "listens" {
		t.Fatalf("it says %q, %v", lines.Text(), lines.Err())
	}
	dwell(t, 0, path)
	if !lines.Scan() || strings.TrimSpace(lines.Text()) != "0 gone" {
		t.Errorf("of a namespace in which somebody lives out of sight it says %q", lines.Text())
	}
}
