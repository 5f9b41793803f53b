package natrules

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// A layout is where the structs of one family have what: struct ipt_entry and ip6t_entry (linux/netfilter_ipv4/ip_tables.h).
type layout struct {
	family  string
	addrLen int
	proto   int // of ipt_ip: offsets of protocol, flags and inverted flags
	flags   int
	inverse int
	targets int // of ipt_entry: offset of target_offset; next_offset is behind it
	size    int // of ipt_entry
}

var (
	layout4 = layout{"ip", 4, 80, 82, 83, 88, 112}
	layout6 = layout{"ip6", 16, 128, 131, 132, 140, 168}
)

// blobInfo is struct ipt_getinfo: where the hooks' chains begin in the entries, and how long those are in bytes.
type blobInfo struct {
	hooks       uint32
	first       [5]uint32
	count, size uint32
}

const infoSize = 84

func parseInfo(b []byte) (i blobInfo, err error) {
	if len(b) < infoSize {
		return i, fmt.Errorf("a description of %d bytes", len(b))
	}
	i.hooks = binary.NativeEndian.Uint32(b[32:])
	for k := range i.first {
		i.first[k] = binary.NativeEndian.Uint32(b[36+4*k:])
	}
	i.count, i.size = binary.NativeEndian.Uint32(b[76:]), binary.NativeEndian.Uint32(b[80:])
	return i, nil
}

// parseEntries makes a table of the entries of a kernel's nat table.
func parseEntries(l layout, info blobInfo, b []byte) (t table, err error) {
	t = table{name: "iptables " + l.family + " nat", chains: map[string][]rule{}}
	names := map[uint32]string{} // of chains, by the offset of their first rule
	for hook, name := range map[int]string{unix.NF_INET_PRE_ROUTING: "PREROUTING", unix.NF_INET_LOCAL_OUT: "OUTPUT"} {
		if info.hooks&(1<<hook) != 0 {
			names[info.first[hook]] = name
			t.bases = append(t.bases, name)
		}
	}
	for hook, name := range map[int]string{unix.NF_INET_LOCAL_IN: "INPUT", unix.NF_INET_POST_ROUTING: "POSTROUTING"} {
		if info.hooks&(1<<hook) != 0 {
			names[info.first[hook]] = name
		}
	}
	// Chains of users begin with an entry that says their name; jumps go to the entry behind it.
	var entries []entry
	for at := uint32(0); int(at) < len(b); {
		e, err := parseEntry(l, at, b[at:])
		if err != nil {
			return t, err
		}
		entries = append(entries, e)
		at = e.next
		if e.target == "ERROR" {
			names[at] = cString(e.info[:min(30, len(e.info))])
		}
	}
	chain := ""
	for _, e := range entries {
		if name, begins := names[e.at]; begins {
			chain = name
		}
		if e.target == "ERROR" {
			continue
		}
		r, err := e.rule(l, names)
		if err != nil {
			return t, fmt.Errorf("a rule of chain %q: %w", chain, err)
		}
		t.chains[chain] = append(t.chains[chain], r)
	}
	return t, nil
}

// An entry is one rule as the kernel has it.
type entry struct {
	at, next uint32
	ip       []byte // struct ipt_ip
	matches  []extension
	extension
}

// An extension is a match or a target.
type extension struct {
	target   string
	revision uint8
	info     []byte
}

func parseEntry(l layout, at uint32, b []byte) (e entry, err error) {
	if len(b) < l.size {
		return e, fmt.Errorf("an entry of %d bytes", len(b))
	}
	target, next := int(binary.NativeEndian.Uint16(b[l.targets:])), int(binary.NativeEndian.Uint16(b[l.targets+2:]))
	if target < l.size || next < target || next > len(b) {
		return e, fmt.Errorf("an entry of %d bytes with its target at %d and its end at %d", len(b), target, next)
	}
	e.at, e.next, e.ip = at, at+uint32(next), b[:l.inverse+1]
	for rest := b[l.size:target]; len(rest) > 0; {
		x, size, err := parseExtension(rest)
		if err != nil {
			return e, err
		}
		e.matches, rest = append(e.matches, x), rest[size:]
	}
	e.extension, _, err = parseExtension(b[target:next])
	return e, err
}

