package binder_test

import (
	"errors"
	"testing"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// addBridge makes a network device, down and without addresses: enough to bind to. It is gone with the namespace.
func addBridge(t testing.TB, name string) {
	t.Helper()
	attrs := netlink.NewAttributeEncoder()
	attrs.String(unix.IFLA_IFNAME, name)
	attrs.Nested(unix.IFLA_LINKINFO, func(info *netlink.AttributeEncoder) error {
		info.String(unix.IFLA_INFO_KIND, "bridge")
		return nil
	})
	encoded, err := attrs.Encode()
	if err != nil {
		t.Fatal(err)
	}
	conn, err := netlink.Dial(unix.NETLINK_ROUTE, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_, err = conn.Execute(netlink.Message{
		Header: netlink.Header{Type: unix.RTM_NEWLINK, Flags: netlink.Request | netlink.Acknowledge | netlink.Create},
		Data:   append(make([]byte, unix.SizeofIfInfomsg), encoded...),
	})
	switch {
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EOPNOTSUPP):
		t.Skipf("needs CAP_NET_ADMIN and a kernel with bridges to make a network device: %v", err)
	case err != nil && !errors.Is(err, unix.EEXIST):
		t.Fatalf("make device %s: %v", name, err)
	}
}
