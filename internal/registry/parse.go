package registry

import (
	"net/netip"
	"strconv"
	"strings"
)

// Spelling. If what stands before the first slash is a protocol word, the rest is a port, an address with one, or a
// service name; else if what stands after the last slash is one, likewise; else the whole is a service name, for those
// may hold slashes themselves (cl/1). "tcp 8080" is "tcp/8080". A protocol word may end in 4 or 6 for one family.

// ParseEndpoint reads one endpoint with exact ports: "tcp/8080", "8080/tcp", "udp/127.0.0.1:53", "tcp6/80",
// "tcp/[::1]:8000-8009". The error is an *InvalidError.
func ParseEndpoint(s string) (Endpoint, error) {
	spec, err := ParseSpec(s)
	if err != nil {
		return Endpoint{}, err
	}
	switch {
	case len(spec.Protos) > 1:
		return Endpoint{}, invalid("endpoint", "%q names several protocols; one is wanted", s)
	case spec.Any != nil || spec.Service != "":
		return Endpoint{}, invalid("endpoint", "%q has no port number; one from 1 to 65535 is wanted", s)
	}
	return spec.endpoints()[0].ports(spec.Exact), nil
}

// ParseSpec reads what may be asked for: an endpoint as ParseEndpoint has it, also with several protocols
// ("tcp,udp/53"), with the word any for a port ("tcp/any", "udp/127.0.0.1:any"), or with a service name
// ("tcp/https"); or a path ("unix/run/app.sock"). The error is an *InvalidError.
func ParseSpec(s string) (EndpointSpec, error) {
	if rest, is := isPath(s); is {
		return pathSpec(rest)
	}
	protos, rest := SplitProtocol(s)
	if protos == "" {
		if _, err := parsePorts(rest); err == nil {
			return EndpointSpec{}, invalid("protocol", "%q has none; write tcp/%s or udp/%s (known are %s)", s, rest, rest, protocolNames())
		}
		if areProtocols(rest) {
			return EndpointSpec{}, invalid("endpoint", "%q has no port; write %s/8080, or %s/any for one of portd's choice", s, rest, rest)
		}
		return EndpointSpec{}, invalid("endpoint", "%q names no protocol; write it like tcp/8080, udp/127.0.0.1:53 or tcp/https (known are %s)", s, protocolNames())
	}
	var spec EndpointSpec
	family, err := spec.parseProtocols(protos)
	if err != nil {
		return EndpointSpec{}, err
	}
	if at := strings.LastIndexByte(rest, '@'); at >= 0 {
		rest, spec.Netns = rest[:at], rest[at+1:]
		if spec.Netns == "" || !validNetns(spec.Netns) {
			return EndpointSpec{}, invalid("netns", "%q is not the name of a network namespace", spec.Netns)
		}
	}
	addr, ports, err := splitAddr(rest)
	if err != nil {
		return EndpointSpec{}, err
	}
	if err := spec.parseAddr(addr, family); err != nil {
		return EndpointSpec{}, err
	}
	switch {
	case ports == "any":
		spec.Any = &AnyPorts{}
	case isServiceName(ports):
		spec.Service = ports
	default:
		spec.Exact, err = parsePorts(ports)
	}
	return spec, err
}

// SplitProtocol parts a text into its protocol words, separated by commas as they stand there, and the rest. They are
// empty where the text has none, and is a service name, a port or a reservation's name instead.
func SplitProtocol(s string) (protos, rest string) {
	if rest, is := isPath(s); is {
		return Unix.String(), rest
	}
	s = strings.TrimSpace(s)
	if before, after, ok := strings.Cut(s, "/"); ok && areProtocols(before) {
		return before, after
	}
	if i := strings.LastIndexByte(s, '/'); i >= 0 && areProtocols(s[i+1:]) {
		return s[i+1:], s[:i]
	}
	if f := strings.Fields(s); len(f) == 2 && areProtocols(f[0]) {
		return f[0], f[1]
	}
	return "", s
}

// ParseProtocol reads a protocol word without a family: "tcp".
func ParseProtocol(s string) (Protocol, error) {
	for _, k := range protocols {
		if strings.EqualFold(k.name, s) {
			return k.p, nil
		}
	}
	return 0, invalid("protocol", "%q is not one; known are %s", s, protocolNames())
}

// splitFamily parts "tcp6" into "tcp" and '6'; the family is 0 where none is said.
func splitFamily(word string) (string, byte) {
	if n := len(word) - 1; n > 0 && (word[n] == '4' || word[n] == '6') {
		return word[:n], word[n]
	}
	return word, 0
}

func areProtocols(list string) bool {
	for w := range strings.SplitSeq(list, ",") {
		name, _ := splitFamily(w)
		if _, err := ParseProtocol(name); err != nil {
			return false
		}
	}
	return true
}

func (spec *EndpointSpec) parseProtocols(list string) (family byte, err error) {
	for i, w := range strings.Split(list, ",") {
		name, f := splitFamily(w)
		p, err := ParseProtocol(name)
		switch {
		case err != nil:
			return 0, err
		case i > 0 && f != family:
			return 0, invalid("protocol", "%q mixes address families; write them alike, as in tcp4,udp4", list)
		}
		family = f
		for _, q := range spec.Protos {
			if p == q {
				return 0, invalid("protocol", "%q names %v twice", list, p)
			}
		}
		spec.Protos = append(spec.Protos, p)
	}
	return family, nil
}