// parseExtension reads struct xt_entry_match or xt_entry_target: size, name, revision, and what is its own.
func parseExtension(b []byte) (x extension, size int, err error) {
	const header = 32
	if len(b) < header {
		return x, 0, fmt.Errorf("an extension of %d bytes", len(b))
	}
	if size = int(binary.NativeEndian.Uint16(b)); size < header || size > len(b) {
		return x, 0, fmt.Errorf("an extension of %d bytes in the %d left", size, len(b))
	}
	return extension{cString(b[2:31]), b[31], b[header:size]}, size, nil
}

// rule says what an entry does. names are the chains by their offsets.
func (e entry) rule(l layout, names map[uint32]string) (rule, error) {
	match, some := e.header(l)
	for _, m := range e.matches {
		more, not, err := xtMatch(m.target, m.revision, m.info)
		if err != nil {
			return nil, err
		}
		match, some = both(match, more), some || not
	}
	if len(match) == 0 {
		return nil, nil
	}
	if e.target != "" {
		does, to, err := xtTarget(e.target, e.revision, e.info, l.addrLen == 16)
		return rule{{match, some, does, to}}, err
	}
	if len(e.info) < 4 {
		return nil, fmt.Errorf("a verdict of %d bytes", len(e.info))
	}
	// Where to go on, or less than 0: -NF_DROP-1, -NF_ACCEPT-1, and XT_RETURN.
	const goBackTo, gotoFlag = -5, 2
	switch v := int32(binary.NativeEndian.Uint32(e.info)); {
	case v == goBackTo:
		return rule{{match, some, goBack, ""}}, nil
	case v < 0:
		return rule{{match, some, end, ""}}, nil
	case uint32(v) == e.next:
		return nil, nil // a rule that only counts
	case e.ip[l.flags]&gotoFlag != 0:
		return rule{{match, some, goTo, names[uint32(v)]}}, nil
	default:
		return rule{{match, some, jump, names[uint32(v)]}}, nil
	}
}

// header is what an entry's own part says of packets: protocol, address, devices.
func (e entry) header(l layout) (match []class, some bool) {
	const notIn, notOut, notFrom, notTo, fragments, notProto = 1, 2, 8, 16, 32, 64 // IPT_INV_...
	inverse, n := e.ip[l.inverse], l.addrLen
	match = everything()
	if p := binary.NativeEndian.Uint16(e.ip[l.proto:]); p != 0 {
		match = ofProtocol(uint8(p))
		if inverse&notProto != 0 {
			match, _ = otherThan(match)
		}
	}
	addrs := [4][]byte{e.ip[:n], e.ip[n : 2*n], e.ip[2*n : 3*n], e.ip[3*n : 4*n]} // source, destination, their masks
	isZero := func(b []byte) bool {
		for _, x := range b {
			if x != 0 {
				return false
			}
		}
		return true
	}
	if to, mask := addrs[1], addrs[3]; !isZero(mask) {
		first, last := make([]byte, n), make([]byte, n)
		for i := range to {
			first[i], last[i] = to[i]&mask[i], to[i]|^mask[i]
		}
		from, _ := netip.AddrFromSlice(first)
		upTo, _ := netip.AddrFromSlice(last)
		if inverse&notTo != 0 {
			some = true
		} else {
			match = both(match, toAddresses(from, upTo))
		}
	}
	devices := e.ip[4*n : 4*n+64] // names and masks
	some = some || !isZero(addrs[2]) || !isZero(devices[32:]) || inverse&(notIn|notOut|notFrom|fragments) != 0
	return match, some
}
