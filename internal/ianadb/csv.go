package ianadb

import (
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

var columns = []string{
	"Service Name", "Port Number", "Transport Protocol", "Description", "Assignee", "Contact", "Registration Date",
	"Modification Date", "Reference", "Service Code", "Unauthorized Use Reported", "Assignment Notes",
}

// ParseCSV reads the registry in the form that IANA publishes (RFC 4180), in file order. It is strict: what it does
// not know it refuses, naming line and reason. An error of r is wrapped.
func ParseCSV(r io.Reader) ([]Entry, error) {
	in := csv.NewReader(r) // FieldsPerRecord 0: all records are as long as the header
	header, err := in.Read()
	switch {
	case errors.Is(err, io.EOF):
		return nil, errors.New("line 1: empty, want the registry's header")
	case err != nil:
		return nil, fmt.Errorf("read header: %w", err)
	case !slices.Equal(header, columns):
		return nil, fmt.Errorf("line 1: header %.80q, want %q", strings.Join(header, ","), strings.Join(columns, ","))
	}
	in.ReuseRecord = true
	var entries []Entry
	for {
		row, err := in.Read()
		if errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return nil, err // a csv.ParseError: it has the line
		}
		e, column, err := parseRow(row)
		if err != nil {
			line, _ := in.FieldPos(column)
			return nil, fmt.Errorf("line %d: %s: %w", line, columns[column], err)
		}
		entries = append(entries, e)
	}
	if len(entries) == 0 {
		return nil, errors.New("line 2: no record follows the header")
	}
	return entries, nil
}

// parseRow returns the column to blame with its error.
func parseRow(row []string) (e Entry, column int, err error) {
	for i, cell := range row {
		if err := checkCell(cell); err != nil {
			return Entry{}, i, err
		}
	}
	e = Entry{
		Name: row[0], Port: row[1], Description: row[3], Assignee: row[4], Contact: row[5], RegistrationDate: row[6],
		ModificationDate: row[7], Reference: row[8], ServiceCode: row[9], UnauthorizedUse: row[10], Notes: row[11],
	}
	if e.First, e.Last, err = parsePort(e.Port); err != nil {
		return Entry{}, 1, err
	}
	if e.Name == "" && !e.HasPort() {
		return Entry{}, 0, errors.New("neither a name nor a port")
	}
	var known bool
	if e.Protocol, known = ParseProtocol(row[2]); !known {
		return Entry{}, 2, fmt.Errorf("%.20q, want tcp, udp, sctp, dccp or nothing", row[2])
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
