package natrules

import (
	"encoding/binary"
	"testing"
	"time"

	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// expressions is NFTA_RULE_EXPRESSIONS of a rule.
func expressions(t *testing.T, all ...expr.Any) (out []byte) {
	t.Helper()
	for _, e := range all {
		b, err := expr.Marshal(unix.NFPROTO_IPV4, e)
		if err != nil {
			t.Fatal(err)
		}
		b, err = netlink.MarshalAttributes([]netlink.Attribute{{Type: unix.NFTA_LIST_ELEM, Data: b}})
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, b...)
	}
	return out
}

// Who has a network namespace may put rules into it that nobody would make for packets. They do not keep portd at work for long.
func TestRulesThatAreHardToFollow(t *testing.T) {
	const much = 20 * time.Second // without bounds it takes minutes
	odd, verdicts := &set{keyLen: 2}, &set{keyLen: 2}
	for p := 1; p < 1<<16; p += 2 {
		key := binary.BigEndian.AppendUint16(nil, uint16(p))
		odd.elements = append(odd.elements, element{key: key, last: key})
		verdicts.elements = append(verdicts.elements, element{key: key, last: key, data: key})
	}
	sets := map[string]*set{"odd": odd, "map": verdicts}
	dport := &expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2}
	ask := &expr.Lookup{SourceRegister: 1, SetName: "map", DestRegister: 2, IsDestRegSet: true}
	for name, text := range map[string][]byte{
		"inverted set": expressions(t, dport, &expr.Lookup{SourceRegister: 1, SetName: "odd", Invert: true}, &expr.Redir{}),
		"set":          expressions(t, dport, &expr.Lookup{SourceRegister: 1, SetName: "odd"}, &expr.Verdict{Kind: expr.VerdictReturn}),
		"map of maps":  expressions(t, dport, ask, ask, ask, &expr.Redir{}),
	} {
		t.Run(name, func(t *testing.T) {
			done := make(chan struct{})
			go func() {
				defer close(done)
				r, err := parseRule(text, sets, false)
				if err != nil {
					return
				}
				table{name: "t", bases: []string{"c"}, chains: map[string][]rule{"c": {r}}}.redirects()
			}()
			select {
			case <-done:
			case <-time.After(much):
				t.Fatal("it is still at work")
			}
		})
	}
}
