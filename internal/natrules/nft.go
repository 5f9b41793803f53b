package natrules

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// errChanged says that rules were changed while they were read.
var errChanged = errors.New("the rules change all the time")

// nftables reads all of nftables' rules and follows them. Where somebody changes them meanwhile it begins anew: what it returns is
// of one moment, whose number of changes is gen.
func (r *Reader) nftables(ctx context.Context, gen uint32) (found []target, cut bool, of uint32, err error) {
	for range 10 {
		if err := ctx.Err(); err != nil {
			return nil, false, 0, err
		}
		found, cut, err = r.nftablesOnce(ctx)
		if err != nil && !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.ENOENT) { // ENOENT: a set is gone
			return nil, false, 0, err
		}
		now, _, genErr := r.gens.ask()
		if genErr != nil || err == nil && now == gen {
			return found, cut, now, genErr
		}
		gen = now
	}
	return nil, false, 0, errChanged
}

// A place is where nftables keeps a chain or a set: names are of a table, and tables of a family.
type place struct {
	family uint8
	table  string
}

func (r *Reader) nftablesOnce(ctx context.Context) (found []target, cut bool, err error) {
	tables, err := r.bases()
	if err != nil || len(tables) == 0 {
		return nil, false, err // nothing is redirected without a chain that the kernel asks
	}
	raw := map[place][]rawRule{}
	err = r.each(unix.NFT_MSG_GETRULE, unix.AF_UNSPEC, nil, func(family uint8, m []byte) error {
		rule, table, err := parseRuleMessage(m)
		if at := (place{family, table}); tables[at] != nil {
			raw[at] = append(raw[at], rule)
		}
		return err
	})
	if err != nil {
		return nil, false, err
	}
	for at, t := range tables {
		sets, err := r.sets(at, raw[at])
		if err != nil {
			return nil, false, err
		}
		for _, rr := range raw[at] {
			if err := ctx.Err(); err != nil {
				return nil, false, fmt.Errorf("following the rules of %s: %w", t.name, err)
			}
			rule, err := parseRule(rr.expressions, sets, at.family == unix.NFPROTO_IPV6)
			if err != nil {
				return nil, false, fmt.Errorf("a rule of %s %s: %w", t.name, rr.chain, err)
			}
			t.chains[rr.chain] = append(t.chains[rr.chain], rule)
		}
		more, wasCut := t.redirects()
		found, cut = append(found, more...), cut || wasCut
	}
	slices.SortStableFunc(found, inOrder)
	return found, cut, nil
}

// familyNames are those of nft(8) for families in which there is NAT.
var familyNames = map[uint8]string{unix.NFPROTO_INET: "inet", unix.NFPROTO_IPV4: "ip", unix.NFPROTO_IPV6: "ip6"}

// bases are the tables that have chains which the kernel asks for a connection's destination.
func (r *Reader) bases() (map[place]*table, error) {
	tables := map[place]*table{}
	err := r.each(unix.NFT_MSG_GETCHAIN, unix.AF_UNSPEC, nil, func(family uint8, m []byte) error {
		name, of, ok, err := parseChain(m)
		if err != nil || !ok || familyNames[family] == "" {
			return err
		}
		at := place{family, of}
		if tables[at] == nil {
			tables[at] = &table{name: "nftables " + familyNames[family] + " " + of, chains: map[string][]rule{}}
		}
		tables[at].bases = append(tables[at].bases, name)
		return nil
	})
	return tables, err
}

// parseChain says which chain a message is about. base is true of one where destinations are translated.
func parseChain(m []byte) (name, table string, base bool, err error) {
	kind, hook := "", uint32(unix.NF_INET_LOCAL_IN)
	err = attributes(m, func(attr uint16, ad *netlink.AttributeDecoder) error {
		switch attr {
		case unix.NFTA_CHAIN_TABLE:
			table = ad.String()
		case unix.NFTA_CHAIN_NAME:
			name = ad.String()
		case unix.NFTA_CHAIN_TYPE:
			kind = ad.String()
		case unix.NFTA_CHAIN_HOOK:
			return attributes(ad.Bytes(), func(attr uint16, ad *netlink.AttributeDecoder) error {
				if attr == unix.NFTA_HOOK_HOOKNUM {
					hook = ad.Uint32()
				}
				return nil
			})
		}
		return nil
	})
	return name, table, kind == "nat" && (hook == unix.NF_INET_PRE_ROUTING || hook == unix.NF_INET_LOCAL_OUT), err
}

