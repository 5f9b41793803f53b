package ianadb

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"io"
	"strings"
	"time"
)

// What the root of the registry's XML says of itself.
const (
	xmlNamespace = "http://www.iana.org/assignments"
	xmlID        = "service-names-port-numbers"
)

// ParseXML reads the registry in the XML that IANA publishes and makes its other forms from: the records in file order,
// cell by cell what the CSV of the same day has, and the day (YYYY-MM-DD), which the CSV does not say. It is as strict as
// ParseCSV, and knows of XML what IANA uses: no document type, no entities of its own, no prefixes.
func ParseXML(r io.Reader) (entries []Entry, date string, err error) { return parseXML(newInput(r)) }

func parseXML(in input) ([]Entry, string, error) {
	x := &xmlReader{in: in, tokens: xml.NewDecoder(in.buf)}
	if err := x.root(); err != nil {
		return nil, "", err
	}
	var all collector
	var date string
	for len(x.open) > 0 {
		token, err := x.next()
		if err != nil {
			return nil, "", err
		}
		child, ok := token.(xml.StartElement)
		if !ok {
			continue
		}
		switch child.Name.Local {
		case "record":
			line := x.line()
			e, err := x.record(child)
			if err != nil {
				return nil, "", err
			}
			if err := all.add(e, line); err != nil {
				return nil, "", err
			}
		case "updated":
			if date, err = x.date(); err != nil {
				return nil, "", err
			}
		default: // title, notes and people: no part of the CSV
			if err := x.skip(); err != nil {
				return nil, "", err
			}
		}
	}
	if len(all.entries) == 0 {
		return nil, "", x.errorf("no record in the registry")
	}
	if err := x.end(); err != nil {
		return nil, "", err
	}
	return all.entries, date, nil
}

// xmlColumns are the elements of a record whose text is a column. The others are xref, which is a contact or a reference,
// and assignee.
var xmlColumns = map[string]int{
	"name": nameColumn, "number": portColumn, "protocol": protocolColumn, "description": descriptionColumn,
	"sc": serviceCodeColumn, "unauthorized": unauthorizedColumn, "note": notesColumn,
}

// record reads a record that has begun.
func (x *xmlReader) record(start xml.StartElement) (Entry, error) {
	var row [columnCount]string
	line := x.line()
	for _, a := range start.Attr {
		switch a.Name.Local {
		case "date":
			row[registeredColumn] = a.Value
		case "updated":
			row[modifiedColumn] = a.Value
		}
	}
	var contact, reference []byte
	seen := make([]string, 0, columnCount)
	for depth := len(x.open); len(x.open) >= depth; {
		token, err := x.next()
		if err != nil {
			return Entry{}, err
		}
		switch t := token.(type) {
		case xml.CharData:
			if len(bytes.TrimSpace(t)) > 0 {
				return Entry{}, x.errorf("%.40q between the elements of a record", bytes.TrimSpace(t))
			}
		case xml.StartElement:
			name := t.Name.Local
			column, isText := xmlColumns[name]
			switch {
			case name == "xref" && attribute(t, "type") == "person":
				contact, err = x.xref(contact, t)
			case name == "xref":
				reference, err = x.xref(reference, t)
			case !isText && name != "assignee":
				err = x.errorf("<%.40s> in a record is unknown to this version: import the CSV instead", name)
			default:
				for _, s := range seen {
					if s == name {
						return Entry{}, x.errorf("a second <%s> in the record of line %d", name, line)
					}
				}
				seen = append(seen, name)
				if !isText {
					column = assigneeColumn
				}
				x.text, err = x.cell(x.text[:0], t)
				row[column] = tidy(x.text)
			}
			if err != nil {
				return Entry{}, err
			}
		}
	}
	row[contactColumn], row[referenceColumn] = tidy(contact), tidy(reference)
	if row[assigneeColumn] == "" { // older assignments name one person, who is both
		row[assigneeColumn] = row[contactColumn]
	}
	e, column, err := parseRow(row[:])
	if err != nil {
		return Entry{}, fmt.Errorf("line %d: %s: %w", line, columns[column], err)
	}
	return e, nil
}

// cell appends the text of an element that has begun, before it is tidied: references in brackets, paragraphs indented.
func (x *xmlReader) cell(b []byte, start xml.StartElement) ([]byte, error) {
	for depth := len(x.open); len(x.open) >= depth; {
		token, err := x.next()
		if err != nil {
			return nil, err
		}
		if len(b) > maxText {
			return nil, x.errorf("<%s> is longer than %d bytes", start.Name.Local, maxText)
		}
		switch t := token.(type) {
		case xml.CharData:
			b = append(b, t...)
		case xml.StartElement:
			switch t.Name.Local {
			case "xref":
				b, err = x.xref(b, t)
			case "br":
				b, err = append(b, '\n'), x.skip()
			case "paragraph":
				b = append(b, "        "...)
				b, err = x.cell(b, t)
			default:
				err = x.errorf("<%.40s> in <%s> is unknown to this version: import the CSV instead", t.Name.Local, start.Name.Local)
			}
			if err != nil {
				return nil, err
			}
		}
	}
	return b, nil
}

// xref appends a reference that has begun: what it says, else what it points to, in brackets.
func (x *xmlReader) xref(b []byte, start xml.StartElement) ([]byte, error) {
	kind, data := attribute(start, "type"), attribute(start, "data")
	switch kind {
	case "person", "draft", "uri", "note", "text":
	case "rfc":
		data = strings.ToUpper(data)
	default:
		return nil, x.errorf("a reference to a %.40q is unknown to this version: import the CSV instead", kind)
	}
	b = append(b, '[')
	before := len(b)
	for depth := len(x.open); len(x.open) >= depth; {
		token, err := x.next()
		if err != nil {
			return nil, err
		}
		switch t := token.(type) {
		case xml.CharData:
			b = append(b, t...)
		case xml.StartElement:
			return nil, x.errorf("<%.40s> in <xref>", t.Name.Local)
		}
	}
	if len(b) == before {
		b = append(b, data...)
	}
	return append(b, ']'), nil
}

// date reads the day of the edition.
func (x *xmlReader) date() (string, error) {
	text, err := x.cell(nil, xml.StartElement{Name: xml.Name{Local: "updated"}})
	if err != nil {
		return "", err
	}
	if _, err := time.Parse(time.DateOnly, string(text)); err != nil {
		return "", x.errorf("<updated> says %.40q, want YYYY-MM-DD", text)
	}
	return string(text), nil
}

// tidy lays out the white space of a cell as the CSV has it: no empty lines, and lines that were only folded for the
// XML are joined. Those have a blank before the line break and indentation after it; other breaks are meant, and stay.
func tidy(text []byte) string {
	if bytes.IndexByte(text, '\n') >= 0 {
		var lines []byte
		for line := range bytes.SplitSeq(text, []byte("\n")) {
			switch {
			case len(line) == 0:
			case len(lines) == 0:
				lines = append(lines, line...)
			case bytes.HasSuffix(lines, []byte(" ")) && line[0] == ' ':
				lines = append(bytes.TrimRight(lines, " "), ' ')
				lines = append(lines, bytes.TrimLeft(line, " ")...)
			default:
				lines = append(lines, '\n')
				lines = append(lines, line...)
			}
		}
		text = lines
	}
	return string(bytes.Trim(text, " \t\n"))
}
