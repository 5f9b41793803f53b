package ianadb

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"strings"
)

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
		x.in.begin()
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
			return nil, x.errorf("%.40q: a document type is not read, and the registry has none", "<!"+string(t))
		}
	}
}

// readError puts the line first and tells the end of the file from what is wrong in it.
func (x *xmlReader) readError(err error) error {
	var syntax *xml.SyntaxError
	switch {
	case x.in.meter.err != nil:
		return readError(x.line(), x.in.meter.err)
	case errors.Is(err, io.EOF) && len(x.open) > 0:
		return x.errorf("the file ends within <%s>: it looks cut off", x.open[len(x.open)-1])
	case errors.Is(err, io.EOF):
		return err
	case !errors.As(err, &syntax): // an encoding other than UTF-8
		return x.errorf("%w", err)
	case strings.Contains(syntax.Msg, "unexpected EOF"):
		return fmt.Errorf("line %d: the file ends within a tag or a comment: it looks cut off", syntax.Line)
	}
	return fmt.Errorf("line %d: not XML: %.100q", syntax.Line, syntax.Msg) // which may quote the file, as it is
}

func (x *xmlReader) errorf(format string, args ...any) error {
	return fmt.Errorf("line %d: "+format, append([]any{x.line()}, args...)...)
}

// line is where the last token ended.
func (x *xmlReader) line() int {
	line, _ := x.tokens.InputPos()
	return line
}

func attribute(start xml.StartElement, name string) string {
	for _, a := range start.Attr {
		if a.Name.Local == name {
			return a.Value
		}
	}
	return ""
}
