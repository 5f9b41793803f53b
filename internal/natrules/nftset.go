package natrules

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"slices"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

const (
	attrKeyEnd  = 10 // NFTA_SET_ELEM_KEY_END
	catchAll    = 2  // NFT_SET_ELEM_CATCHALL
	maxElements = 50_000
)

// A set is a set or a map of nftables, which rules ask for a key.
type set struct {
	intervals bool
	keyLen    int
	elements  []element
}

// An element has keys from key to last, both included, in as many bytes; nil is every key. data is what a map has for it.
type element struct {
	key, last []byte
	data      []byte
	verdict   *verdict
}

type verdict struct {
	code  int32
	chain string
}

// parseElements reads the elements in one message of a dump, as the kernel has them: where the set is of intervals, an end is
// an element of its own.
func parseElements(b []byte, yield func(e element, flags uint32)) error {
	return attributes(b, func(kind uint16, ad *netlink.AttributeDecoder) error {
		if kind != unix.NFTA_SET_ELEM_LIST_ELEMENTS {
			return nil
		}
		return attributes(ad.Bytes(), func(kind uint16, ad *netlink.AttributeDecoder) error {
			if kind != unix.NFTA_LIST_ELEM {
				return nil
			}
			var e element
			var flags uint32
			err := attributes(ad.Bytes(), func(kind uint16, ad *netlink.AttributeDecoder) (err error) {
				switch kind {
				case unix.NFTA_SET_ELEM_KEY:
					e.key, _, err = parseData(ad.Bytes())
				case attrKeyEnd:
					e.last, _, err = parseData(ad.Bytes())
				case unix.NFTA_SET_ELEM_DATA:
					e.data, e.verdict, err = parseData(ad.Bytes())
				case unix.NFTA_SET_ELEM_FLAGS:
					flags = ad.Uint32()
				}
				return err
			})
			if err == nil {
				yield(e, flags)
			}
			return err
		})
	})
}

// parseData reads a value, or a verdict.
func parseData(b []byte) (value []byte, v *verdict, err error) {
	err = attributes(b, func(kind uint16, ad *netlink.AttributeDecoder) error {
		switch kind {
		case unix.NFTA_DATA_VALUE:
			value = ad.Bytes()
		case unix.NFTA_DATA_VERDICT:
			v = &verdict{}
			return attributes(ad.Bytes(), func(kind uint16, ad *netlink.AttributeDecoder) error {
				switch kind {
				case unix.NFTA_VERDICT_CODE:
					v.code = int32(ad.Uint32())
				case unix.NFTA_VERDICT_CHAIN:
					v.chain = ad.String()
				}
				return nil
			})
		}
		return nil
	})
	return value, v, err
}

// rawElement is one with the kernel's flags.
type rawElement struct {
	element
	flags uint32
}

// settle makes elements of what the kernel says: a key for every one that is alone, and the first and last of intervals.
func (s *set) settle(raw []rawElement) {
	s.elements = s.elements[:0]
	slices.SortStableFunc(raw, func(a, b rawElement) int {
		// An interval may begin where another one ends.
		return cmp.Or(bytes.Compare(a.key, b.key), cmp.Compare(b.flags&unix.NFT_SET_ELEM_INTERVAL_END, a.flags&unix.NFT_SET_ELEM_INTERVAL_END))
	})
	for i, r := range raw {
		switch {
		case r.flags&unix.NFT_SET_ELEM_INTERVAL_END != 0:
			continue
		case r.flags&catchAll != 0:
			r.key, r.last = nil, nil
		case r.last != nil:
		case !s.intervals:
			r.last = r.key
		case i+1 < len(raw):
			r.last = before(raw[i+1].key)
		default:
			r.last = bytes.Repeat([]byte{0xff}, len(r.key))
		}
		if len(s.elements) < maxElements {
			s.elements = append(s.elements, r.element)
		}
	}
}

// before is a key less one.
func before(key []byte) []byte {
	out := slices.Clone(key)
	for i := len(out) - 1; i >= 0; i-- {
		out[i]--
		if out[i] != 0xff {
			break
		}
	}
	return out
}

// attributes calls yield with each of the netlink attributes in b.
func attributes(b []byte, yield func(kind uint16, ad *netlink.AttributeDecoder) error) error {
	ad, err := netlink.NewAttributeDecoder(b)
	if err != nil {
		return err
	}
	ad.ByteOrder = binary.BigEndian // of what nftables says; see linux/netfilter/nf_tables.h
	for ad.Next() {
		if err := yield(ad.Type(), ad); err != nil {
			return err
		}
	}
	return ad.Err()
}
