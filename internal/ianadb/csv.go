package ianadb

import (
	"bufio"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"
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

// ParseCSV reads the registry in the form that IANA publishes (RFC 4180), in file order. It is strict: what it does
// not know it refuses, naming line and reason, and so it does with a record that comes twice and with a file that does
// not end as it should. It reads at most MaxFile bytes; an error of r is wrapped.
func ParseCSV(r io.Reader) ([]Entry, error) { return parseCSV(newInput(r)) }

func parseCSV(in input) ([]Entry, error) {
	rows := csv.NewReader(in.buf) // FieldsPerRecord 0: all records are as long as the header
	header, err := rows.Read()
	switch {
	case errors.Is(err, io.EOF):
		return nil, errors.New("line 1: empty, want the registry's header")
	case err != nil:
		return nil, csvError(err, in)
	case !slices.Equal(header, columns):
		return nil, fmt.Errorf("line 1: header %.80q, want %q", strings.Join(header, ","), strings.Join(columns, ","))
	}
	rows.ReuseRecord = true
	var all collector
	for {
		row, err := rows.Read()
		if errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return nil, csvError(err, in)
		}
		e, column, err := parseRow(row)
		line, _ := rows.FieldPos(column)
		if err != nil {
			return nil, fmt.Errorf("line %d: %s: %w", line, columns[column], err)
		}
		if err := all.add(e, line); err != nil {
			return nil, err
		}
	}
	if len(all.entries) == 0 {
		return nil, errors.New("line 2: no record follows the header")
	}
	if in.source.last != '\n' { // the last record may be whole or not: its last cell alone could tell
		line, _ := rows.FieldPos(columnCount - 1)
		return nil, fmt.Errorf("line %d: no line break after the last record: the file looks cut off", line)
	}
	return all.entries, nil
}

// csvError puts the line first. A file that breaks off within a record is far more likely than one with a stray quote.
func csvError(err error, in input) error {
	var at *csv.ParseError
	if !errors.As(err, &at) {
		return readError(err)
	}
	if in.atEnd() && (in.source.last != '\n' || errors.Is(err, csv.ErrQuote)) {
		return fmt.Errorf("line %d: %w: the file looks cut off within a record", at.StartLine, at.Err)
	}
	return fmt.Errorf("line %d: %w", at.StartLine, at.Err)
}

// WriteCSV writes records as IANA does, so that what ParseCSV read comes out byte for byte: records end in CRLF, line
// breaks within a cell are LF, and only a cell that needs quotes has them. (csv.Writer knows either line break alone.)
func WriteCSV(w io.Writer, entries iter.Seq[Entry]) error {
	out := bufio.NewWriter(w)
	writeRow := func(cells *[columnCount]string) {
		for i, cell := range cells {
			if i > 0 {
				out.WriteByte(',')
			}
			if strings.ContainsAny(cell, ",\"\r\n") {
				cell = `"` + strings.ReplaceAll(cell, `"`, `""`) + `"`
			}
			out.WriteString(cell)
		}
		out.WriteString("\r\n")
	}
	writeRow((*[columnCount]string)(columns))
	for e := range entries {
		cells := e.row()
		writeRow(&cells)
	}
	return out.Flush() // which returns the first error of all the writes
}

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
		if unicode.IsControl(r) && r != '\n' && r != '\t' {
			return fmt.Errorf("control character %U", r)
		}
	}
	return nil
}

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
