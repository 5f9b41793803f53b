package ianadb

import (
	"bytes"
	"encoding/xml"
	"errors"
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

func attribute(start xml.StartElement, name string) string {
	for _, a := range start.Attr {
		if a.Name.Local == name {
			return a.Value
		}
	}
	return ""
}

// An xmlReader reads tokens and sees to it that elements nest. The decoder would, but its plain tokens come sooner, and
// what it adds on top (name spaces, entities from a document type) is refused here.
type xmlReader struct {
	in     input
	tokens *xml.Decoder
	open   []string // the elements that have begun
	text   []byte   // of the cell being read; kept for its memory
}

const (
	maxDepth = 16          // the registry has 5
	maxText  = 4 * maxCell // of a cell before it is tidied, which leaves maxCell of it
)

// root reads up to the root and makes sure that it is the registry's.
func (x *xmlReader) root() error {
	for {
		token, err := x.next()
		if errors.Is(err, io.EOF) {
			return x.errorf("no element, want the registry")
		} else if err != nil {
			return err
		}
		start, ok := token.(xml.StartElement)
		if !ok {
			continue
		}
		namespace, id := attribute(start, "xmlns"), attribute(start, "id")
		switch {
		case start.Name.Local == "html":
			return x.errorf("this is an HTML page, want the registry as CSV or XML from %s", origin)
		case start.Name.Local != "registry" || namespace != xmlNamespace:
			return x.errorf("<%.40s> of the namespace %.60q, want <registry> of %q", start.Name.Local, namespace, xmlNamespace)
		case id != xmlID:
			return x.errorf("this is IANA's registry %.60q, want %q", id, xmlID)
		}
		return nil
	}
}

// end makes sure that nothing but comments follows the root.
func (x *xmlReader) end() error {
	for {
		token, err := x.next()
		if errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		if _, ok := token.(xml.StartElement); ok {
			return x.errorf("a second root")
		}
	}
}

// skip reads to the end of an element that has begun. What it skips must not be what we came for.
func (x *xmlReader) skip() error {
	for depth := len(x.open); len(x.open) >= depth; {
		token, err := x.next()
		if err != nil {
			return err
		}
		if start, ok := token.(xml.StartElement); ok && start.Name.Local == "record" {
			return x.errorf("a record in <%s>, want it in the registry itself", x.open[len(x.open)-2])
		}
	}
	return nil
}

// next returns a StartElement, an EndElement or CharData, which is good until the next call. Only outside of the root
// is there an end: io.EOF.
func (x *xmlReader) next() (xml.Token, error) {
	for {
		token, err := x.tokens.RawToken()
		if err != nil {
			return nil, x.readError(err)
		}
		switch t := token.(type) {
		case xml.StartElement:
			switch {
			case t.Name.Space != "":
				return nil, x.errorf("<%.40s:%.40s> has a prefix, want none", t.Name.Space, t.Name.Local)
			case len(x.open) > 0 && attribute(t, "xmlns") != "":
				return nil, x.errorf("<%.40s> is of another namespace", t.Name.Local)
			case len(x.open) == maxDepth:
				return nil, x.errorf("elements nest deeper than %d", maxDepth)
			}
			x.open = append(x.open, t.Name.Local)
			return t, nil
		case xml.EndElement:
			if t.Name.Space != "" || len(x.open) == 0 || x.open[len(x.open)-1] != t.Name.Local {
				return nil, x.errorf("</%.40s> ends what has not begun", t.Name.Local)
			}
			x.open = x.open[:len(x.open)-1]
			return t, nil
		case xml.CharData:
			if len(x.open) == 0 && len(bytes.TrimSpace(t)) > 0 {
				return nil, x.errorf("%.40q outside of the root", bytes.TrimSpace(t))
			}
			return t, nil
		case xml.Directive:
			return nil, x.errorf("<!%.40s>: a document type is not read, and the registry has none", t)
		}
	}
}

// readError puts the line first and tells the end of the file from what is wrong in it.
func (x *xmlReader) readError(err error) error {
	var syntax *xml.SyntaxError
	switch {
	case x.in.source.err != nil:
		return readError(x.in.source.err)
	case errors.Is(err, io.EOF) && len(x.open) > 0:
		return x.errorf("the file ends within <%s>: it looks cut off", x.open[len(x.open)-1])
	case errors.Is(err, io.EOF):
		return err
	case !errors.As(err, &syntax): // an encoding other than UTF-8
		return x.errorf("%w", err)
	case strings.Contains(syntax.Msg, "unexpected EOF"):
		return fmt.Errorf("line %d: the file ends within a tag or a comment: it looks cut off", syntax.Line)
	}
	return fmt.Errorf("line %d: %s", syntax.Line, syntax.Msg)
}

func (x *xmlReader) errorf(format string, args ...any) error {
	return fmt.Errorf("line %d: "+format, append([]any{x.line()}, args...)...)
}

// line is where the last token ended.
func (x *xmlReader) line() int {
	line, _ := x.tokens.InputPos()
	return line
}
