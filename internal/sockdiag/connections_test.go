package sockdiag_test

import (
	"cmp"
	"net"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/portd/portd/internal/nstest"
	"github.com/portd/portd/internal/sockdiag"
	"golang.org/x/sys/unix"
)

// connections are those of local ports, in order of the remote one.
func connections(t testing.TB, figures bool, ranges ...sockdiag.PortRange) (all []sockdiag.Connection) {
	t.Helper()
	err := sockdiag.Connections(t.Context(), ranges, figures, func(c sockdiag.Connection) { all = append(all, c) })
	if err != nil {
		t.Fatal(err)
	}
	slices.SortFunc(all, func(a, b sockdiag.Connection) int { return cmp.Compare(a.Remote.Port(), b.Remote.Port()) })
	return all
}

// pair is a connection to ln: its client's end and the server's.
func pair(t testing.TB, ln *net.TCPListener, to string) (client, server *net.TCPConn) {
	t.Helper()
	c, err := net.Dial("tcp", netip.AddrPortFrom(netip.MustParseAddr(to), portOf(ln)).String())
	if err != nil {
		t.Skipf("needs %s: %v", to, err)
	}
	t.Cleanup(func() { c.Close() })
	s, err := ln.AcceptTCP()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return c.(*net.TCPConn), s
}

func portOf(ln net.Listener) uint16 { return uint16(ln.Addr().(*net.TCPAddr).Port) }

func listenTCP(t testing.TB, addr string) *net.TCPListener {
	t.Helper()
	var plain net.ListenConfig
	plain.SetMultipathTCP(false)
	ln, err := plain.Listen(t.Context(), "tcp", addr)
	if err != nil {
		t.Skipf("needs %s: %v", addr, err)
	}
	t.Cleanup(func() { ln.Close() })
	return ln.(*net.TCPListener)
}

func inodeOf(t testing.TB, c *net.TCPConn) (inode uint64) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	err = raw.Control(func(fd uintptr) {
		var st unix.Stat_t
		if err := unix.Fstat(int(fd), &st); err != nil {
			t.Error(err)
		}
		inode = st.Ino
	})
	if err != nil {
		t.Fatal(err)
	}
	return inode
}

func TestConnections(t *testing.T) {
	for _, tt := range []struct{ listen, dial string }{
		{"127.0.0.1:0", "127.0.0.1"},
		{"[::]:0", "127.0.0.1"}, // mapped, inside of the kernel
		{"[::1]:0", "::1"},
	} {
		t.Run(tt.listen+" from "+tt.dial, func(t *testing.T) {
			ln := listenTCP(t, tt.listen)
			client, server := pair(t, ln, tt.dial)
			if _, err := client.Write(make([]byte, 1000)); err != nil {
				t.Fatal(err)
			}
			if _, err := server.Read(make([]byte, 1000)); err != nil {
				t.Fatal(err)
			}
			if _, err := server.Write(make([]byte, 77)); err != nil {
				t.Fatal(err)
			}
			if _, err := client.Read(make([]byte, 77)); err != nil {
				t.Fatal(err)
			}
			at := netip.AddrPortFrom(netip.MustParseAddr(tt.dial), portOf(ln))
			want := sockdiag.Connection{
				Local: at, Remote: client.LocalAddr().(*net.TCPAddr).AddrPort(), State: sockdiag.Established,
				UID: uint32(os.Geteuid()), Inode: inodeOf(t, server), BytesReceived: 1000, BytesSent: 77,
			}
			got := connections(t, true, sockdiag.PortRange{First: at.Port(), Last: at.Port()})
			if len(got) != 1 {
				t.Fatalf("%v, want one", got)
			}
			if got[0].RTT <= 0 || got[0].RTT > time.Minute {
				t.Errorf("round trip of %v", got[0].RTT)
			}
			got[0].RTT = 0
			if diff := gocmp.Diff(want, got[0], byValue); diff != "" {
				t.Error(diff)
			}
			want.BytesReceived, want.BytesSent = 0, 0
			if diff := gocmp.Diff([]sockdiag.Connection{want}, connections(t, false, sockdiag.PortRange{First: at.Port(), Last: at.Port()}), byValue); diff != "" {
				t.Error("without figures:", diff)
			}
			// The client shuts down, then both are done.
			if err := client.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			if _, err := server.Read(make([]byte, 1)); err == nil {
				t.Fatal("read after the end")
			}
			got = connections(t, false, sockdiag.PortRange{First: at.Port(), Last: at.Port()})
			if len(got) != 1 || got[0].State != sockdiag.CloseWait {
				t.Errorf("after the client's end: %v", got)
			}
		})
	}
}

// A connection in the backlog is nobody's yet.
func TestConnectionsNotAccepted(t *testing.T) {
	ln := listenTCP(t, "127.0.0.1:0")
	c, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	got := connections(t, false, sockdiag.PortRange{First: portOf(ln), Last: portOf(ln)})
	if len(got) != 1 || got[0].Inode != 0 || got[0].State != sockdiag.Established {
		t.Errorf("%v, want one without an inode", got)
	}
}

// Of many ports, those asked for are told of and no others, as far as the kernel is asked for each.
func TestConnectionsOfPorts(t *testing.T) {
	nstest.Need(t)
	const first, count = 20_000, 200
	for i := range count {
		ln := listenTCP(t, netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(first+3*i)).String())
		pair(t, ln, "127.0.0.1")
	}
	for _, step := range []int{1, 2, 4, 5, 200} {
		var ranges []sockdiag.PortRange
		want := map[uint16]bool{}
		for i := 0; i < count; i += step {
			port := uint16(first + 3*(count-1-i))
			ranges = append(ranges, sockdiag.PortRange{First: port - 1, Last: port})
			want[port] = true
		}
		others := 0
		for _, c := range connections(t, false, ranges...) {
			if !want[c.Local.Port()] {
				others++
			}
			delete(want, c.Local.Port())
		}
		if len(want) > 0 {
			t.Errorf("of %d ranges: not told of %v", len(ranges), want)
		}
		if len(ranges) <= sockdiag.MaxRanges && others > 0 {
			t.Errorf("of %d ranges: told of %d others", len(ranges), others)
		}
	}
}

// BenchmarkConnections has 5,000 connections, the other ends of which are in the kernel's table, too.
func BenchmarkConnections(b *testing.B) {
	nstest.Need(b)
	const count = 5000
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		b.Fatal(err)
	}
	if limit.Cur < 2*count+100 {
		b.Skipf("needs %d descriptors, may have %d", 2*count+100, limit.Cur)
	}
	ln := listenTCP(b, "127.0.0.1:0")
	for range count {
		pair(b, ln, "127.0.0.1")
	}
	for _, figures := range []bool{false, true} {
		name := "bare"
		if figures {
			name = "figures"
		}
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				n := 0
				err := sockdiag.Connections(b.Context(), []sockdiag.PortRange{{First: portOf(ln), Last: portOf(ln)}}, figures, func(sockdiag.Connection) { n++ })
				if err != nil || n != count {
					b.Fatal(n, err)
				}
			}
		})
	}
}
