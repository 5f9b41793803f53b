package registry

import (
	"cmp"
	"fmt"
	"log/slog"
	"net/netip"
	"strconv"
	"strings"
)

// Protocol is a transport protocol by its IP protocol number (IANA protocol-numbers). Each has a port space of its own.
type Protocol uint8

const (
	TCP     Protocol = 6
	UDP     Protocol = 17
	DCCP    Protocol = 33
	SCTP    Protocol = 132
	UDPLite Protocol = 136
	// Unix is no transport protocol: its endpoints are paths (unix(7)), and have no port. 255 is reserved by IANA.
	Unix Protocol = 255
)

var protocols = []struct {
	p    Protocol
	name string
}{{TCP, "tcp"}, {UDP, "udp"}, {SCTP, "sctp"}, {DCCP, "dccp"}, {UDPLite, "udplite"}}

func (p Protocol) String() string {
	if p == Unix {
		return "unix"
	}
	for _, k := range protocols {
		if k.p == p {
			return k.name
		}
	}
	return fmt.Sprintf("protocol(%d)", uint8(p))
}

// known says whether p is a transport protocol of ours, with ports.
func (p Protocol) known() bool {
	for _, k := range protocols {
		if k.p == p {
			return true
		}
	}
	return false
}

// Streams says whether sockets of p listen and accept connections.
func (p Protocol) Streams() bool { return p == TCP || p == SCTP || p == DCCP || p == Unix }

// HostNetns is the name of the network namespace that portd itself lives in.
const HostNetns = "host"

// An Endpoint is what a socket is bound to, or a contiguous run of such: one address (or all) of one network namespace,
// one protocol, the ports First to Last. It is comparable, and prints as ParseEndpoint reads it.
type Endpoint struct {
	Netns string // in a request empty means the caller's own; HostNetns is portd's
	Proto Protocol
	// Addr is never the zero Addr. IPv6 unspecified without V6Only is every address of both families (one dual-stack
	// socket); IPv4-mapped addresses are unmapped, which the kernel treats alike (docs/KERNEL.md).
	Addr        netip.Addr
	V6Only      bool // only ever set where Addr is the IPv6 unspecified address
	Device      string
	First, Last uint16
	// Path is a Unix endpoint's, absolute and clean; such a one has Netns HostNetns and nothing else. Portd's own mount namespace is meant.
	Path string
}

// AnyAddr is the dual-stack wildcard: every address of both families.
var AnyAddr = netip.IPv6Unspecified()

// Ports is how many ports e spans.
func (e Endpoint) Ports() int { return int(e.Last) - int(e.First) + 1 }

// At is e narrowed to one of its ports.
func (e Endpoint) At(port uint16) Endpoint {
	e.First, e.Last = port, port
	return e
}

// Dual says whether e is every address of both families.
func (e Endpoint) Dual() bool { return e.Addr == AnyAddr && !e.V6Only }

// Overlaps says whether the kernel would let e and o be bound exclusively at the same time; it would not where this is
// true. Exclusive is the only way in which portd holds.
func (e Endpoint) Overlaps(o Endpoint) bool {
	if e.Proto == Unix {
		return o.Proto == Unix && e.Path == o.Path
	}
	return e.Netns == o.Netns && e.Proto == o.Proto &&
		e.First <= o.Last && o.First <= e.Last &&
		(e.device() == "" || o.device() == "" || e.device() == o.device()) &&
		e.addrOverlaps(o)
}

// device is what the kernel binds the socket to: a link-local address binds it to the device of its zone (ipv6(7)).
func (e Endpoint) device() string { return cmp.Or(e.Device, e.Addr.Zone()) }

func (e Endpoint) addrOverlaps(o Endpoint) bool {
	switch {
	case e.Dual() || o.Dual():
		return true
	case e.Addr.Is4() != o.Addr.Is4():
		return false
	case e.Addr.IsUnspecified() || o.Addr.IsUnspecified():
		return true
	default:
		return e.Addr.WithZone("") == o.Addr.WithZone("")
	}
}

