package ianadb

import (
	"iter"
	"slices"
	"strconv"
)

// A Directory is IANA's registry with the host's own entries over it, which come first and win. Each of those has a name
// and is an assignment, whatever its description says: "De-Registered" is a word of IANA's. A Directory is two pointers:
// a value to copy, and as safe for many goroutines as its DBs.
type Directory struct {
	IANA *DB
	Own  *DB // nil: the host has none
}

// both returns the registries that there are, the host's own first.
func (d Directory) both() []*DB {
	if d.Own == nil {
		return []*DB{d.IANA}
	}
	return []*DB{d.Own, d.IANA}
}

// IsOwn reports whether a record is one of the host's.
func (d Directory) IsOwn(r Record) bool { return r.db == d.Own }

// All yields every record, each registry in its file order.
func (d Directory) All() iter.Seq[Record] {
	return func(yield func(Record) bool) {
		for _, db := range d.both() {
			for i := range uint32(db.Len()) {
				if !yield(Record{db, i}) {
					return
				}
			}
		}
	}
}

// As in DB, the iterators over ports and names are only a closure each: a loop over one allocates nothing.

// ByPort is DB.ByPort over both registries.
func (d Directory) ByPort(port uint16, p Protocol) iter.Seq[Record] {
	return func(yield func(Record) bool) { d.walkPort(port, p, yield) }
}

// ByName is DB.ByName over both registries.
func (d Directory) ByName(name string, p Protocol) iter.Seq[Record] {
	return func(yield func(Record) bool) { d.walkName(name, p, yield) }
}

func (d Directory) walkPort(port uint16, p Protocol, yield func(Record) bool) {
	if d.Own == nil || d.Own.walk(d.Own.holders(port), p, yield) {
		d.IANA.walk(d.IANA.holders(port), p, yield)
	}
}

func (d Directory) walkName(name string, p Protocol, yield func(Record) bool) {
	if d.Own == nil || d.Own.walk(d.Own.find(name), p, yield) {
		d.IANA.walk(d.IANA.find(name), p, yield)
	}
}

// ByPorts yields the records that hold any port of a range, each once and the host's own first: in either registry those
// of the first port of the range as in ByPort, and then the others by where they begin.
func (d Directory) ByPorts(ports Range, p Protocol) iter.Seq[Record] {
	return func(yield func(Record) bool) {
		if d.Own == nil || d.Own.walkRange(ports, p, yield) {
			d.IANA.walkRange(ports, p, yield)
		}
	}
}

// walkRange reports whether the caller wants more.
func (db *DB) walkRange(ports Range, p Protocol, yield func(Record) bool) bool {
	last := uint32(0)
	for port := uint32(ports.First); port <= uint32(ports.Last); port++ {
		list := db.holders(uint16(port))
		if list == last { // no record begins here, for then the lists would differ
			continue
		}
		last = list
		more := db.walk(list, p, func(r Record) bool {
			held, _ := r.Ports()
			return port > uint32(ports.First) && uint32(held.First) < port || yield(r) // or it came at an earlier port
		})
		if !more {
			return false
		}
	}
	return true
}

// ByServiceCode yields the DCCP services with a service code (RFC 4340, section 8.1.2). It looks at every record.
func (d Directory) ByServiceCode(code uint32) iter.Seq[Record] {
	cell := strconv.FormatUint(uint64(code), 10)
	return func(yield func(Record) bool) {
		for r := range d.All() {
			if r.Protocol().meets(DCCP) && r.Entry().ServiceCode == cell && !yield(r) {
				return
			}
		}
	}
}

// Names is DB.Names over both registries; a name that the host gives the port is not said again for IANA's record.
func (d Directory) Names(port uint16, p Protocol) iter.Seq[string] {
	return func(yield func(string) bool) { d.names(port, p, yield) }
}

func (d Directory) names(port uint16, p Protocol, yield func(string) bool) {
	for r := range d.ByPort(port, p) {
		if !d.IsOwn(r) && (r.Status() != StatusAssigned || d.ownName(port, p, r.Name())) {
			continue
		}
		if !yield(r.Name()) {
			return
		}
	}
}

// ownName reports whether the host has an entry of a name for a port.
func (d Directory) ownName(port uint16, p Protocol, name string) bool {
	if d.Own == nil {
		return false
	}
	for r := range d.Own.ByPort(port, p) {
		if sameName(r.Name(), name) {
			return true
		}
	}
	return false
}

// Ports returns the ports of the host's own entries of a name, each range once, and where it has none for that protocol
// DB.Ports of IANA's registry: who gives a name another port on this host does not want IANA's as well.
func (d Directory) Ports(name string, p Protocol) []Range {
	if d.Own == nil {
		return d.IANA.Ports(name, p)
	}
	var own []Range
	for r := range d.Own.ByName(name, p) {
		if ports, ok := r.Ports(); ok && !slices.Contains(own, ports) {
			own = append(own, ports)
		}
	}
	if own == nil {
		return d.IANA.Ports(name, p)
	}
	return own
}

// Status is StatusAssigned wherever the host has an entry of its own, and else DB.Status of IANA's registry.
func (d Directory) Status(port uint16, p Protocol) Status {
	if d.Own != nil {
		if s := d.Own.Status(port, p); s != StatusNone && s != StatusDynamic {
			return StatusAssigned
		}
	}
	return d.IANA.Status(port, p)
}

// Unassigned reports whether the port is free for this protocol: IANA says so, and the host has no entry for it.
func (d Directory) Unassigned(port uint16, p Protocol) bool {
	return d.Status(port, p) == StatusUnassigned
}
