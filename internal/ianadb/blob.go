package ianadb

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"hash/crc32"
	"unsafe"
)

// The compiled registry is one string, written by Compile and read where it lies: no lookup parses or allocates, and a
// process that asks one question touches a page of each section. Numbers are little-endian.
//
//	header   magic, format version, CRC-32C of what follows it, SHA-256 and date of the source, counts of the sections
//	ports    65,536 words: bits 0–11 the status for tcp, udp, sctp and dccp, bits 12–31 the list of records that hold the port
//	records  12 bytes each, in file order: offset of its cells, first and last port, protocol, status, has a port, 0
//	lists    words: record numbers, the last of each list with endOfList; a list is known by the index of its first word
//	slots    words: a hash table over lower-cased names, open addressing, each the list of records with that name
//	cells    per distinct set of cells, eleven in the order of Entry: length (one byte, or two from 128 up), then the bytes
//
// The list 0 is the empty one.
const (
	magic   = "ianaport"
	version = 1

	versionAt  = len(magic)
	checksumAt = versionAt + 4
	digestAt   = checksumAt + 4
	dateAt     = digestAt + sha256.Size
	countsAt   = dateAt + 12
	headerSize = countsAt + 4*4

	portsSize  = 1 << 16 * 4
	recordSize = 12
	protocolAt = 8
	statusAt   = 9
	hasPortAt  = 10

	endOfList = 1 << 31
	listShift = 4 * statusBits
	maxLists  = 1 << (32 - listShift) // words that a port's 20 bits can point to
)

// Open returns the registry in a blob that Compile made, which it goes on reading in place. A damaged blob is an error
// here, so that no lookup has to expect one.
func Open(blob string) (*DB, error) {
	db, err := layOut(blob)
	if err != nil {
		return nil, err
	}
	if sum := checksum(blob); sum != word(blob[checksumAt:], 0) {
		return nil, fmt.Errorf("compiled registry: checksum is %08x, want %08x", sum, word(blob[checksumAt:], 0))
	}
	if err := db.check(); err != nil {
		return nil, fmt.Errorf("compiled registry: %w", err)
	}
	return db, nil
}

// New returns the registry of entries; it is Compile and Open without a look at what has just been made.
func New(entries []Entry, source Source) (*DB, error) {
	blob, err := Compile(entries, source)
	if err != nil {
		return nil, err
	}
	return layOut(string(blob))
}

// Blob returns the registry as Compile made it and Open reads it. It shares the DB's memory.
func (db *DB) Blob() string { return db.blob }

// layOut finds the sections, which together take the whole blob, and looks at nothing in them.
func layOut(blob string) (*DB, error) {
	if len(blob) < headerSize || blob[:versionAt] != magic {
		return nil, errors.New("not a compiled registry")
	}
	if v := word(blob[versionAt:], 0); v != version {
		return nil, fmt.Errorf("compiled registry: format version %d, want %d", v, version)
	}
	rest, fits := blob[headerSize:], true
	cut := func(count uint32, size uint64) (section string) {
		n := uint64(count) * size
		if n > uint64(len(rest)) {
			fits = false
			return ""
		}
		section, rest = rest[:n], rest[n:]
		return section
	}
	counts := blob[countsAt:headerSize]
	db := &DB{
		blob:    blob,
		ports:   cut(portsSize/4, 4),
		records: cut(word(counts, 0), recordSize),
		lists:   cut(word(counts, 1), 4),
		slots:   cut(word(counts, 2), 4),
		cells:   cut(word(counts, 3), 1),
	}
	if !fits || rest != "" {
		return nil, fmt.Errorf("compiled registry: %d bytes do not match the sections", len(blob))
	}
	return db, nil
}

// check makes sure that every offset a lookup may follow leads to where it should.
func (db *DB) check() error {
	for i := range uint32(db.Len()) {
		if !(Record{db, i}).sound() {
			return fmt.Errorf("record %d is damaged", i)
		}
	}
	lists := uint32(len(db.lists) / 4)
	for i := range lists {
		if word(db.lists, i)&^endOfList >= uint32(db.Len()) {
			return fmt.Errorf("list %d: no such record", i)
		}
	}
	if lists == 0 || word(db.lists, lists-1)&endOfList == 0 {
		return errors.New("the last list does not end")
	}
	for port := range uint32(1 << 16) {
		if word(db.ports, port)>>listShift >= lists {
			return fmt.Errorf("port %d: no such list", port)
		}
	}
	slots, empty := uint32(len(db.slots)/4), false
	for i := range slots {
		list := word(db.slots, i)
		if list >= lists {
			return fmt.Errorf("slot %d: no such list", i)
		}
		empty = empty || list == 0
	}
	if slots&(slots-1) != 0 || !empty { // find masks, and stops at an empty slot
		return errors.New("not a hash table of names")
	}
	return nil
}

func checksum(blob string) uint32 {
	// crc32 wants bytes and does not write to them; a copy would double what an import needs.
	b := unsafe.Slice(unsafe.StringData(blob), len(blob))[digestAt:]
	return crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli))
}
