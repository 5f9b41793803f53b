package binder_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/nstest"
	"github.com/portd/portd/internal/registry"
)

const (
	envHost   = "PORTD_BINDER_HOST"
	envNobody = "PORTD_BINDER_NOBODY"
	noLinger  = "GORACE=atexit_sleep_ms=0" // else the process takes a second to exit under -race
)

// A stranger is a socket that is not portd's, made by socket calls of its own, in this process or in another one.
type stranger struct {
	Type   int // SOCK_STREAM, SOCK_DGRAM
	Proto  int // as socket(2) takes it; 0 is the usual one
	At     netip.AddrPort
	V6Only bool
	Device string
	RA, RP bool // SO_REUSEADDR, SO_REUSEPORT
	Listen bool
}

func (s stranger) String() string {
	what := fmt.Sprintf("%v", s.At)
	for _, f := range []struct {
		on   bool
		name string
	}{{s.V6Only, "v6only"}, {s.Device != "", s.Device}, {s.RA, "RA"}, {s.RP, "RP"}, {s.Listen, "listen"}} {
		if f.on {
			what += " " + f.name
		}
	}
	return what
}

// place is where the socket is, in the registry's words.
func (s stranger) place(proto registry.Protocol) registry.Endpoint {
	return registry.Endpoint{
		Netns: registry.HostNetns, Proto: proto, Addr: s.At.Addr().Unmap(), V6Only: s.V6Only, Device: s.Device,
		First: s.At.Port(), Last: s.At.Port(),
	}
}

// try makes the socket. The descriptor is the caller's; the error names the call that failed.
func (s stranger) try() (_ int, err error) {
	domain := unix.AF_INET
	if s.At.Addr().Is6() {
		domain = unix.AF_INET6
	}
	fd, err := unix.Socket(domain, s.Type|unix.SOCK_CLOEXEC, s.Proto)
	if err != nil {
		return -1, fmt.Errorf("socket: %w", err)
	}
	defer func() {
		if err != nil {
			_ = unix.Close(fd)
		}
	}()
	option := func(level, name int, on bool) {
		if on && err == nil {
			err = unix.SetsockoptInt(fd, level, name, 1)
		}
	}
	option(unix.SOL_SOCKET, unix.SO_REUSEADDR, s.RA)
	option(unix.SOL_SOCKET, unix.SO_REUSEPORT, s.RP)
	option(unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, s.V6Only)
	if s.Device != "" && err == nil {
		err = unix.BindToDevice(fd, s.Device)
	}
	if err != nil {
		return -1, fmt.Errorf("setsockopt: %w", err)
	}
	if err := unix.Bind(fd, sockaddr(s.At)); err != nil {
		return -1, fmt.Errorf("bind: %w", err)
	}
	if s.Listen {
		if err := unix.Listen(fd, 16); err != nil {
			return -1, fmt.Errorf("listen: %w", err)
		}
	}
	return fd, nil
}

// open makes the socket in this process, until the test ends.
func (s stranger) open(t testing.TB) int {
	t.Helper()
	fd, err := s.try()
	if err != nil {
		t.Fatalf("stranger %v: %v", s, err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	return fd
}

// A host is another process, in which strangers try to make their sockets and keep what they get until the test ends.
type host struct {
	pid  int
	tell *json.Encoder
	hear *json.Decoder
}

func startHost(t testing.TB, attr *syscall.SysProcAttr) *host {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), envHost+"=1", noLinger)
	cmd.SysProcAttr = attr
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = stdin.Close()
		if err := cmd.Wait(); err != nil {
			t.Errorf("other process: %v", err)
		}
	})
	return &host{cmd.Process.Pid, json.NewEncoder(stdin), json.NewDecoder(stdout)}
}

func (h *host) try(t testing.TB, s stranger) error {
	t.Helper()
	var said string
	if err := errors.Join(h.tell.Encode(s), h.hear.Decode(&said)); err != nil {
		t.Fatalf("stranger %v: %v", s, err)
	}
	if said != "" {
		return errors.New(said)
	}
	return nil
}

// beHost is the other process.
func beHost() int {
	orders, answers := json.NewDecoder(os.Stdin), json.NewEncoder(os.Stdout)
	for {
		var s stranger
		if err := orders.Decode(&s); err != nil {
			if errors.Is(err, io.EOF) {
				return 0
			}
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		said := ""
		if _, err := s.try(); err != nil {
			said = err.Error()
		}
		if err := answers.Encode(said); err != nil {
			return 1
		}
	}
}

// isNobody says whether the test runs in the process that asNobody started.
func isNobody() bool { return os.Getenv(envNobody) != "" }

// asNobody runs the test again in a process of a user without any privilege.
func asNobody(t *testing.T, env ...string) {
	t.Helper()
	nstest.Need(t)
	cmd := exec.Command("/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(append(os.Environ(), envNobody+"=1", noLinger), env...)
	cmd.SysProcAttr = nstest.As(t, 65534, 65534)
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS") {
		t.Errorf("as another user: %v\n%s", err, out)
	}
}

// thieves are sockets of every kind that might get in beside one on port.
func thieves(kind int, port uint16) []stranger {
	var all []stranger
	for _, addr := range []string{"0.0.0.0", "127.0.0.1", "::", "::ffff:127.0.0.1"} {
		for options := range 8 {
			s := stranger{
				Type: kind, At: netip.AddrPortFrom(netip.MustParseAddr(addr), port),
				RA: options&1 != 0, RP: options&2 != 0, Listen: options&4 != 0,
			}
			if s.Listen && kind == unix.SOCK_DGRAM {
				continue
			}
			all = append(all, s)
		}
	}
	return all
}

func sockAt(ep registry.Endpoint) netip.AddrPort { return netip.AddrPortFrom(ep.Addr, ep.First) }

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Addr: a.Addr().As4(), Port: int(a.Port())}
	}
	to := &unix.SockaddrInet6{Addr: a.Addr().As16(), Port: int(a.Port())}
	if ifi, err := net.InterfaceByName(a.Addr().Zone()); err == nil {
		to.ZoneId = uint32(ifi.Index)
	}
	return to
}

func isInUse(err error) bool {
	return errors.Is(err, unix.EADDRINUSE) || err != nil && strings.HasSuffix(err.Error(), unix.EADDRINUSE.Error())
}
