package ianadb

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math"
	"math/bits"
	"slices"
	"strings"
	"time"
)

// Compile makes the blob that Open reads from entries as a parser of this package returned them, in the order in which
// lookups shall answer; in others Port, First and Last must agree, and no cell may have more than 32,767 bytes. The same
// entries and source always give the same bytes.
func Compile(entries []Entry, source Source) ([]byte, error) {
	if source.Date != "" {
		if _, err := time.Parse(time.DateOnly, source.Date); err != nil {
			return nil, fmt.Errorf("date of the registry: %w", err)
		}
	}
	held := 0
	for _, e := range entries {
		if e.HasPort() {
			held += int(e.Last-e.First) + 1
		}
	}
	if held+len(entries) > maxLists-2 { // before the lists are made: a few wide ranges would make them huge
		return nil, fmt.Errorf("%d records of %d ports in all are more than the format holds", len(entries), held)
	}
	var c compiler
	ports := c.addPorts(entries)
	slots, err := c.addNames(entries)
	if err != nil {
		return nil, err
	}
	c.addRecords(entries)
	if uint64(len(c.cells)) > math.MaxUint32 {
		return nil, fmt.Errorf("%d bytes of cells are more than the format holds", len(c.cells))
	}

	blob := make([]byte, headerSize)
	copy(blob, magic)
	le.PutUint32(blob[versionAt:], version)
	copy(blob[digestAt:], source.SHA256[:])
	copy(blob[dateAt:], source.Date)
	for i, n := range []int{len(entries), len(c.lists) / 4, len(slots) / 4, len(c.cells)} {
		le.PutUint32(blob[countsAt+4*i:], uint32(n))
	}
	blob = slices.Concat(blob, ports, c.records, c.lists, slots, c.cells)
	le.PutUint32(blob[checksumAt:], crc32.Checksum(blob[digestAt:], crc32.MakeTable(crc32.Castagnoli)))
	return blob, nil
}

var le = binary.LittleEndian

// A compiler grows the sections whose sizes are not known beforehand.
type compiler struct {
	records, lists, cells []byte
}

// addList returns the list of some records.
func (c *compiler) addList(records []uint32) uint32 {
	if len(c.lists) == 0 {
		c.lists = le.AppendUint32(nil, endOfList) // takes the place of list 0
	}
	if len(records) == 0 {
		return 0
	}
	list := len(c.lists) / 4
	for i, n := range records {
		if i == len(records)-1 {
			n |= endOfList
		}
		c.lists = le.AppendUint32(c.lists, n)
	}
	return uint32(list)
}

// addPorts goes from one port where the records that hold it change to the next.
func (c *compiler) addPorts(entries []Entry) (ports []byte) {
	var starts []uint32 // the records with ports, by the first one
	turns := []int{0, firstDynamic, 1 << 16}
	for i, e := range entries {
		if e.HasPort() {
			starts = append(starts, uint32(i))
			turns = append(turns, int(e.First), int(e.Last)+1)
		}
	}
	slices.SortStableFunc(starts, func(a, b uint32) int { return int(entries[a].First) - int(entries[b].First) })
	slices.Sort(turns)
	turns = slices.Compact(turns)

	ports = make([]byte, 0, portsSize)
	var now, before []uint32 // who holds the port, in file order
	var records []Entry
	var list uint32
	for i, port := range turns[:len(turns)-1] {
		now = slices.DeleteFunc(now, func(n uint32) bool { return int(entries[n].Last) < port })
		for len(starts) > 0 && int(entries[starts[0]].First) == port {
			now, starts = append(now, starts[0]), starts[1:]
		}
		slices.Sort(now)
		if port == 0 || !slices.Equal(now, before) { // firstDynamic need not be such a port
			list = c.addList(now)
			before = append(before[:0], now...)
			records = records[:0]
			for _, n := range now {
				records = append(records, entries[n])
			}
		}
		w := list << listShift
		for p := TCP; p <= DCCP; p++ {
			w |= uint32(statusOf(records, uint16(port), p)) << ((p - 1) * statusBits)
		}
		for range turns[i+1] - port {
			ports = le.AppendUint32(ports, w)
		}
	}
	return ports
}

// maxProbes is how many slots a look-up may have to try. In the registry of 2026 it is 26. Thousands of names with one hash
// can be made, and then Compile took half a minute, and a look-up milliseconds.
const maxProbes = 256

func (c *compiler) addNames(entries []Entry) (slots []byte, err error) {
	var names []string // in order of appearance: a map has none, and the blob must come out the same each time
	bearers := make(map[string][]uint32)
	for i, e := range entries {
		if e.Name == "" {
			continue
		}
		name := lowerName(e.Name)
		if bearers[name] == nil {
			names = append(names, name)
		}
		bearers[name] = append(bearers[name], uint32(i))
	}
	size := 1 << bits.Len(uint(2*len(names))) // at least half of the slots stay empty
	slots = make([]byte, 4*size)
	for _, name := range names {
		slot := hash(name) % uint32(size)
		for probes := 1; le.Uint32(slots[4*slot:]) != 0; probes++ {
			if probes == maxProbes {
				return nil, fmt.Errorf("%q and %d names before it have nearly one hash, which is no registry", name, probes)
			}
			slot = (slot + 1) % uint32(size)
		}
		le.PutUint32(slots[4*slot:], c.addList(bearers[name]))
	}
	return slots, nil
}

// addRecords stores equal cells once: most services have them for tcp and again for udp.
func (c *compiler) addRecords(entries []Entry) {
	known := make(map[string]int)
	var cells []byte
	for _, e := range entries {
		cells = e.appendCells(cells[:0])
		at, ok := known[string(cells)]
		if !ok {
			at = len(c.cells)
			known[string(cells)] = at
			c.cells = append(c.cells, cells...)
		}
		c.records = le.AppendUint32(c.records, uint32(at))
		c.records = le.AppendUint16(c.records, e.First)
		c.records = le.AppendUint16(c.records, e.Last)
		hasPort := byte(0)
		if e.HasPort() {
			hasPort = 1
		}
		c.records = append(c.records, byte(e.Protocol), byte(e.Status()), hasPort, 0)
	}
}

// lowerName returns most names as they are, for few have capitals.
func lowerName(name string) string {
	if !strings.ContainsFunc(name, func(r rune) bool { return 'A' <= r && r <= 'Z' }) {
		return name
	}
	b := []byte(name)
	for i, c := range b {
		b[i] = lower(c)
	}
	return string(b)
}
