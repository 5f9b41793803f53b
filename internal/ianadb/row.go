package ianadb

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// columns is the header of the CSV, in the order of a row.
var columns = []string{
	"Service Name", "Port Number", "Transport Protocol", "Description", "Assignee", "Contact", "Registration Date",
	"Modification Date", "Reference", "Service Code", "Unauthorized Use Reported", "Assignment Notes",
}

const (
	nameColumn = iota
	portColumn
	protocolColumn
	descriptionColumn
	assigneeColumn
	contactColumn
	registeredColumn
	modifiedColumn
	referenceColumn
	serviceCodeColumn
	unauthorizedColumn
	notesColumn
	columnCount
)

// row returns the columns of e; parseRow is its inverse.
func (e *Entry) row() [columnCount]string {
	return [columnCount]string{
		e.Name, e.Port, e.Protocol.String(), e.Description, e.Assignee, e.Contact, e.RegistrationDate, e.ModificationDate,
		e.Reference, e.ServiceCode, e.UnauthorizedUse, e.Notes,
	}
}

// parseRow returns the column to blame with its error.
func parseRow(row []string) (e Entry, column int, err error) {
	for i, cell := range row {
		if err := checkCell(cell); err != nil {
			return Entry{}, i, err
		}
	}
	if err := checkSpelling(row[nameColumn]); err != nil {
		return Entry{}, nameColumn, err
	}
	e = Entry{
		Name: row[nameColumn], Port: row[portColumn], Description: row[descriptionColumn], Assignee: row[assigneeColumn],
		Contact: row[contactColumn], RegistrationDate: row[registeredColumn], ModificationDate: row[modifiedColumn],
		Reference: row[referenceColumn], ServiceCode: row[serviceCodeColumn], UnauthorizedUse: row[unauthorizedColumn],
		Notes: row[notesColumn],
	}
	if e.First, e.Last, err = parsePort(e.Port); err != nil {
		return Entry{}, portColumn, err
	}
	if e.Name == "" && !e.HasPort() {
		return Entry{}, nameColumn, errors.New("neither a name nor a port")
	}
	var known bool
	if e.Protocol, known = ParseProtocol(row[protocolColumn]); !known {
		return Entry{}, protocolColumn, fmt.Errorf("%.20q, want tcp, udp, sctp, dccp or nothing", row[protocolColumn])
	}
	return e, 0, nil
}

// checkCell refuses what could not be stored, sent in a protobuf string or shown on a terminal as it is.
func checkCell(cell string) error {
	if len(cell) > maxCell {
		return fmt.Errorf("%d bytes, want at most %d", len(cell), maxCell)
	}
	if !utf8.ValidString(cell) {
		return errors.New("not UTF-8")
	}
	for _, r := range cell {
		if !Shows(r) {
			return fmt.Errorf("control character %U", r)
		}
	}
	return nil
}

// Shows says whether a character may be in a cell: none that control a terminal may, nor those that turn the direction of
// text, by which a line can read as another one.
func Shows(r rune) bool {
	return r == '\n' || r == '\t' || !unicode.IsControl(r) && !unicode.Is(unicode.Bidi_Control, r)
}

// checkSpelling refuses what is no name by any rule, new or old: names are put into messages, file names and URLs, and
// text in this column is a column gone astray.
func checkSpelling(name string) error {
	if len(name) > maxSpelling {
		return fmt.Errorf("%.20q… has %d bytes, want at most %d", name, len(name), maxSpelling)
	}
	for _, c := range name {
		if c <= ' ' || c > '~' {
			return fmt.Errorf("%q has %q, want a name of ASCII characters without blanks", name, c)
		}
	}
	return nil
}

const maxSpelling = 4 * maxName // in bytes; those in the registry keep to maxName

// parsePort reads N, N-M or an empty cell, which is 0, 0.
func parsePort(cell string) (first, last uint16, err error) {
	if cell == "" {
		return 0, 0, nil
	}
	from, to, isRange := strings.Cut(cell, "-")
	if first, err = parseNumber(from); err != nil || !isRange {
		return first, first, err
	}
	if last, err = parseNumber(to); err == nil && first > last {
		err = fmt.Errorf("range %s runs backwards", cell)
	}
	return first, last, err
}

func parseNumber(s string) (uint16, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || s[0] == '0' && s != "0" {
		return 0, fmt.Errorf("%.20q, want a port from 0 to 65535", s)
	}
	return uint16(n), nil
}
