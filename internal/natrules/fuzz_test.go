package natrules

import (
	"encoding/binary"
	"testing"

	"github.com/google/nftables/expr"
	"github.com/google/nftables/xt"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// nested is attributes of kinds and values in turn.
func nested(f *testing.F, kinds ...any) []byte {
	f.Helper()
	var all []netlink.Attribute
	for i := 0; i < len(kinds); i += 2 {
		all = append(all, netlink.Attribute{Type: uint16(kinds[i].(int)), Data: kinds[i+1].([]byte)})
	}
	b, err := netlink.MarshalAttributes(all)
	if err != nil {
		f.Fatal(err)
	}
	return b
}

func FuzzRule(f *testing.F) {
	encode := func(all ...expr.Any) []byte {
		var out []byte
		for _, e := range all {
			b, err := expr.Marshal(unix.NFPROTO_IPV4, e)
			if err != nil {
				f.Fatal(err)
			}
			out = append(out, nested(f, unix.NFTA_LIST_ELEM, b)...)
		}
		return out
	}
	dport := &expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2}
	f.Add(encode(&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{6}},
		dport, &expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: []byte{0, 80}},
		&expr.Immediate{Register: 1, Data: []byte{10, 0, 0, 1}}, &expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: 1}), false)
	f.Add(encode(&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 16, Len: 4},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: []byte{255, 255, 0, 0}, Xor: make([]byte, 4)},
		&expr.Range{Op: expr.CmpOpEq, Register: 1, FromData: []byte{10, 0, 0, 0}, ToData: []byte{10, 1, 0, 0}}, &expr.Redir{RegisterProtoMin: 2}), false)
	f.Add(encode(dport, &expr.Lookup{SourceRegister: 1, SetName: "m", DestRegister: 0, IsDestRegSet: true}), true)
	f.Add(encode(&expr.Match{Name: "tcp", Info: &xt.Tcp{DstPorts: [2]uint16{1, 9}}},
		&expr.Target{Name: "DNAT", Rev: 2, Info: &xt.NatRange2{NatRange: xt.NatRange{Flags: 3, MinPort: 1}}}), false)
	sets := map[string]*set{"m": {keyLen: 2, elements: []element{
		{key: []byte{0, 80}, last: []byte{0, 90}, verdict: &verdict{unix.NFT_JUMP, "c"}},
		{data: []byte{10, 0, 0, 1, 0, 80, 0, 0}},
		{key: []byte{1}, last: []byte{2, 3}, data: []byte{1}},
	}}}
	f.Fuzz(func(t *testing.T, expressions []byte, ipv6 bool) {
		r, err := parseRule(expressions, sets, ipv6)
		if err != nil {
			return
		}
		check(t, table{name: "t", bases: []string{"c"}, chains: map[string][]rule{"c": {r, r}}})
	})
}

// check follows a table, and looks at what comes of it.
func check(t *testing.T, of table) {
	found, _ := of.redirects()
	for _, r := range found {
		if r.Ports.First == 0 || r.Ports.Last < r.Ports.First || r.Proto == 0 {
			t.Errorf("redirect of %+v", r)
		}
	}
}

