package keeper_test

import (
	"net"
	"os"
	"os/exec"
	"testing"

	"golang.org/x/sys/unix"
)

// TestEndOfFileIsNotTheEnd: a process that dies closes its descriptors one after the other, the highest number first, and its pidfd is
// readable after the last. So the end of file of one says nothing about a port that another one holds; the pidfd does.
func TestEndOfFileIsNotTheEnd(t *testing.T) {
	early := 0
	for range rounds(50, 2000) {
		ln, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			t.Fatal(err)
		}
		port := ln.Addr().(*net.TCPAddr).Port
		socket, err := ln.File()
		if err != nil {
			t.Fatal(err)
		}
		ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		theirs := os.NewFile(uintptr(ends[1]), "pair")
		cmd := exec.Command("sleep", "1000")
		cmd.ExtraFiles = []*os.File{socket, theirs}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		theirs.Close()
		socket.Close()
		ln.Close()
		pidfd, err := unix.PidfdOpen(cmd.Process.Pid, 0)
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		if n, err := unix.Read(ends[0], make([]byte, 1)); n != 0 || err != nil {
			t.Fatalf("read %d, %v", n, err)
		}
		if again, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: port}); err != nil {
			early++
		} else {
			again.Close()
		}
		if _, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, -1); err != nil {
			t.Fatal(err)
		}
		if again, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: port}); err != nil {
			t.Errorf("the process has ended, and its port is not free: %v", err)
		} else {
			again.Close()
		}
		_ = unix.Close(pidfd)
		_ = unix.Close(ends[0])
		_ = cmd.Wait()
	}
	t.Logf("%d ports were not free at the end of file", early)
}
