package binder_test

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"testing"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// addAddresses sets a device of addBridge up and gives it addresses. Those that this kernel does not take (it may have no IPv6) are
// left out.
func addAddresses(t testing.TB, device string, addrs ...netip.Addr) {
	t.Helper()
	ifi, err := net.InterfaceByName(device)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := netlink.Dial(unix.NETLINK_ROUTE, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	up := make([]byte, unix.SizeofIfInfomsg)
	binary.NativeEndian.PutUint32(up[4:], uint32(ifi.Index))
	binary.NativeEndian.PutUint32(up[8:], unix.IFF_UP)
	binary.NativeEndian.PutUint32(up[12:], unix.IFF_UP)
	execute(t, conn, unix.RTM_NEWLINK, 0, up)
	for _, addr := range addrs {
		msg := make([]byte, unix.SizeofIfAddrmsg)
		msg[0], msg[1] = unix.AF_INET, 24
		if addr.Is6() {
			msg[0], msg[1] = unix.AF_INET6, 64
		}
		msg[2] = unix.IFA_F_NODAD // else IPv6 waits whether somebody else has it
		if addr.IsLinkLocalUnicast() {
			msg[3] = unix.RT_SCOPE_LINK
		}
		binary.NativeEndian.PutUint32(msg[4:], uint32(ifi.Index))
		attrs := netlink.NewAttributeEncoder()
		attrs.Bytes(unix.IFA_LOCAL, addr.AsSlice())
		attrs.Bytes(unix.IFA_ADDRESS, addr.AsSlice())
		encoded, err := attrs.Encode()
		if err != nil {
			t.Fatal(err)
		}
		execute(t, conn, unix.RTM_NEWADDR, netlink.Create, append(msg, encoded...))
	}
}

func execute(t testing.TB, conn *netlink.Conn, what netlink.HeaderType, flags netlink.HeaderFlags, data []byte) {
	t.Helper()
	_, err := conn.Execute(netlink.Message{
		Header: netlink.Header{Type: what, Flags: netlink.Request | netlink.Acknowledge | flags}, Data: data,
	})
	if err != nil && !errors.Is(err, unix.EEXIST) {
		t.Logf("rtnetlink message %d: %v", what, err)
	}
}