func FuzzElements(f *testing.F) {
	value := func(b ...byte) []byte { return nested(f, unix.NFTA_DATA_VALUE, b) }
	jump := nested(f, unix.NFTA_DATA_VERDICT, nested(f, unix.NFTA_VERDICT_CODE, []byte{255, 255, 255, 253}, unix.NFTA_VERDICT_CHAIN, []byte("c\x00")))
	f.Add(nested(f, unix.NFTA_SET_ELEM_LIST_ELEMENTS, append(
		nested(f, unix.NFTA_LIST_ELEM, nested(f, unix.NFTA_SET_ELEM_KEY, value(0, 80), unix.NFTA_SET_ELEM_DATA, jump)),
		nested(f, unix.NFTA_LIST_ELEM, nested(f, unix.NFTA_SET_ELEM_KEY, value(0, 90), unix.NFTA_SET_ELEM_FLAGS, []byte{0, 0, 0, 1}))...)), true)
	f.Add(nested(f, unix.NFTA_SET_ELEM_LIST_ELEMENTS,
		nested(f, unix.NFTA_LIST_ELEM, nested(f, unix.NFTA_SET_ELEM_KEY, value(1, 2, 3, 4, 6, 0, 0, 0, 0, 80, 0, 0), attrKeyEnd, value(1, 2, 3, 5, 6, 0, 0, 0, 0, 80, 0, 0)))), false)
	f.Fuzz(func(t *testing.T, message []byte, intervals bool) {
		var raw []rawElement
		if parseElements(message, func(e element, flags uint32) { raw = append(raw, rawElement{e, flags}) }) != nil {
			return
		}
		s := &set{intervals: intervals, keyLen: 12}
		s.settle(raw)
		threads := thread{cells: map[uint32]cell{0: {field: address}, 1: {field: protocol}, 2: {field: port}}}
		match, _ := threads.elements(s, 0)
		for _, c := range match {
			if c.last < c.first || c.to.upTo.Less(c.to.from) {
				t.Errorf("class %+v", c)
			}
		}
	})
}

func FuzzMessages(f *testing.F) {
	f.Add(nested(f, unix.NFTA_CHAIN_TABLE, []byte("nat\x00"), unix.NFTA_CHAIN_NAME, []byte("pre\x00"), unix.NFTA_CHAIN_TYPE, []byte("nat\x00"),
		unix.NFTA_CHAIN_HOOK, nested(f, unix.NFTA_HOOK_HOOKNUM, []byte{0, 0, 0, 0})))
	f.Add(nested(f, unix.NFTA_SET_NAME, []byte("s\x00"), unix.NFTA_SET_FLAGS, []byte{0, 0, 0, 4}, unix.NFTA_SET_KEY_LEN, []byte{0, 0, 0, 2}))
	f.Add(nested(f, unix.NFTA_RULE_TABLE, []byte("nat\x00"), unix.NFTA_RULE_CHAIN, []byte("pre\x00"), unix.NFTA_RULE_EXPRESSIONS, []byte{}))
	f.Fuzz(func(t *testing.T, m []byte) {
		if _, _, base, err := parseChain(m); err != nil && base {
			t.Error("a base chain, and an error")
		}
		_, _, _ = parseGeneration(m)
		_, _, _ = parseSet(m)
		_, _, _ = parseRuleMessage(m)
	})
}

func FuzzEntries(f *testing.F) {
	for _, l := range []layout{layout4, layout6} {
		extend := func(name string, revision byte, info []byte) []byte {
			b := make([]byte, 32, 32+len(info))
			binary.NativeEndian.PutUint16(b, uint16(32+len(info)))
			copy(b[2:], name)
			b[31] = revision
			return append(b, info...)
		}
		entry := func(match, target []byte) []byte {
			b := make([]byte, l.size)
			b[l.proto] = 6
			binary.NativeEndian.PutUint16(b[l.targets:], uint16(l.size+len(match)))
			binary.NativeEndian.PutUint16(b[l.targets+2:], uint16(l.size+len(match)+len(target)))
			return append(append(b, match...), target...)
		}
		tcp := make([]byte, 16)
		copy(tcp[2:], []byte{255, 255, 80, 0, 90, 0})
		to := make([]byte, 40)
		to[0] = 3
		b := entry(extend("tcp", 0, tcp), extend("DNAT", 2, to))
		b = append(b, entry(nil, extend("", 0, []byte{0, 0, 0, 0, 0, 0, 0, 0}))...)
		b = append(b, entry(nil, extend("ERROR", 0, []byte("chain\x00\x00\x00")))...)
		f.Add(b, l.addrLen == 16)
	}
	f.Fuzz(func(t *testing.T, b []byte, ipv6 bool) {
		l := layout4
		if ipv6 {
			l = layout6
		}
		of, err := parseEntries(l, blobInfo{hooks: 1 | 8}, b)
		if err == nil {
			check(t, of)
		}
	})
}
