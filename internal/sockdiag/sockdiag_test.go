package sockdiag_test

import (
	"fmt"
	"io"
	"net/netip"
	"os"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/portd/portd/internal/nstest"
	"github.com/portd/portd/internal/sockdiag"
	"golang.org/x/sys/unix"
)

type actor struct{ *testing.M }

func TestMain(m *testing.M) { nstest.Main(actor{m}) }

// Run holds a socket for a test in another process, which the environment describes, until its standard input ends.
func (a actor) Run() int {
	name, ok := os.LookupEnv("SOCKDIAG_COMM")
	if !ok {
		os.Setenv("GORACE", "atexit_sleep_ms=0") // for them: else each one takes a second to exit under -race
		return a.M.Run()
	}
	err := os.WriteFile("/proc/self/comm", []byte(name), 0)
	if err == nil && os.Getenv("SOCKDIAG_DROP") != "" {
		err = syscall.Setuid(65533)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	fmt.Println("ready")
	_, _ = io.Copy(io.Discard, os.Stdin)
	return 0
}

var byValue = cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })

// open makes a socket, sets options (level, name, value), binds it to addr and closes it at the end.
func open(t testing.TB, kind, protocol int, addr string, options ...[3]int) int {
	t.Helper()
	ap := netip.MustParseAddrPort(addr)
	family := unix.AF_INET6
	if ap.Addr().Is4() {
		family = unix.AF_INET
	}
	fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC, protocol)
	switch err {
	case nil:
	case unix.EAFNOSUPPORT, unix.EPROTONOSUPPORT, unix.ESOCKTNOSUPPORT, unix.ENOPROTOOPT:
		t.Skipf("needs a kernel with family %d, protocol %d: %v", family, protocol, err)
	default:
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	for _, o := range options {
		if err := unix.SetsockoptInt(fd, o[0], o[1], o[2]); err != nil {
			t.Fatalf("option %v: %v", o, err)
		}
	}
	if err := unix.Bind(fd, sockaddr(t, ap)); err != nil {
		t.Fatalf("bind %s: %v", addr, err)
	}
	return fd
}

func sockaddr(t testing.TB, ap netip.AddrPort) unix.Sockaddr {
	t.Helper()
	if ap.Addr().Is4() {
		return &unix.SockaddrInet4{Addr: ap.Addr().As4(), Port: int(ap.Port())}
	}
	sa := &unix.SockaddrInet6{Addr: ap.Addr().As16(), Port: int(ap.Port())}
	if ap.Addr().Zone() != "" {
		sa.ZoneId = 1 // lo, in every network namespace
	}
	return sa
}

func listen(t testing.TB, fd int) int {
	t.Helper()
	if err := unix.Listen(fd, 16); err != nil {
		t.Fatal(err)
	}
	return fd
}

func connect(t testing.TB, fd int, to netip.AddrPort) {
	t.Helper()
	if err := unix.Connect(fd, sockaddr(t, to)); err != nil {
		t.Fatal(err)
	}
}

// local is the address that the kernel says fd has, unmapped.
func local(t testing.TB, fd int) netip.AddrPort {
	t.Helper()
	sa, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *unix.SockaddrInet6:
		addr := netip.AddrFrom16(sa.Addr).Unmap()
		if sa.ZoneId == 1 {
			addr = addr.WithZone("lo")
		}
		return netip.AddrPortFrom(addr, uint16(sa.Port))
	}
	t.Fatalf("socket address %T", sa)
	return netip.AddrPort{}
}

// describe completes what a test expects of fd with what only the socket itself knows.
func describe(t testing.TB, fd int, s sockdiag.Socket) sockdiag.Socket {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		t.Fatal(err)
	}
	s.Inode, s.UID = st.Ino, uint32(os.Geteuid())
	s.Local = local(t, fd)
	unconnected := s.State == sockdiag.Listening || s.State == sockdiag.BoundOnly || s.State == sockdiag.Unconnected
	s.V6Only = unconnected && s.Local.Addr().Is6() && !s.Local.Addr().IsUnspecified()
	return s
}

func cookie(t testing.TB, fd int) uint64 {
	t.Helper()
	c, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// find returns the one socket of the list that has inode.
func find(t testing.TB, f sockdiag.Filter, inode uint64) sockdiag.Socket {
	t.Helper()
	sockets, err := sockdiag.List(t.Context(), f)
	if err != nil {
		t.Fatal(err)
	}
	var found []sockdiag.Socket
	for _, s := range sockets {
		if s.Inode == inode {
			found = append(found, s)
		}
	}
	if len(found) != 1 {
		t.Fatalf("%d sockets with inode %d in %v", len(found), inode, sockets)
	}
	return found[0]
}
