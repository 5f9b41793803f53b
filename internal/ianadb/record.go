package ianadb

// A Record is a place in a DB: as light as a pointer, while the Entry made from it has all twelve columns at hand.
// Two are equal if they are the same record of the same DB.
type Record struct {
	db *DB
	n  uint32 // in file order
}

// fixed is the part of a record that has the same size in each.
func (r Record) fixed() string { return r.db.records[int(r.n)*recordSize:][:recordSize] }

// cells is where the other part begins.
func (r Record) cells() uint32 { return word(r.fixed(), 0) }

// Name returns the service name, "" where the record only says something about its ports.
func (r Record) Name() string {
	name, _, _ := cutCell(r.db.cells[r.cells():])
	return name
}

// Ports returns the ports that the record holds, or false for a name without a port.
func (r Record) Ports() (Range, bool) {
	f := r.fixed()
	return Range{uint16(f[4]) | uint16(f[5])<<8, uint16(f[6]) | uint16(f[7])<<8}, f[hasPortAt] != 0
}

// Protocol returns the protocol that the record is for, which may be AnyProtocol.
func (r Record) Protocol() Protocol { return Protocol(r.fixed()[protocolAt]) }

// Status is Entry.Status.
func (r Record) Status() Status { return Status(r.fixed()[statusAt]) }

// Entry returns the whole record.
func (r Record) Entry() (e Entry) {
	ports, _ := r.Ports()
	e.First, e.Last, e.Protocol = ports.First, ports.Last, r.Protocol()
	s := r.db.cells[r.cells():]
	e.Name, s, _ = cutCell(s)
	e.Port, s, _ = cutCell(s)
	e.Description, s, _ = cutCell(s)
	e.Assignee, s, _ = cutCell(s)
	e.Contact, s, _ = cutCell(s)
	e.RegistrationDate, s, _ = cutCell(s)
	e.ModificationDate, s, _ = cutCell(s)
	e.Reference, s, _ = cutCell(s)
	e.ServiceCode, s, _ = cutCell(s)
	e.UnauthorizedUse, s, _ = cutCell(s)
	e.Notes, _, _ = cutCell(s)
	return e
}

// appendCells writes the cells as Entry reads them.
func (e *Entry) appendCells(b []byte) []byte {
	for _, cell := range [cellsPerEntry]string{
		e.Name, e.Port, e.Description, e.Assignee, e.Contact, e.RegistrationDate, e.ModificationDate, e.Reference,
		e.ServiceCode, e.UnauthorizedUse, e.Notes,
	} {
		if n := len(cell); n < twoBytes {
			b = append(b, byte(n))
		} else {
			b = append(b, byte(twoBytes|n>>8), byte(n))
		}
		b = append(b, cell...)
	}
	return b
}

const (
	cellsPerEntry = 11   // the columns without the protocol
	twoBytes      = 0x80 // in the first byte of a length: another follows
	maxCell       = twoBytes<<8 - 1
)

// cutCell takes the first cell off s; ok is false if s ends before it does.
func cutCell(s string) (cell, rest string, ok bool) {
	if s == "" {
		return "", "", false
	}
	n, s := int(s[0]), s[1:]
	if n >= twoBytes && s != "" {
		n, s = n&^twoBytes<<8|int(s[0]), s[1:]
	}
	if n > len(s) {
		return "", "", false
	}
	return s[:n], s[n:], true
}

// sound reports whether the methods above can answer without going astray.
func (r Record) sound() bool {
	ports, _ := r.Ports()
	if ports.First > ports.Last || r.Protocol() > DCCP || r.Status() > StatusDynamic || uint64(r.cells()) > uint64(len(r.db.cells)) {
		return false
	}
	s, ok := r.db.cells[r.cells():], true
	for range cellsPerEntry {
		if _, s, ok = cutCell(s); !ok {
			return false
		}
	}
	return true
}

// word returns the i-th 32-bit number of a section.
func word(section string, i uint32) uint32 {
	b := section[int(i)*4:][:4]
	return uint32(b[0]) | uint32(b[1])<<8 | uint32(b[2])<<16 | uint32(b[3])<<24
}
