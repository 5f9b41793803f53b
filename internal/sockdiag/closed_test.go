package sockdiag

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// A closing is what WatchClosed told; the zero one that it asks to look.
type closing struct {
	p    Protocol
	port uint16
}

// watch is what WatchClosed tells of some ports, from the moment on when it watches.
func watch(t *testing.T, ports ...uint16) <-chan closing {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	told := make(chan closing, 10_000)
	done := make(chan error, 1)
	go func() {
		done <- WatchClosed(ctx, ports, func() { told <- closing{} }, func(p Protocol, port uint16) { told <- closing{p, port} })
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("it ended with %v, want Canceled", err)
		}
	})
	select {
	case err := <-done:
		done <- context.Canceled
		t.Skipf("this kernel does not tell of closed sockets: %v", err)
	case <-told:
	}
	return told
}

// bind is a socket on a port of loopback that the kernel has chosen.
func bind(t *testing.T, family, kind, proto int) (fd int, port uint16) {
	t.Helper()
	fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC, proto)
	if err != nil {
		t.Skipf("socket(%d, %d, %d): %v", family, kind, proto, err)
	}
	var at unix.Sockaddr = &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}
	if family == unix.AF_INET6 {
		at = &unix.SockaddrInet6{}
	}
	if err := unix.Bind(fd, at); err != nil {
		t.Fatal(err)
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	switch name := name.(type) {
	case *unix.SockaddrInet4:
		return fd, uint16(name.Port)
	case *unix.SockaddrInet6:
		return fd, uint16(name.Port)
	}
	t.Fatalf("%T", name)
	return 0, 0
}

func TestWatchClosed(t *testing.T) {
	for _, tt := range []struct {
		name                string
		family, kind, proto int
		listen              bool
		want                Protocol
	}{
		{"bound", unix.AF_INET, unix.SOCK_STREAM, 0, false, TCP},
		{"listening", unix.AF_INET, unix.SOCK_STREAM, 0, true, TCP},
		{"dual-stack", unix.AF_INET6, unix.SOCK_STREAM, 0, true, TCP},
		{"mptcp", unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_MPTCP, true, TCP},
		{"udp", unix.AF_INET, unix.SOCK_DGRAM, 0, false, UDP},
		{"udp dual-stack", unix.AF_INET6, unix.SOCK_DGRAM, 0, false, UDP},
	} {
		t.Run(tt.name, func(t *testing.T) {
			fd, port := bind(t, tt.family, tt.kind, tt.proto)
			other, otherPort := bind(t, tt.family, tt.kind, tt.proto)
			if tt.listen {
				if err := unix.Listen(fd, 1); err != nil {
					t.Fatal(err)
				}
			}
			twin, err := unix.Dup(fd)
			if err != nil {
				t.Fatal(err)
			}
			told := watch(t, port)
			// Neither is it gone while anybody has it, nor is another's port of interest.
			unix.Close(other)
			unix.Close(fd)
			unix.Close(twin)
			if got, want := <-told, (closing{tt.want, port}); got != want {
				t.Errorf("told %v, want %v (and nothing of port %d)", got, want, otherPort)
			}
			if len(told) > 0 {
				t.Errorf("told again: %v", <-told)
			}
		})
	}
}

// TestWatchClosedLeavesOutConnections closes many connections of a listener, and then that.
func TestWatchClosedLeavesOutConnections(t *testing.T) {
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := uint16(ln.Addr().(*net.TCPAddr).Port)
	told := watch(t, port)
	for range 50 {
		a, err := net.Dial("tcp4", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		b, err := ln.Accept()
		if err != nil {
			t.Fatal(err)
		}
		b.Close()
		a.Close()
	}
	ln.Close()
	// Were connections told of, then one of so many would be before it.
	if got, want := <-told, (closing{TCP, port}); got != want {
		t.Errorf("told %v, want %v", got, want)
	}
}

// TestWatchClosedMisses closes more than the kernel keeps for a watcher who does not read.
func TestWatchClosedMisses(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	looked, reading, done := make(chan int, 100), make(chan struct{}), make(chan error, 1)
	n := 0
	go func() {
		done <- WatchClosed(ctx, nil, func() {
			n++
			looked <- n
			if n == 1 {
				<-reading
			}
		}, func(Protocol, uint16) {})
	}()
	select {
	case err := <-done:
		t.Skipf("this kernel does not tell of closed sockets: %v", err)
	case <-looked:
	}
	for !dropped(t) {
		fd, _ := bind(t, unix.AF_INET, unix.SOCK_STREAM, 0)
		unix.Close(fd)
	}
	close(reading)
	<-looked
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("it ended with %v, want Canceled", err)
	}
}

// dropped says whether the kernel has dropped something that it had for a watcher: proc(5) has no word of /proc/net/netlink, whose lines
// are its address, protocol, port, groups, three lengths, locks, drops and inode.
func dropped(t *testing.T) bool {
	t.Helper()
	text, err := os.ReadFile("/proc/net/netlink")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		if len(f) >= 10 && f[1] == fmt.Sprint(unix.NETLINK_SOCK_DIAG) && f[3] == "0000000f" && f[8] != "0" {
			return true
		}
	}
	return false
}

// TestClosedOn checks the program at its largest, and that a watch of more ports still tells.
func TestClosedOn(t *testing.T) {
	for _, n := range []int{1, maxFiltered, maxFiltered + 1} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			fd, port := bind(t, unix.AF_INET, unix.SOCK_STREAM, 0)
			ports := make([]uint16, n)
			for i := range ports {
				ports[i] = uint16(i + 1)
			}
			ports[n-1] = port
			told := watch(t, ports...)
			unix.Close(fd)
			for got := range told {
				if got == (closing{TCP, port}) {
					return
				}
			}
		})
	}
}

func FuzzParseClosed(f *testing.F) {
	whole := make([]byte, messageSize, 100)
	whole[4], whole[5] = 0x1f, 0x90
	f.Add(attribute(slices.Clone(whole), attrProtocol, []byte{6}))
	f.Add(whole)
	f.Add(whole[:10])
	f.Add(attribute(slices.Clone(whole), attrProtocol, nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, port, ok := parseClosed(b)
		if ok && (p == 0 || port == 0) {
			t.Errorf("%x is %v/%d", b, p, port)
		}
	})
}
