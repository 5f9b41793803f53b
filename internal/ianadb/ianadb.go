// Package ianadb says which service IANA assigned to which port: the Service Name and Transport Protocol Port Number
// Registry, answered from memory, with entries of the host's own over it. An edition is embedded; others are parsed from
// IANA's files, told from what is no next edition, compared, and compiled.
package ianadb

import (
	_ "embed"
	"iter"
	"slices"
	"sync"
)

//go:generate go run ./gen -date 2026-08-17 service-names-port-numbers.csv registry.bin

//go:embed registry.bin
var registry string

// A DB is a registry ready to be asked, by any number of goroutines. Names and cells in its answers share its memory.
type DB struct {
	blob                                string
	ports, records, lists, slots, cells string // the sections of blob

	prepare sync.Once
	text    *searchText // made by prepare
}

// Embedded returns the registry that is shipped with the program. It costs no more than the DB it returns.
func Embedded() *DB {
	db, err := layOut(registry) // our own bytes, which a test compares with the CSV: no need to check them at every start
	if err != nil {
		panic("ianadb: " + err.Error())
	}
	return db
}

// A Source is what a registry was compiled from.
type Source struct {
	Date   string   // of the registry, YYYY-MM-DD; empty when not known, for the CSV does not say
	SHA256 [32]byte // of the file
}

// Source returns what the registry was compiled from.
func (db *DB) Source() Source {
	var s Source
	copy(s.SHA256[:], db.blob[digestAt:])
	if s.Date = db.blob[dateAt:][:len("YYYY-MM-DD")]; s.Date[0] == 0 {
		s.Date = ""
	}
	return s
}

// Len returns the number of records.
func (db *DB) Len() int { return len(db.records) / recordSize }

// holders returns the list of the records that hold a port.
func (db *DB) holders(port uint16) uint32 { return word(db.ports, uint32(port)) >> listShift }

// The iterators below are only a closure each, so that they are inlined and a loop over one allocates nothing.

// All yields every record in file order: by port first, then the names without one.
func (db *DB) All() iter.Seq[Record] {
	return func(yield func(Record) bool) {
		for i := range uint32(db.Len()) {
			if !yield(Record{db, i}) {
				return
			}
		}
	}
}

// ByPort yields the records that hold a port, in file order: single ports, ranges, and stale ranges in which single
// ports were assigned later. With a protocol, only those for it and those for every protocol.
func (db *DB) ByPort(port uint16, p Protocol) iter.Seq[Record] {
	return func(yield func(Record) bool) { db.walk(db.holders(port), p, yield) }
}

// ByName yields the records of a service name in file order, whatever the case of its ASCII letters: one for each of
// its ports and protocols, aliases and names without a port too. The protocol is as in ByPort.
func (db *DB) ByName(name string, p Protocol) iter.Seq[Record] {
	return func(yield func(Record) bool) { db.walk(db.find(name), p, yield) }
}

// walk yields the records of a list, and reports whether the caller wants more.
func (db *DB) walk(at uint32, p Protocol, yield func(Record) bool) bool {
	for end := at == 0; !end; at++ {
		n := word(db.lists, at)
		end = n&endOfList != 0
		if r := (Record{db, n &^ endOfList}); r.Protocol().meets(p) && !yield(r) {
			return false
		}
	}
	return true
}

// find returns the list of the records with a name.
func (db *DB) find(name string) uint32 {
	mask := uint32(len(db.slots)/4 - 1)
	for slot := hash(name); ; slot++ {
		list := word(db.slots, slot&mask)
		if list == 0 || sameName(name, Record{db, word(db.lists, list) &^ endOfList}.Name()) {
			return list
		}
	}
}

// Status returns the status of a port for one protocol; for AnyProtocol there is none.
func (db *DB) Status(port uint16, p Protocol) Status {
	if p == AnyProtocol || p > DCCP {
		return StatusNone
	}
	return Status(word(db.ports, uint32(port)) >> ((p - 1) * statusBits) & (1<<statusBits - 1))
}

// Unassigned reports whether IANA has the port free for this protocol. "No record" is not that.
func (db *DB) Unassigned(port uint16, p Protocol) bool { return db.Status(port, p) == StatusUnassigned }

// Names yields the names to which a port is assigned, in file order; the first is not more right than the others.
func (db *DB) Names(port uint16, p Protocol) iter.Seq[string] {
	return func(yield func(string) bool) {
		for r := range db.ByPort(port, p) {
			if r.Status() == StatusAssigned && !yield(r.Name()) {
				return
			}
		}
	}
}

// Ports returns the ports that are assigned to a name, each range once, in file order. http-alt has three, and a name
// may have none.
func (db *DB) Ports(name string, p Protocol) []Range {
	var all []Range
	for r := range db.ByName(name, p) {
		ports, ok := r.Ports()
		if ok && r.Status() == StatusAssigned && !slices.Contains(all, ports) {
			all = append(all, ports)
		}
	}
	return all
}

// Names compare as bytes, ASCII letters without regard to case (RFC 6335, section 5.1); sunrpc and sun-rpc are two.

func sameName(a, b string) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range len(a) {
		if lower(a[i]) != lower(b[i]) {
			return false
		}
	}
	return true
}

// hash is FNV-1a of the lower-cased name.
func hash(name string) uint32 {
	h := uint32(2166136261)
	for i := range len(name) {
		h = (h ^ uint32(lower(name[i]))) * 16777619
	}
	return h
}

func lower(c byte) byte {
	if 'A' <= c && c <= 'Z' {
		c += 'a' - 'A'
	}
	return c
}