// splitAddr parts "127.0.0.1:80", "[::1]%eth0:80", "*%eth0:80" and "80" into address and ports.
func splitAddr(s string) (addr, ports string, err error) {
	if !strings.HasPrefix(s, "[") {
		i := strings.LastIndexByte(s, ':')
		if i < 0 {
			return "", s, nil
		}
		if strings.IndexByte(s[:i], ':') >= 0 {
			return "", "", invalid("address", "%q: an IPv6 address stands in brackets, as in [::1]:80", s)
		}
		return s[:i], s[i+1:], nil
	}
	end := strings.IndexByte(s, ']')
	if end < 0 {
		return "", "", invalid("address", "%q lacks the closing bracket", s)
	}
	i := strings.IndexByte(s[end:], ':')
	if i < 0 {
		return "", "", invalid("ports", "%q has no port; write it like [::1]:80", s)
	}
	return s[:end+i], s[end+i+1:], nil
}

func (spec *EndpointSpec) parseAddr(s string, family byte) error {
	v6 := strings.HasPrefix(s, "[")
	if v6 {
		// The zone stands inside the brackets, the device after them.
		end := strings.IndexByte(s, ']')
		if s[end+1:] != "" && s[end+1] != '%' {
			return invalid("address", "%q: after the bracket comes a device (%%eth0) or a colon and the port", s)
		}
		spec.Device = strings.TrimPrefix(s[end+1:], "%")
		if s[end+1:] == "%" || !validDevice(spec.Device) {
			return invalid("device", "%q is not the name of a network device", s[end+1:])
		}
		s = s[1:end]
	} else if addr, dev, ok := strings.Cut(s, "%"); ok {
		if dev == "" || !validDevice(dev) {
			return invalid("device", "%q is not the name of a network device", dev)
		}
		s, spec.Device = addr, dev
	}
	if (s == "" || s == "*") && !v6 {
		switch family {
		case '4':
			spec.Addrs = []netip.Addr{netip.IPv4Unspecified()}
		case '6':
			spec.Addrs, spec.V6Only = []netip.Addr{AnyAddr}, true
		}
		return nil
	}
	addr, err := netip.ParseAddr(s)
	if err != nil || (addr.Is6() != v6) {
		return invalid("address", "%q is not an IP address; write 192.0.2.1, [2001:db8::1] or nothing for every address", s)
	}
	if addr.Is4In6() && addr.Zone() != "" {
		return invalid("address", "%q: an IPv4 address has no zone", s)
	}
	addr = addr.Unmap()
	if family == '4' && !addr.Is4() || family == '6' && addr.Is4() {
		return invalid("address", "%q is not an IPv%c address", s, family)
	}
	if addr == AnyAddr && family != '6' {
		return nil // [::] is dual-stack, as it is in the kernel
	}
	spec.Addrs, spec.V6Only = []netip.Addr{addr}, addr == AnyAddr
	return nil
}

// isServiceName tells a service name from ports: it has a letter (RFC 6335 section 5.1).
func isServiceName(s string) bool {
	return strings.ContainsFunc(s, func(r rune) bool { return 'a' <= r|0x20 && r|0x20 <= 'z' }) && plain(s)
}

// plain says that s is printable ASCII.
func plain(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r >= 0x7f })
}

func parsePorts(s string) (PortRange, error) {
	first, last, isRange := strings.Cut(s, "-")
	if !isRange {
		last = first
	}
	f, err1 := parsePort(first)
	l, err2 := parsePort(last)
	switch {
	case err1 != nil:
		return PortRange{}, err1
	case err2 != nil:
		return PortRange{}, err2
	case l < f:
		return PortRange{}, invalid("ports", "%q runs backwards; write %d-%d", s, l, f)
	}
	return PortRange{f, l}, nil
}

func parsePort(s string) (uint16, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n == 0 || s[0] == '+' {
		return 0, invalid("ports", "%q is not a port; allowed are 1 to 65535, a range like 8000-8009, or any", s)
	}
	return uint16(n), nil
}

// ValidateName says whether s may name a reservation: [a-z][a-z0-9._-]{0,62}, neither like an id nor a protocol word.
func ValidateName(s string) error {
	const allowed = "allowed are 1 to 63 of a-z, 0-9, '.', '_' and '-', a letter first"
	if s == "" || len(s) > 63 || s[0] < 'a' || s[0] > 'z' {
		return invalid("name", "%q is not a name; %s", s, allowed)
	}
	for _, r := range s {
		if (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '.' && r != '_' && r != '-' {
			return invalid("name", "%q is not a name; %s", s, allowed)
		}
	}
	if strings.HasPrefix(s, "rsv_") || strings.HasPrefix(s, "lse_") {
		return invalid("name", "%q looks like an id of portd's; choose another", s)
	}
	if areProtocols(s) || s == "any" || s == "unix" {
		return invalid("name", "%q is a word of portd's; choose another", s)
	}
	return nil
}

func (e Endpoint) ports(r PortRange) Endpoint {
	e.First, e.Last = r.First, r.Last
	return e
}

// endpoints are the protocols on the addresses of a spec, without their ports.
func (spec EndpointSpec) endpoints() []Endpoint {
	if spec.Path != "" {
		return []Endpoint{{Netns: HostNetns, Proto: Unix, Path: spec.Path}}
	}
	addrs := spec.Addrs
	if len(addrs) == 0 {
		addrs = []netip.Addr{AnyAddr}
	}
	var eps []Endpoint
	for _, p := range spec.Protos {
		for _, a := range addrs {
			eps = append(eps, Endpoint{Netns: spec.Netns, Proto: p, Addr: a, V6Only: spec.V6Only && a == AnyAddr, Device: spec.Device})
		}
	}
	return eps
}
