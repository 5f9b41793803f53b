package sockdiag

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

const (
	messageSize = 72 // struct inet_diag_msg (linux/inet_diag.h)
	attrV6Only  = 11 // INET_DIAG_SKV6ONLY
	attrULP     = 19 // INET_DIAG_ULP_INFO: the protocol on top of TCP, as attributes
	attrULPName = 1  // INET_ULP_INFO_NAME, within
)

// parse reads one inet_diag_msg with its attributes; it leaves the protocol and the device to the caller.
func parse(b []byte) (s Socket, device int, err error) {
	if len(b) < messageSize {
		return s, 0, fmt.Errorf("socket description of %d bytes", len(b))
	}
	local, remote := b[8:24], b[24:40]
	switch family := b[0]; family {
	case unix.AF_INET:
		local, remote = local[:4], remote[:4]
	case unix.AF_INET6:
	default:
		return s, 0, fmt.Errorf("socket description of address family %d", family)
	}
	s.State = State(b[1])
	s.Local = addrPort(local, b[4:])
	if r := addrPort(remote, b[6:]); r.Port() != 0 || !r.Addr().IsUnspecified() {
		s.Remote = r
	}
	device = int(binary.NativeEndian.Uint32(b[40:]))
	s.Cookie = uint64(binary.NativeEndian.Uint32(b[44:])) | uint64(binary.NativeEndian.Uint32(b[48:]))<<32
	s.UID = binary.NativeEndian.Uint32(b[64:])
	s.Inode = uint64(binary.NativeEndian.Uint32(b[68:]))
	err = attributes(b[messageSize:], func(kind uint16, data []byte) error {
		switch {
		case kind == attrV6Only && len(data) > 0:
			s.V6Only = data[0] != 0
		case kind == attrULP:
			return attributes(data, func(kind uint16, name []byte) error {
				s.Multipath = s.Multipath || kind == attrULPName && string(name) == "mptcp\x00"
				return nil
			})
		}
		return nil
	})
	return s, device, err
}

// attributes calls yield with each of the netlink attributes in b (netlink(7)).
func attributes(b []byte, yield func(kind uint16, data []byte) error) error {
	for len(b) >= 4 {
		size, kind := int(binary.NativeEndian.Uint16(b)), binary.NativeEndian.Uint16(b[2:])
		if size < 4 || size > len(b) {
			return fmt.Errorf("attribute of %d bytes in the %d left of a socket description", size, len(b))
		}
		const flags = unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER
		if err := yield(kind&^flags, b[4:size]); err != nil {
			return err
		}
		b = b[min((size+3)&^3, len(b)):]
	}
	return nil
}

func addrPort(ip, port []byte) netip.AddrPort {
	addr, _ := netip.AddrFromSlice(ip) // 4 or 16 bytes: cannot fail
	return netip.AddrPortFrom(addr.Unmap(), binary.BigEndian.Uint16(port))
}

// zoned gives a link-local address, which means nothing without its link, the device as zone.
func zoned(ap netip.AddrPort, device string) netip.AddrPort {
	addr := ap.Addr()
	if !addr.Is6() || !addr.IsLinkLocalUnicast() && !addr.IsLinkLocalMulticast() {
		return ap
	}
	return netip.AddrPortFrom(addr.WithZone(device), ap.Port())
}
