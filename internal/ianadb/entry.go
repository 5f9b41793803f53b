package ianadb

import "strings"

// An Entry is one record of the registry: its twelve columns, byte for byte, and the numbers in Port.
// Cells may hold line breaks and indentation; Collapse lays them out on one line. Dates and service codes are not looked
// into: they are as said here as long as IANA writes them so.
type Entry struct {
	Name             string // empty where the record only says something about its ports
	Port             string // as written: "443", "6000-6063", or empty for a name without a port
	First, Last      uint16 // the ports in Port, both included; 0 and 0 when Port is empty
	Protocol         Protocol
	Description      string
	Assignee         string
	Contact          string
	RegistrationDate string // YYYY-MM-DD, YYYY-MM or empty
	ModificationDate string // likewise
	Reference        string
	ServiceCode      string // a DCCP service code (RFC 4340, section 8.1.2), decimal
	UnauthorizedUse  string
	Notes            string
}

// HasPort tells a record of ports (port 0 is one) from a name that has none.
func (e Entry) HasPort() bool { return e.Port != "" }

// AliasOf returns the name that replaces this record's own, or "". Names that break the syntax of RFC 6335 (dec_dlm)
// stay in the registry as aliases of a well-formed one (dec-dlm), and only the notes say so.
func (e Entry) AliasOf() string {
	_, rest, _ := strings.Cut(e.Notes, `This entry is an alias to "`)
	name, _, _ := strings.Cut(rest, `"`)
	return name
}

// Collapse turns each run of white space in a cell into one blank, for display on one line.
func Collapse(cell string) string { return strings.Join(strings.Fields(cell), " ") }

// A Protocol is a transport protocol. The zero value is the empty cell of the registry: a record that holds for every
// protocol, or a question about all of them.
type Protocol uint8

const (
	AnyProtocol Protocol = iota
	TCP
	UDP
	SCTP
	DCCP
)

var protocols = [...]string{"", "tcp", "udp", "sctp", "dccp"}

// String returns the protocol as the registry writes it; AnyProtocol is the empty string.
func (p Protocol) String() string { return protocols[p] }

// ParseProtocol is the inverse of String. It knows the registry's own lower-case spelling only.
func ParseProtocol(s string) (Protocol, bool) {
	for p, name := range protocols {
		if s == name {
			return Protocol(p), true
		}
	}
	return 0, false
}

// meets reports whether a record for p says something about q. An empty protocol, on either side, is every one.
func (p Protocol) meets(q Protocol) bool { return p == q || p == AnyProtocol || q == AnyProtocol }

// A Range is the ports from First to Last, both included.
type Range struct{ First, Last uint16 }

// A Class is one of the three parts into which RFC 6335, section 6, divides the port numbers.
type Class uint8

const (
	System  Class = iota // 0–1023, the "well known" ports
	User                 // 1024–49151, the registered ports
	Dynamic              // 49152–65535, never assigned
)

// ClassOf returns the class of a port.
func ClassOf(port uint16) Class {
	switch {
	case port < 1024:
		return System
	case port < firstDynamic:
		return User
	}
	return Dynamic
}

const firstDynamic = 49152

// String returns "system", "user" or "dynamic".
func (c Class) String() string { return [...]string{"system", "user", "dynamic"}[c] }
