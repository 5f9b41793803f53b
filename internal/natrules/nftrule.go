package natrules

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// A machine runs the expressions of one rule for all packets at once: it narrows the class of those that come past each. Where the
// rule asks a map it goes on once for every element.
type machine struct {
	sets  map[string]*set
	ipv6  bool
	out   rule
	steps int
}

// thread is a machine's state.
type thread struct {
	cells map[uint32]cell
	match []class
	some  bool
}

// parseRule reads NFTA_RULE_EXPRESSIONS.
func parseRule(expressions []byte, sets map[string]*set, ipv6 bool) (rule, error) {
	var all []expression
	err := attributes(expressions, func(kind uint16, ad *netlink.AttributeDecoder) error {
		if kind != unix.NFTA_LIST_ELEM {
			return nil
		}
		e := expression{args: map[uint16][]byte{}}
		err := attributes(ad.Bytes(), func(kind uint16, ad *netlink.AttributeDecoder) error {
			switch kind {
			case unix.NFTA_EXPR_NAME:
				e.name = ad.String()
			case unix.NFTA_EXPR_DATA:
				return attributes(ad.Bytes(), func(kind uint16, ad *netlink.AttributeDecoder) error {
					e.args[kind] = ad.Bytes()
					return nil
				})
			}
			return nil
		})
		all = append(all, e)
		return err
	})
	if err != nil {
		return nil, err
	}
	m := &machine{sets: sets, ipv6: ipv6}
	err = m.run(all, thread{cells: map[uint32]cell{}, match: everything()})
	return m.out, err
}

// An expression is one step of a rule, with its attributes.
type expression struct {
	name string
	args map[uint16][]byte
}

// number is an attribute of 1 to 4 bytes, 0 where there is none.
func (e expression) number(kind uint16) (n uint32) {
	for _, b := range e.args[kind][:min(4, len(e.args[kind]))] {
		n = n<<8 | uint32(b)
	}
	return n
}

// register is a register's number in units of 4 bytes: the first four are 16 bytes each, and overlap the others.
func (e expression) register(kind uint16) uint32 {
	switch r := e.number(kind); {
	case r >= 8:
		return r - 8
	case r >= 1:
		return (r - 1) * 4
	}
	return 0
}

func (t thread) clone() thread {
	cells := make(map[uint32]cell, len(t.cells))
	for i, c := range t.cells {
		cells[i] = c
	}
	t.cells = cells
	return t
}

// narrow keeps of t what is in match, and says whether anything is.
func (t *thread) narrow(match []class, some bool) bool {
	t.match, t.some = both(t.match, match), t.some || some
	return len(t.match) > 0
}

func (m *machine) say(t thread, does action, to string) {
	m.out = append(m.out, branch{t.match, t.some, does, to})
}

// run goes on with t until it ends, or is told by a map to become several.
func (m *machine) run(rest []expression, t thread) error {
	for i, e := range rest {
		if err := m.step(); err != nil {
			return err
		}
		more := true
		switch e.name {
		case "payload", "meta", "fib":
			m.load(e, &t)
		case "immediate":
			value, v, err := parseData(e.args[unix.NFTA_IMMEDIATE_DATA])
			if err != nil {
				return err
			}
			if v != nil {
				m.verdict(t, *v)
				return nil
			}
			t.cells[e.register(unix.NFTA_IMMEDIATE_DREG)] = cell{field: constant, data: value}
		case "cmp", "range":
			match, some, err := m.compare(e, t)
			if err != nil {
				return err
			}
			more = t.narrow(match, some)
		case "lookup":
			return m.lookup(e, rest[i+1:], t)
		case "bitwise":
			if err := mask(e, t); err != nil {
				return err
			}
		case "match":
			match, some, err := xtMatch(cString(e.args[unix.NFTA_MATCH_NAME]), uint8(e.number(unix.NFTA_MATCH_REV)), e.args[unix.NFTA_MATCH_INFO])
			if err != nil {
				return err
			}
			more = t.narrow(match, some)
		case "target":
			does, to, err := xtTarget(cString(e.args[unix.NFTA_TARGET_NAME]), uint8(e.number(unix.NFTA_TARGET_REV)), e.args[unix.NFTA_TARGET_INFO], m.ipv6)
			if err != nil {
				return err
			}
			m.say(t, does, to)
			return nil
		case "nat":
			if e.number(unix.NFTA_NAT_TYPE) == unix.NFT_NAT_DNAT {
				m.nat(t, e, unix.NFTA_NAT_REG_ADDR_MIN, unix.NFTA_NAT_REG_PROTO_MIN)
			}
			return nil
		case "redir":
			m.nat(t, e, 0, unix.NFTA_REDIR_REG_PROTO_MIN)
			return nil
		case "masq", "counter", "log", "notrack", "comment", "objref":
			// Packets come past these as they were.
		case "byteorder", "hash":
			t.cells[e.register(2)] = cell{} // NFTA_BYTEORDER_DREG, NFTA_HASH_DREG
		default:
			t.some = true // a limit, a number drawn, a state: some packets come past it
			if dreg := e.register(1); e.args[1] != nil {
				t.cells[dreg] = cell{}
			}
		}
		if !more {
			return nil
		}
	}
	return nil
}

// maxRuleSteps is more than a rule takes that asks one map of maxElements, and takes a second or so.
const maxRuleSteps = 4 * maxElements

func (m *machine) step() error {
	if m.steps++; m.steps > maxRuleSteps {
		return fmt.Errorf("a rule of more than %d steps", maxRuleSteps)
	}
	return nil
}

func (m *machine) verdict(t thread, v verdict) {
	switch v.code {
	case unix.NFT_JUMP:
		m.say(t, jump, v.chain)
	case unix.NFT_GOTO:
		m.say(t, goTo, v.chain)
	case unix.NFT_RETURN:
		m.say(t, goBack, "")
	case 0, 1: // NF_DROP, NF_ACCEPT
		m.say(t, end, "")
	}
}

// nat is a redirect to what is in the registers that the expression names: an address, a port, or both.
func (m *machine) nat(t thread, e expression, addrs, ports uint16) {
	constants := func(kind uint16, size int) (first, last []byte) {
		one := func(kind uint16) []byte {
			c := t.cells[e.register(kind)]
			if kind == 0 || e.args[kind] == nil || c.field != constant || len(c.data) < size {
				return nil
			}
			return c.data[:size]
		}
		return one(kind), one(kind + 1) // ..._MIN, ..._MAX
	}
	size := 4
	if m.ipv6 || e.name == "nat" && e.number(unix.NFTA_NAT_FAMILY) == unix.NFPROTO_IPV6 {
		size = 16
	}
	var from, upTo netip.Addr
	if addrs != 0 {
		first, last := constants(addrs, size)
		from, _ = netip.AddrFromSlice(first)
		upTo, _ = netip.AddrFromSlice(last)
	}
	var p, upToPort uint16
	if first, last := constants(ports, 2); first != nil {
		p = binary.BigEndian.Uint16(first)
		if last != nil {
			upToPort = binary.BigEndian.Uint16(last)
		}
	}
	to := toAddress(from, upTo, p, upToPort)
	hidden := e.args[addrs] != nil && addrs != 0 || e.args[ports] != nil // to where the rule computes
	if does, _, _ := redirectTo(to); does == redirect || hidden {
		m.say(t, redirect, to)
		return
	}
	m.say(t, end, "")
}
