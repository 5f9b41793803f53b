package ianadb

import "strings"

// A Status is how the registry stands to one port of one protocol. The registry has no such column: it is read from
// names and descriptions. It says what a port is meant for, never what listens there.
type Status uint8

const (
	StatusNone       Status = iota // no record, though the port lies below the dynamic ones; not free for that
	StatusAssigned                 // to one or more named services
	StatusUnassigned               // free, the only status that is; RFC 6335 asks to register even so
	StatusReserved                 // kept by IANA
	StatusPrivate                  // in use by convention, without a name ("any private mail system")
	StatusRetired                  // de-registered, removed, deprecated
	StatusOther                    // a record that says none of these
	StatusDynamic                  // no record, and there never will be one: 49152 and up
)

const statusBits = 3 // what the eight of them take in the blob

var statuses = [...]string{"none", "assigned", "unassigned", "reserved", "private", "retired", "other", "dynamic"}

// String returns the status as a lower-case word.
func (s Status) String() string { return statuses[s] }

// words are the beginnings of descriptions that the registry uses in place of a status. Case varies.
var words = [...]struct {
	prefix string
	status Status
}{
	{"unassigned", StatusUnassigned}, // also "Unassigned [was netstat]"
	{"(unassigned)", StatusUnassigned},
	{"reserved", StatusReserved},
	{"any private", StatusPrivate},
	{deregistered, StatusRetired},
	{"removed", StatusRetired},
	{"deprecated", StatusRetired},
	{"de-commissioned", StatusRetired},
	{"decomissioned", StatusRetired}, // sic
}

const deregistered = "de-registered"

// Status returns what this record, taken alone, says of its ports. A name is an assignment whatever its description
// begins with ("Reserved for a future enhancement of STUN-BEHAVIOR"), unless it is De-Registered.
func (e Entry) Status() Status {
	if e.Name != "" && !hasPrefix(e.Description, deregistered) {
		return StatusAssigned
	}
	for _, w := range words {
		if hasPrefix(e.Description, w.prefix) {
			return w.status
		}
	}
	return StatusOther
}

// hasPrefix is strings.HasPrefix without regard to case.
func hasPrefix(s, prefix string) bool {
	return len(s) >= len(prefix) && strings.EqualFold(s[:len(prefix)], prefix)
}

// statusOf reads the status of one port and protocol from the records that hold the port, in file order. Ranges of
// unassigned ports still cover some that were assigned later, so a name decides first, and then the narrowest record.
func statusOf(records []Entry, port uint16, p Protocol) Status {
	var narrowest *Entry
	for i := range records {
		e := &records[i]
		if !e.Protocol.meets(p) {
			continue
		}
		if e.Status() == StatusAssigned {
			return StatusAssigned
		}
		if narrowest == nil || e.narrower(narrowest) {
			narrowest = e
		}
	}
	switch {
	case narrowest != nil:
		return narrowest.Status()
	case ClassOf(port) == Dynamic:
		return StatusDynamic
	}
	return StatusNone
}

// narrower compares by width, and puts a record of one protocol before a record of all.
func (e *Entry) narrower(than *Entry) bool {
	a, b := e.Last-e.First, than.Last-than.First
	return a < b || a == b && e.Protocol != AnyProtocol && than.Protocol == AnyProtocol
}
