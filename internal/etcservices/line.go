package etcservices

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/portd/portd/internal/ianadb"
)

const (
	// maxLine is the longest service line in bytes, its end not counted. The GNU C library takes any length, but musl
	// reads 128 bytes and takes the rest of a longer line for another, even in a comment.
	maxLine = 126
	// maxName leaves room for the place behind the name.
	maxName = maxLine - len("  65535/sctp")
)

// A line is one service line: all names of a place, or as many as it holds.
type line struct {
	n           int // of the lines above it
	at          place
	names       []string
	description string // of the first name
}

// fits reports whether the line holds one more name.
func (l *line) fits(name string) bool { return len(l.fields())+1+len(name) <= maxLine }

// fields are the line without its comment, in columns that hold any name of IANA's and any place.
func (l *line) fields() string {
	return strings.Join(append([]string{fmt.Sprintf("%-15s %-11v", l.names[0], l.at)}, l.names[1:]...), " ")
}

// text returns the line with its end, and whether the description had to be cut.
func (l *line) text() (s string, cut bool) {
	const sep = " # "
	s = fmt.Sprintf("%-31s", l.fields())
	if text, short := comment(l.description, maxLine-len(s)-len(sep)); text != "" {
		return s + sep + text + "\n", short
	}
	return strings.TrimRight(s, " ") + "\n", l.description != ""
}

// comment makes one line of at most room bytes from a cell: what a terminal or a C string would stumble over is replaced,
// what is too long is cut. Where not even the mark for that has room, it is empty.
func comment(cell string, room int) (text string, cut bool) {
	const more = "…"
	text = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return unicode.ReplacementChar
		}
		return r // for bytes that are no UTF-8, it is ReplacementChar already
	}, ianadb.Collapse(cell))
	if len(text) <= room {
		return text, false
	}
	end := room - len(more)
	if end <= 0 {
		return "", true
	}
	for !utf8.RuneStart(text[end]) {
		end--
	}
	return strings.TrimRight(text[:end], " ") + more, true
}

// faultOf says why services(5) cannot hold a name, or returns "".
func faultOf(name string) string {
	for i := range len(name) {
		switch c := name[i]; {
		case c == ' ' || '\t' <= c && c <= '\r': // as isspace(3) has it
			return "services(5) ends a name at white space"
		case c == '#':
			return "services(5) begins a comment at #"
		case c < ' ' || c > '~':
			return "a name in services(5) is printable ASCII"
		}
	}
	if len(name) > maxName {
		return fmt.Sprintf("the name has %d bytes; a line that every C library reads has room for %d", len(name), maxName)
	}
	return ""
}
