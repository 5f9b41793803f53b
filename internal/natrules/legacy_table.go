package natrules

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// An oldTable is the nat table of the kernel's own iptables for one family.
type oldTable struct {
	list          string // of the tables that somebody has used
	names         int    // descriptor of list, -1 until it is there
	domain, level int
	layout        layout
}

func oldTables() []*oldTable {
	return []*oldTable{
		{list: "/proc/thread-self/net/ip_tables_names", names: -1, domain: unix.AF_INET, level: unix.SOL_IP, layout: layout4},
		{list: "/proc/thread-self/net/ip6_tables_names", names: -1, domain: unix.AF_INET6, level: unix.SOL_IPV6, layout: layout6},
	}
}

func (o *oldTable) close() {
	if o.names >= 0 {
		_ = unix.Close(o.names)
		o.names = -1
	}
}

// used says whether anybody has used the table. One that nobody has is not asked for: the kernel would make it, and track
// every connection from then on.
func (o *oldTable) used() (bool, error) {
	if o.names < 0 {
		fd, err := unix.Open(o.list, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if errors.Is(err, unix.ENOENT) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		o.names = fd
	}
	var b [256]byte // the kernel has five tables
	n, err := atOnce(unix.SYS_PREAD64, o.names, b[:])
	if err != nil || n == 0 {
		return false, err
	}
	return slices.Contains(strings.Fields(string(b[:n])), "nat"), nil
}

// redirects is what the table does.
func (o *oldTable) redirects() (found []target, cut bool, err error) {
	used, err := o.used()
	if err != nil || !used {
		return nil, false, err
	}
	info, entries, err := natTable(o.domain, o.level)
	if err != nil {
		return nil, false, fmt.Errorf("iptables %s nat: %w", o.layout.family, err)
	}
	t, err := parseEntries(o.layout, info, entries)
	if err != nil {
		return nil, false, fmt.Errorf("iptables %s nat: %w", o.layout.family, err)
	}
	found, cut = t.redirects()
	return found, cut, nil
}

// natTable reads what iptables-save reads.
func natTable(domain, level int) (info blobInfo, entries []byte, err error) {
	const getInfo, getEntries = 64, 65 // IPT_SO_GET_INFO, IPT_SO_GET_ENTRIES, and IP6T_...
	const header = 40                  // of struct ipt_get_entries: name, size
	fd, err := unix.Socket(domain, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return info, nil, err
	}
	defer unix.Close(fd)
	for range 10 {
		b := make([]byte, infoSize)
		copy(b, "nat")
		if err := getsockopt(fd, level, getInfo, b); err != nil {
			return info, nil, err
		}
		if info, err = parseInfo(b); err != nil {
			return info, nil, err
		}
		b = make([]byte, header+int(info.size))
		copy(b, "nat")
		*(*uint32)(unsafe.Pointer(&b[32])) = info.size
		err = getsockopt(fd, level, getEntries, b)
		if err == nil {
			return info, b[header:], nil
		}
		if !errors.Is(err, unix.EAGAIN) { // another table took its place
			return info, nil, err
		}
	}
	return info, nil, errChanged
}

// getsockopt fills b, which also says what is asked for.
func getsockopt(fd, level, name int, b []byte) error {
	size := uint32(len(b))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), uintptr(level), uintptr(name),
		uintptr(unsafe.Pointer(&b[0])), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return errno
	}
	return nil
}
