package peercred_test

import (
	"encoding/json"
	"errors"
	"net"
	"os"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/portd/portd/internal/peercred"
	"golang.org/x/sys/unix"
)

func TestOf(t *testing.T) {
	for _, network := range []string{"unix", "unixpacket"} {
		t.Run(network, func(t *testing.T) {
			p := meet(t, network, "stay", nil)
			got, err := peercred.Of(p.conn)
			if err != nil {
				t.Fatal(err)
			}
			want := peercred.Cred{UID: uint32(os.Geteuid()), GID: uint32(os.Getegid()), PID: int32(p.cmd.Process.Pid)}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestOfAnotherUser(t *testing.T) {
	// More groups than fit into the first answer's buffer.
	var groups []uint32
	for g := range uint32(300) {
		groups = append(groups, 70000+g)
	}
	p := meet(t, "unix", "stay", asOther(t, groups...))
	got, err := peercred.Of(p.conn)
	if err != nil {
		t.Fatal(err)
	}
	want := peercred.Cred{UID: 65533, GID: 65532, PID: int32(p.cmd.Process.Pid)}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	have, err := peercred.Groups(p.conn)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(groups, sorted(have)); diff != "" {
		t.Error(diff)
	}
}

func TestGroupsAreOurs(t *testing.T) {
	p := meet(t, "unix", "stay", nil)
	have, err := peercred.Groups(p.conn)
	if err != nil {
		t.Fatal(err)
	}
	ours, err := os.Getgroups()
	if err != nil {
		t.Fatal(err)
	}
	want := []uint32{}
	for _, g := range ours {
		want = append(want, uint32(g))
	}
	if diff := cmp.Diff(sorted(want), sorted(have)); diff != "" {
		t.Error(diff)
	}
}

// Without a unix peer the kernel answers uid -1 and no error; nobody must take that for somebody.
func TestOfNobody(t *testing.T) {
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	remote, err := net.Dial("tcp", tcp.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer remote.Close()
	datagram, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer datagram.Close()
	for name, conn := range map[string]syscall.Conn{"tcp": remote.(*net.TCPConn), "unconnected": datagram} {
		if cred, err := peercred.Of(conn); !errors.Is(err, unix.ENOTCONN) {
			t.Errorf("%s: %+v, %v; want ENOTCONN", name, cred, err)
		}
		if p, err := peercred.Open(conn); err == nil {
			p.Close()
			t.Errorf("%s: a process at the other end", name)
		}
	}
	datagram.Close()
	if _, err := peercred.Of(datagram); !errors.Is(err, net.ErrClosed) {
		t.Errorf("closed: %v", err)
	}
}

// From inside a pid namespace a peer outside has no number, and without SO_PEERPIDFD no descriptor.
func TestAcrossPIDNamespaces(t *testing.T) {
	p := meet(t, "unix", "look", inNamespaces(t, unix.CLONE_NEWPID))
	var got view
	if err := json.NewDecoder(p.conn).Decode(&got); err != nil {
		t.Fatal(err)
	}
	if got.Cred.PID != 0 || got.Cred.UID != uint32(os.Geteuid()) {
		t.Errorf("seen from the inside: %+v", got.Cred)
	}
	if want := "peer pidfd: the peer is in a pid namespace that is not visible here: operation not supported"; got.ByNumber != want {
		t.Errorf("by number: %s", got.ByNumber)
	}
	has, err := peercred.HasPeerPIDFD()
	if err != nil {
		t.Fatal(err)
	}
	if has && got.Open != "<nil>" {
		t.Errorf("by SO_PEERPIDFD: %s", got.Open)
	}
}