// String spells e as ParseEndpoint reads it:
//
//	tcp/8080  tcp4/8080  tcp6/8080  udp/127.0.0.1:53  tcp/[fe80::1%eth0]:8000-8009  tcp/*%eth1:8080  tcp/8080@blue  unix/run/app.sock
//
// The device stands after the address and a percent sign, as ss(8) prints it; a namespace other than the host's after an @.
func (e Endpoint) String() string {
	if e.Proto == Unix {
		return e.Proto.String() + e.Path
	}
	var b strings.Builder
	b.WriteString(e.Proto.String())
	addr := ""
	switch {
	case e.Dual():
	case e.Addr == netip.IPv4Unspecified():
		b.WriteByte('4')
	case e.Addr == AnyAddr:
		b.WriteByte('6')
	case e.Addr.Is4():
		addr = e.Addr.String()
	default:
		addr = "[" + e.Addr.String() + "]"
	}
	b.WriteByte('/')
	if e.Device != "" {
		if addr == "" {
			addr = "*"
		}
		addr += "%" + e.Device
	}
	if addr != "" {
		b.WriteString(addr)
		b.WriteByte(':')
	}
	b.WriteString(strconv.Itoa(int(e.First)))
	if e.Last != e.First {
		b.WriteByte('-')
		b.WriteString(strconv.Itoa(int(e.Last)))
	}
	if e.Netns != "" && e.Netns != HostNetns {
		b.WriteByte('@')
		b.WriteString(e.Netns)
	}
	return b.String()
}

// LogValue has logs spell e as everything else does.
func (e Endpoint) LogValue() slog.Value { return slog.StringValue(e.String()) }

// validate says what is wrong with an endpoint that did not come from the parser.
func (e Endpoint) validate() error {
	if e.Proto == Unix {
		return checkPath(e.Path)
	}
	switch {
	case e.Path != "":
		return invalid("path", "is for unix endpoints, not for %v", e.Proto)
	case !e.Addr.IsValid():
		return invalid("address", "is missing")
	case e.Addr.Is4In6():
		return invalid("address", "%v is IPv4-mapped; write %v", e.Addr, e.Addr.Unmap())
	case e.Addr.IsMulticast():
		return invalid("address", "%v is a multicast address; a port is reserved on a unicast address or on all", e.Addr)
	case e.Addr.Zone() != "" && !e.Addr.IsLinkLocalUnicast():
		return invalid("address", "%v has a zone; only a link-local address does", e.Addr)
	case e.Addr.Is6() && e.Addr.IsLinkLocalUnicast() && e.Addr.Zone() == "":
		return invalid("address", "%v is on every device; say which, as in [%v%%eth0]", e.Addr, e.Addr)
	case !validDevice(e.Addr.Zone()):
		return invalid("address", "%q is not the name of a network device", e.Addr.Zone())
	case e.Device != "" && e.Addr.Zone() != "" && e.Device != e.Addr.Zone():
		return invalid("device", "%s and the zone of %v differ", e.Device, e.Addr)
	case e.V6Only && e.Addr != AnyAddr:
		return invalid("v6_only", "is for the address :: only, not %v", e.Addr)
	case e.First == 0:
		return invalid("ports", "0 is not a port; allowed are 1 to 65535, or any")
	case e.Last < e.First:
		return invalid("ports", "%d-%d runs backwards", e.First, e.Last)
	case !validDevice(e.Device):
		return invalid("device", "%q is not a device name (dev_valid_name in the kernel: 1 to 15 bytes without blank, slash, colon)", e.Device)
	case !validNetns(e.Netns):
		return invalid("netns", "%q is not the name of a network namespace", e.Netns)
	}
	if !e.Proto.known() {
		return invalid("protocol", "%d is not a protocol that has ports; known are %s", uint8(e.Proto), protocolNames())
	}
	return nil
}

func validDevice(s string) bool {
	return len(s) <= 15 && s != "." && s != ".." && !strings.ContainsFunc(s, func(r rune) bool {
		return r <= ' ' || r == '/' || r == ':' || r == '%' || r == '@' || r == '[' || r == ']' || r >= 0x7f
	})
}

func validNetns(s string) bool {
	return len(s) <= 64 && s != "." && s != ".." && !strings.ContainsFunc(s, func(r rune) bool {
		return r <= ' ' || r == '/' || r == '@' || r == ':' || r >= 0x7f
	})
}

func protocolNames() string {
	names := make([]string, len(protocols))
	for i, k := range protocols {
		names[i] = k.name
	}
	return strings.Join(names, ", ")
}
