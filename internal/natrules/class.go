package natrules

import (
	"net/netip"
	"slices"

	"github.com/portd/portd/internal/registry"
)

// A class is packets: of one protocol, to some ports, and to some addresses.
type class struct {
	proto       registry.Protocol
	first, last uint16
	to          addresses
}

// addresses are those from one to another; none of both is every address.
type addresses struct{ from, upTo netip.Addr }

func (a addresses) all() bool { return !a.from.IsValid() }

// and is what a has in common with b.
func (a addresses) and(b addresses) (both addresses, some bool) {
	switch {
	case a.all():
		return b, true
	case b.all():
		return a, true
	case a.from.Is4() != b.from.Is4():
		return addresses{}, false
	}
	if a.from.Less(b.from) {
		a.from = b.from
	}
	if b.upTo.Less(a.upTo) {
		a.upTo = b.upTo
	}
	return a, !a.upTo.Less(a.from)
}

// String is an address, a prefix, or the first and the last; empty for every address.
func (a addresses) String() string {
	switch {
	case a.all():
		return ""
	case a.from == a.upTo:
		return a.from.String()
	}
	for bits := range a.from.BitLen() {
		if p := netip.PrefixFrom(a.from, bits); p.Masked() == p && lastOf(p) == a.upTo {
			return p.String()
		}
	}
	return a.from.String() + "-" + a.upTo.String()
}

// everything is one class for each protocol that has ports.
func everything() (all []class) {
	for _, p := range []registry.Protocol{registry.TCP, registry.UDP, registry.SCTP, registry.DCCP, registry.UDPLite} {
		all = append(all, class{proto: p, last: 65535})
	}
	return all
}

func (c class) and(o class) (both class, some bool) {
	c.first, c.last = max(c.first, o.first), min(c.last, o.last)
	c.to, some = c.to.and(o.to)
	return c, some && c.proto == o.proto && c.first <= c.last
}

// both is what is in one of the xs and in one of the ys.
func both(xs, ys []class) (out []class) {
	for _, x := range xs {
		for _, y := range ys {
			if c, some := x.and(y); some {
				out = append(out, c)
			}
		}
	}
	return out
}

// without is what is in one of the xs and in none of the ys. Where that is no list of classes, for a y has an address only of
// what an x has, or it takes too long to say, exact is false, and out has too much.
func without(xs, ys []class) (out []class, exact bool) {
	out, exact = slices.Clone(xs), true
	steps := 0
	for _, y := range ys {
		if steps += len(out); steps > maxSteps {
			return slices.Clone(xs), false
		}
		var left []class
		for _, x := range out {
			cut, some := x.and(y)
			if some && cut.to != x.to {
				exact, some = false, false
			}
			if !some {
				left = append(left, x)
				continue
			}
			if x.first < cut.first {
				left = append(left, class{x.proto, x.first, cut.first - 1, x.to})
			}
			if cut.last < x.last {
				left = append(left, class{x.proto, cut.last + 1, x.last, x.to})
			}
		}
		out = left
	}
	return out, exact
}

// ofPorts is everything to some ports.
func ofPorts(first, last uint16) []class {
	all := everything()
	for i := range all {
		all[i].first, all[i].last = first, last
	}
	return all
}

// ofProtocol is everything of one protocol; nothing, where that has no ports.
func ofProtocol(p uint8) []class {
	return slices.DeleteFunc(everything(), func(c class) bool { return c.proto != registry.Protocol(p) })
}

// toAddresses is everything to some addresses.
func toAddresses(from, upTo netip.Addr) []class {
	all := everything()
	for i := range all {
		all[i].to = addresses{from, upTo}
	}
	return all
}

// otherThan is everything that is in none of the classes. of is false where no list of classes says that.
func otherThan(not []class) (rest []class, of bool) { return without(everything(), not) }

func lastOf(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := range b {
		for bit := range 8 {
			if i*8+bit >= p.Bits() {
				b[i] |= 0x80 >> bit
			}
		}
	}
	a, _ := netip.AddrFromSlice(b) // 4 or 16 bytes: cannot fail
	return a
}
