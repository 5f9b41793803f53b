package natrules

import (
	"bytes"
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"
)

// A field is what a register of nftables' virtual machine has of a packet.
type field uint8

const (
	unknown  field = iota
	constant       // bytes of the rule's own
	protocol
	port
	address     // IPv4 or IPv6, or the first bytes of it
	addressKind // what the host's routes make of the address
)

// A cell is a register, in units of 4 bytes.
type cell struct {
	field field
	v6    bool // of address
	data  []byte
	mask  []byte // of address; nil is all
}

// load puts what an expression reads of a packet into a register.
func (m *machine) load(e expression, t *thread) {
	var c cell
	dreg := e.register(1) // NFTA_PAYLOAD_DREG, NFTA_META_DREG and NFTA_FIB_DREG alike
	if e.args[1] == nil {
		return // it writes to the packet, or about it
	}
	switch e.name {
	case "meta":
		if e.number(unix.NFTA_META_KEY) == unix.NFT_META_L4PROTO {
			c.field = protocol
		}
	case "fib":
		if e.number(unix.NFTA_FIB_RESULT) == unix.NFT_FIB_RESULT_ADDRTYPE && e.number(unix.NFTA_FIB_FLAGS)&unix.NFTA_FIB_F_DADDR != 0 {
			c.field = addressKind
		}
	case "payload":
		const network, transport = 1, 2 // NFT_PAYLOAD_NETWORK_HEADER, NFT_PAYLOAD_TRANSPORT_HEADER
		base, offset, size := e.number(unix.NFTA_PAYLOAD_BASE), e.number(unix.NFTA_PAYLOAD_OFFSET), e.number(unix.NFTA_PAYLOAD_LEN)
		switch {
		case base == transport && offset == 2 && size == 2:
			c.field = port
		case base == network && offset == 9 && size == 1 && !m.ipv6, base == network && offset == 6 && size == 1 && m.ipv6:
			c.field = protocol
		case base == network && offset == 16 && size <= 4 && !m.ipv6:
			c.field = address
		case base == network && offset == 24 && size <= 16:
			c.field, c.v6 = address, true
			for i := uint32(4); i < size; i += 4 {
				t.cells[dreg+i/4] = cell{}
			}
		}
	}
	t.cells[dreg] = c
}

// mask narrows an address in a register to its first bits.
func mask(e expression, t thread) error {
	from, to := t.cells[e.register(unix.NFTA_BITWISE_SREG)], e.register(unix.NFTA_BITWISE_DREG)
	bits, _, err := parseData(e.args[unix.NFTA_BITWISE_MASK])
	if err != nil {
		return err
	}
	flip, _, err := parseData(e.args[unix.NFTA_BITWISE_XOR])
	if err != nil {
		return err
	}
	if from.field == address && from.mask == nil && len(bits) > 0 && len(bytes.Trim(flip, "\x00")) == 0 {
		from.mask = bits
		t.cells[to] = from
	} else {
		t.cells[to] = cell{}
	}
	return nil
}

// compare is which packets come past a comparison.
func (m *machine) compare(e expression, t thread) (match []class, some bool, err error) {
	var first, last []byte
	equal := e.number(unix.NFTA_CMP_OP) == unix.NFT_CMP_EQ
	c := t.cells[e.register(unix.NFTA_CMP_SREG)] // as NFTA_RANGE_SREG
	if e.name == "range" {
		if first, _, err = parseData(e.args[unix.NFTA_RANGE_FROM_DATA]); err != nil {
			return nil, false, err
		}
		if last, _, err = parseData(e.args[unix.NFTA_RANGE_TO_DATA]); err != nil {
			return nil, false, err
		}
	} else {
		if first, _, err = parseData(e.args[unix.NFTA_CMP_DATA]); err != nil {
			return nil, false, err
		}
		last = first
		full := bytes.Repeat([]byte{0xff}, len(first))
		switch e.number(unix.NFTA_CMP_OP) {
		case unix.NFT_CMP_LT, unix.NFT_CMP_GTE:
			equal = e.number(unix.NFTA_CMP_OP) == unix.NFT_CMP_GTE
			last = full
		case unix.NFT_CMP_GT, unix.NFT_CMP_LTE:
			equal = e.number(unix.NFTA_CMP_OP) == unix.NFT_CMP_LTE
			first = make([]byte, len(last))
		}
	}
	match, some = c.within(first, last)
	if equal {
		return match, some, nil
	}
	if rest, of := otherThan(match); of && !some {
		return rest, false, nil
	}
	return everything(), true, nil
}

// within is which packets have in a cell something from first to last. some says that they are not all of the classes.
func (c cell) within(first, last []byte) (match []class, some bool) {
	if len(first) != len(last) || len(first) == 0 {
		return everything(), true
	}
	if bytes.Compare(first, last) > 0 {
		return nil, false
	}
	switch c.field {
	case protocol:
		for p := int(first[0]); p <= int(last[0]); p++ {
			match = append(match, ofProtocol(uint8(p))...)
		}
		return match, false
	case port:
		if len(first) == 2 {
			return ofPorts(binary.BigEndian.Uint16(first), binary.BigEndian.Uint16(last)), false
		}
	case address:
		return c.addresses(first, last)
	case addressKind:
		const local = 2 // RTN_LOCAL (linux/rtnetlink.h)
		if len(first) == 4 && binary.NativeEndian.Uint32(first) <= local && local <= binary.NativeEndian.Uint32(last) {
			return everything(), false
		}
		return nil, false
	}
	return everything(), true
}

func (c cell) addresses(first, last []byte) ([]class, bool) {
	size := 4
	if c.v6 {
		size = 16
	}
	if len(first) > size {
		return everything(), true
	}
	// What was not read, or is masked, may be anything.
	low, high := make([]byte, size), bytes.Repeat([]byte{0xff}, size)
	copy(low, first)
	copy(high, last)
	for i := range c.mask[:min(size, len(c.mask))] {
		high[i] |= ^c.mask[i]
	}
	from, _ := netip.AddrFromSlice(low)
	upTo, _ := netip.AddrFromSlice(high)
	return toAddresses(from, upTo), false
}