type rawRule struct {
	chain       string
	expressions []byte
}

func parseRuleMessage(m []byte) (r rawRule, table string, err error) {
	err = attributes(m, func(kind uint16, ad *netlink.AttributeDecoder) error {
		switch kind {
		case unix.NFTA_RULE_TABLE:
			table = ad.String()
		case unix.NFTA_RULE_CHAIN:
			r.chain = ad.String()
		case unix.NFTA_RULE_EXPRESSIONS:
			r.expressions = ad.Bytes()
		}
		return nil
	})
	return r, table, err
}

// sets are all sets of a table, if any rule is there to ask them.
func (r *Reader) sets(at place, rules []rawRule) (map[string]*set, error) {
	if len(rules) == 0 {
		return nil, nil
	}
	sets := map[string]*set{}
	err := r.each(unix.NFT_MSG_GETSET, at.family, text(unix.NFTA_SET_TABLE, at.table), func(_ uint8, m []byte) error {
		name, s, err := parseSet(m)
		sets[name] = s
		return err
	})
	if err != nil {
		return nil, err
	}
	for name, s := range sets {
		var raw []rawElement
		req := append(text(unix.NFTA_SET_ELEM_LIST_TABLE, at.table), text(unix.NFTA_SET_ELEM_LIST_SET, name)...)
		err := r.each(unix.NFT_MSG_GETSETELEM, at.family, req, func(_ uint8, m []byte) error {
			return parseElements(m, func(e element, flags uint32) { raw = append(raw, rawElement{e, flags}) })
		})
		if err != nil {
			return nil, err
		}
		s.settle(raw)
	}
	return sets, nil
}

func parseSet(m []byte) (name string, s *set, err error) {
	const concatenated = 0x80 // NFT_SET_CONCAT: intervals have both their ends in one element
	s = &set{}
	err = attributes(m, func(kind uint16, ad *netlink.AttributeDecoder) error {
		switch kind {
		case unix.NFTA_SET_NAME:
			name = ad.String()
		case unix.NFTA_SET_FLAGS:
			s.intervals = ad.Uint32()&(unix.NFT_SET_INTERVAL|concatenated) == unix.NFT_SET_INTERVAL
		case unix.NFTA_SET_KEY_LEN:
			s.keyLen = int(ad.Uint32())
		}
		return nil
	})
	return name, s, err
}

// text is an attribute of a name.
func text(kind uint16, value string) []byte {
	b, err := netlink.MarshalAttributes([]netlink.Attribute{{Type: kind, Data: append([]byte(value), 0)}})
	if err != nil {
		return nil // a name of 64 KiB, which the kernel has none of
	}
	return b
}

// each calls yield with the family and the attributes of every message of a dump.
func (r *Reader) each(msg uint16, family uint8, attrs []byte, yield func(family uint8, m []byte) error) error {
	req := request(msg, family, netlink.Dump, attrs)
	// A new one for each: an answer that is given up half read would be taken for the next one's.
	if err := r.conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	if _, err := r.conn.Send(req); err != nil {
		return err
	}
	answers, err := r.conn.Receive()
	if err != nil {
		return err
	}
	for _, m := range answers {
		if len(m.Data) < 4 {
			return fmt.Errorf("a message of %d bytes", len(m.Data))
		}
		if err := yield(m.Data[0], m.Data[4:]); err != nil {
			return err
		}
	}
	return nil
}

func request(msg uint16, family uint8, flags netlink.HeaderFlags, attrs []byte) netlink.Message {
	const nftables = unix.NFNL_SUBSYS_NFTABLES << 8
	return netlink.Message{
		Header: netlink.Header{Type: netlink.HeaderType(nftables | msg), Flags: netlink.Request | flags},
		Data:   append([]byte{family, unix.NFNETLINK_V0, 0, 0}, attrs...), // struct nfgenmsg
	}
}
