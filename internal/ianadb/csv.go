package ianadb

import (
	"bufio"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"
	"strings"
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
		return nil, csvError(err, in, 1)
	case !slices.Equal(header, columns):
		return nil, fmt.Errorf("line 1: header %.80q, want %q", strings.Join(header, ","), strings.Join(columns, ","))
	}
	rows.ReuseRecord = true
	var all collector
	next := 2 // the line in which the next record begins
	for {
		in.begin()
		row, err := rows.Read()
		if errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return nil, csvError(err, in, next)
		}
		next, _ = rows.FieldPos(notesColumn)
		next += strings.Count(row[notesColumn], "\n") + 1
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
	if in.meter.last != '\n' { // the last record may be whole or not: its last cell alone could tell
		line, _ := rows.FieldPos(notesColumn)
		return nil, fmt.Errorf("line %d: no line break after the last record: the file looks cut off", line)
	}
	return all.entries, nil
}

// csvError puts the line first, in which the record began unless the error knows better. A file that breaks off within a
// record is far more likely than one with a stray quote.
func csvError(err error, in input, line int) error {
	var at *csv.ParseError
	if !errors.As(err, &at) {
		return readError(line, err)
	}
	if in.atEnd() && (in.meter.last != '\n' || errors.Is(err, csv.ErrQuote)) {
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
