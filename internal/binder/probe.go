package binder

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/registry"
	"github.com/portd/portd/internal/sockdiag"
)

// A Feature is something of this kernel, or a right of this process, that portd is better with.
type Feature struct {
	Name        string
	Available   bool
	Consequence string // what is weaker without it, as a sentence
}

// Features are what New found, what matters most first.
func (b *Binder) Features() []Feature { return b.features }

// probe tries out what the rest relies on, rather than ask for the kernel's version. It leaves nothing behind.
func (b *Binder) probe() error {
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	switch {
	case err == nil:
		_ = unix.Close(fd)
		b.ipv6 = true
	case !errors.Is(err, unix.EAFNOSUPPORT):
		return fmt.Errorf("IPv6 socket: %w", err)
	}

	exclusive, err := tryHold()
	if err != nil {
		b.log.Warn("holding a port could not be tried out", "err", err)
	}
	shown, err := sockdiag.BoundOnlyVisible(context.Background())
	if err != nil {
		b.log.Warn("looking for held ports could not be tried out", "err", err)
	}
	overLeftovers, err := tryOverLeftovers()
	if err != nil {
		b.log.Warn("holding a port over closed connections could not be tried out", "err", err)
	}
	b.boundShown, b.fallback = shown, exclusive && shown && overLeftovers
	b.features = []Feature{
		{"exclusive-hold", exclusive, "A program that sets SO_REUSEADDR can bind a port that portd holds."},
		{"bound-sockets-shown", shown, "Who has bound a TCP port without listening on it cannot be named, and such a port may be told as free."},
		{"hold-over-leftovers", b.fallback, "A port with connections, or with some in the last minute, cannot be held again when portd restarts."},
		{"processes-of-others", len(lackingForProcesses()) == 0, "Of other users' sockets the user is known and not the process: that takes CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH."},
		{"closed-sockets-told", sockdiag.ClosedShown(), "A lost port is taken back up to a second after it is free."},
		{"ipv6", b.ipv6, "All addresses means all IPv4 addresses."},
	}
	return nil
}

// A trial is some sockets on loopback that leave nothing behind.
type trial []*socket

func (t *trial) end() {
	for _, s := range *t {
		// Reset rather than closed, so that no connection lingers on.
		_ = unix.SetsockoptLinger(s.fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
		s.close()
	}
	*t = nil
}

// socket is bound to port of loopback, or to any where that is 0.
func (t *trial) socket(port uint16, reuse bool) (*socket, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_TCP)
	if err != nil {
		return nil, err
	}
	s := &socket{fd: fd}
	*t = append(*t, s)
	if err := s.reuse(reuse); err != nil {
		return nil, err
	}
	if port == 0 {
		err = sockdiag.BindLoopback(fd)
	} else {
		err = unix.Bind(fd, &unix.SockaddrInet4{Addr: loopback.As4(), Port: int(port)})
	}
	if err != nil {
		return nil, err
	}
	at, err := unix.Getsockname(fd)
	if err != nil {
		return nil, err
	}
	port = uint16(at.(*unix.SockaddrInet4).Port)
	s.ep = registry.Endpoint{Netns: registry.HostNetns, Proto: registry.TCP, Addr: loopback, First: port, Last: port}
	return s, s.stat()
}

// keepsOut says whether hold, which has SO_REUSEADDR off, keeps out a thief who has it on.
func (t *trial) keepsOut(hold *socket) (bool, error) {
	_, err := t.socket(hold.ep.First, true)
	if errors.Is(err, unix.EADDRINUSE) {
		return true, nil
	}
	return false, err
}

// tryHold says whether a hold keeps out a thief.
func tryHold() (bool, error) {
	var t trial
	defer t.end()
	hold, err := t.socket(0, false)
	if err != nil {
		return false, fmt.Errorf("hold a port of loopback: %w", err)
	}
	return t.keepsOut(hold)
}

// tryOverLeftovers says whether a hold over a connection whose listener is gone keeps out a thief. In kernels before about 6.8
// it may not: that SO_REUSEADDR was on for a moment may still count after it is off.
func tryOverLeftovers() (bool, error) {
	var gone, t trial
	defer gone.end()
	defer t.end()
	listener, err := gone.socket(0, true)
	if err != nil {
		return false, err
	}
	if err := unix.Listen(listener.fd, 1); err != nil {
		return false, err
	}
	client, err := t.socket(0, false)
	if err != nil {
		return false, err
	}
	// With an end, for a packet filter may be in the way.
	to := &unix.SockaddrInet4{Addr: loopback.As4(), Port: int(listener.ep.First)}
	if err := unix.Connect(client.fd, to); err != nil && !errors.Is(err, unix.EINPROGRESS) {
		return false, fmt.Errorf("connect over loopback: %w", err)
	}
	waiting := []unix.PollFd{{Fd: int32(listener.fd), Events: unix.POLLIN}}
	for {
		if _, err := unix.Poll(waiting, 1000); !errors.Is(err, unix.EINTR) {
			break
		}
	}
	fd, _, err := unix.Accept4(listener.fd, unix.SOCK_CLOEXEC)
	if err != nil {
		return false, fmt.Errorf("accept over loopback: %w", err)
	}
	t = append(t, &socket{fd: fd})
	gone.end()

	hold, err := t.socket(listener.ep.First, true)
	if err != nil {
		return false, fmt.Errorf("bind over a connection: %w", err)
	}
	if err := hold.reuse(false); err != nil {
		return false, err
	}
	return t.keepsOut(hold)
}

var loopback = netip.AddrFrom4([4]byte{127, 0, 0, 1})

// lackingForProcesses are the capabilities that portd would need to look into the processes of other users (proc(5), ptrace(2)).
func lackingForProcesses() (lacking []string) {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var caps [2]unix.CapUserData
	if err := unix.Capget(&header, &caps[0]); err != nil {
		caps = [2]unix.CapUserData{}
	}
	for _, c := range []struct {
		bit  int
		name string
	}{{unix.CAP_SYS_PTRACE, "CAP_SYS_PTRACE"}, {unix.CAP_DAC_READ_SEARCH, "CAP_DAC_READ_SEARCH"}} {
		if caps[0].Effective&(1<<c.bit) == 0 {
			lacking = append(lacking, c.name)
		}
	}
	return lacking
}

// hiddenWithout says why portd does not see other users' processes, and what would show them.
func hiddenWithout(lacking []string) string {
	if len(lacking) == 0 {
		return "portd may not see every process though it has CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH: " +
			"it is in a user namespace, or a security module or hidepid of /proc keeps it out"
	}
	return "portd may not see other users' processes without " + strings.Join(lacking, " and ")
}
