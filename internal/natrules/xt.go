package natrules

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"
)

// iptables writes its matches and targets as the structs of linux/netfilter/xt_*.h and nf_nat.h, in tables of its own and, by
// iptables-nft, inside of nftables alike.

// xtMatch is what a match says of a packet. some says that there is more to it than classes.
func xtMatch(name string, revision uint8, info []byte) (match []class, some bool, err error) {
	le := binary.NativeEndian
	need := func(n int) bool {
		if len(info) < n {
			err = fmt.Errorf("match %q of %d bytes", name, len(info))
		}
		return err == nil
	}
	switch {
	case name == "tcp" && need(12), name == "udp" && need(9):
		// struct xt_tcp, xt_udp: source ports, destination ports; then options and inversions.
		not := info[min(len(info)-1, 8)]
		if name == "tcp" {
			not = info[11]
			some = info[9] != 0 // flags
		}
		some = some || le.Uint16(info) != 0 || le.Uint16(info[2:]) != 65535
		match = ofPorts(le.Uint16(info[4:]), le.Uint16(info[6:]))
		if not&2 != 0 {
			match, _ = otherThan(match)
		}
		return match, some, nil
	case name == "multiport" && revision == 1 && need(48):
		// struct xt_multiport_v1: flags, count, 15 ports, 15 that say "up to the next", inverted.
		const destination, most = 1, 15
		if info[0] != destination {
			return everything(), true, nil
		}
		for i := 0; i < min(int(info[1]), most); i++ {
			first := le.Uint16(info[2+2*i:])
			last := first
			if info[32+i] != 0 && i+1 < most {
				i++
				last = le.Uint16(info[2+2*i:])
			}
			match = append(match, ofPorts(first, last)...)
		}
		if info[47] != 0 {
			match, _ = otherThan(match)
		}
		return match, false, nil
	case name == "addrtype" && revision == 1 && need(8):
		// struct xt_addrtype_info_v1: types of source and destination, flags. This host's addresses are "local".
		const local, notDestination = 1 << 2, 2
		source, destination, flags := le.Uint16(info), le.Uint16(info[2:]), le.Uint32(info[4:])
		if destination != 0 && (destination&local != 0) == (flags&notDestination != 0) {
			return nil, false, nil
		}
		return everything(), source != 0 || flags&^notDestination != 0, nil
	case name == "comment":
		return everything(), false, nil
	}
	return everything(), true, err
}

// xtTarget is what a target does. It is nothing for those that do not redirect, for whatever else they do ends no chain.
func xtTarget(name string, revision uint8, info []byte, ipv6 bool) (does action, to string, err error) {
	if name != "DNAT" && name != "REDIRECT" {
		return nothing, "", nil
	}
	const mapAddress, mapPort, offsetPort = 1 << 0, 1 << 1, 1 << 5
	var flags uint32
	var first, last netip.Addr
	var ports []byte
	if name == "DNAT" && revision > 0 || ipv6 {
		// struct nf_nat_range, nf_nat_range2: flags, addresses of 16 bytes, ports.
		if len(info) < 40 {
			return nothing, "", fmt.Errorf("target %q of %d bytes", name, len(info))
		}
		flags, ports = binary.NativeEndian.Uint32(info), info[36:]
		size := 4
		if ipv6 {
			size = 16
		}
		first, _ = netip.AddrFromSlice(info[4 : 4+size])
		last, _ = netip.AddrFromSlice(info[20 : 20+size])
	} else {
		// struct nf_nat_ipv4_multi_range_compat: how many, which is one; flags, addresses, ports.
		if len(info) < 20 {
			return nothing, "", fmt.Errorf("target %q of %d bytes", name, len(info))
		}
		flags, ports = binary.NativeEndian.Uint32(info[4:]), info[16:]
		first, _ = netip.AddrFromSlice(info[8:12])
		last, _ = netip.AddrFromSlice(info[12:16])
	}
	if flags&mapAddress == 0 || name == "REDIRECT" {
		first, last = netip.Addr{}, netip.Addr{}
	}
	var port, lastPort uint16
	if flags&mapPort != 0 {
		port, lastPort = binary.BigEndian.Uint16(ports), binary.BigEndian.Uint16(ports[2:])
	}
	if flags&offsetPort != 0 { // it depends on the port of the packet
		port, lastPort = 0, 0
	}
	return redirectTo(toAddress(first, last, port, lastPort))
}

// redirectTo is no redirect to the same port of this host: whoever listens there gets it.
func redirectTo(to string) (action, string, error) {
	if to == "" {
		return end, "", nil
	}
	return redirect, to, nil
}

// cString is what comes before the first zero byte.
func cString(b []byte) string {
	text, _, _ := strings.Cut(string(b), "\x00")
	return text
}
