package binder

import (
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/registry"
)

// The kernel's settings, as they are for the network namespace of the calling thread: /proc/sys/net shows each its own.

// Ephemeral is ip_local_port_range: of portd's own network namespace as it was when the Binder was made, of others as it is now
// or, where that cannot be read, as it is in a new one.
func (b *Binder) Ephemeral(netns string) registry.PortRange {
	if netns == registry.HostNetns {
		return b.ephemeral
	}
	var r registry.PortRange
	err := b.in(netns, func() (err error) {
		r, err = ephemeralRange()
		return err
	})
	if err != nil {
		b.log.Warn("cannot read the range of ephemeral ports", "netns", netns, "err", err)
		return registry.PortRange{First: 32768, Last: 60999}
	}
	return r
}

// ephemeralRange is where bind(2) of port 0 and connect(2) get their ports from.
func ephemeralRange() (r registry.PortRange, err error) {
	err = readSysctl("net/ipv4/ip_local_port_range", &r.First, &r.Last)
	return r, err
}

// FirstUnprivileged is the first port that needs no capability (ip_unprivileged_port_start), 1 where none does.
func (b *Binder) FirstUnprivileged(netns string) (first uint16) {
	err := b.in(netns, func() error {
		first = firstUnprivileged()
		return nil
	})
	if err != nil {
		return 1024
	}
	return first
}

func firstUnprivileged() uint16 {
	first := uint16(1024)
	_ = readSysctl("net/ipv4/ip_unprivileged_port_start", &first) // without the file the kernel's own constant holds
	return max(first, 1)
}

// maxBacklog caps what listen(2) is asked for.
func maxBacklog() int {
	n := 4096
	_ = readSysctl("net/core/somaxconn", &n)
	return n
}

func readSysctl(name string, values ...any) error {
	text, err := os.ReadFile("/proc/sys/" + name)
	if err != nil {
		return ranOut(err)
	}
	if _, err := fmt.Sscan(string(text), values...); err != nil {
		return fmt.Errorf("%s: %q: %w", name, strings.TrimSpace(string(text)), err)
	}
	return nil
}

// descriptorLimit is the first descriptor number that Bind leaves alone. Go has raised the soft limit to the hard one.
func (b *Binder) descriptorLimit() (int, error) {
	open, err := maxDescriptors()
	return max(open-b.spare, open/2), err
}

// maxDescriptors is RLIMIT_NOFILE.
func maxDescriptors() (int, error) {
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &l); err != nil {
		return 0, fmt.Errorf("RLIMIT_NOFILE: %w", err)
	}
	return int(min(l.Cur, 1<<30)), nil
}
