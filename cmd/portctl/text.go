package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"text/tabwriter"
	"unicode"
	"unicode/utf16"

	pb "github.com/portd/portd/proto/portd/v1"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// A table is columns that are as wide as they need to be.
type table struct {
	w    *tabwriter.Writer
	text *bytes.Buffer
	out  io.Writer
	rows *int
	// remarks stand below the row with their number, and outside of the columns.
	remarks map[int][]string
}

func (c *ctl) table(header ...string) table {
	t := table{text: &bytes.Buffer{}, out: c.out, rows: new(int), remarks: map[int][]string{}}
	t.w = tabwriter.NewWriter(t.text, 0, 8, 2, ' ', 0)
	if len(header) > 0 {
		t.row(header...)
	}
	return t
}

// listing is a table of n things, whose header stands over something and, with -q, over nothing.
func (c *ctl) listing(n int, header ...string) table {
	switch {
	case n == 0:
		c.say("there are none")
		return c.table()
	case c.quiet:
		return c.table()
	}
	return c.table(header...)
}

// row prints a dash where a cell is empty, but for the last.
func (t table) row(cells ...string) {
	for i, cell := range cells {
		cells[i] = printable(cell)
		if cell == "" && i < len(cells)-1 {
			cells[i] = "-"
		}
	}
	fmt.Fprintln(t.w, strings.Join(cells, "\t"))
	*t.rows++
}

// remark puts a line below the last row that is as long as it is, whatever the columns are.
func (t table) remark(line string) {
	t.remarks[*t.rows] = append(t.remarks[*t.rows], printable(line))
}

// flush prints the table, and no blanks at the ends of its lines.
func (t table) flush() error {
	if err := t.w.Flush(); err != nil {
		return err
	}
	n := 0
	for line := range strings.Lines(t.text.String()) {
		n++
		for _, l := range append([]string{line}, t.remarks[n]...) {
			if _, err := fmt.Fprintln(t.out, strings.TrimRight(l, " \n")); err != nil {
				return err
			}
		}
	}
	t.text.Reset()
	clear(t.remarks)
	*t.rows = 0
	return nil
}

// printJSON prints one message on one line. protojson spaces its output at random, lest somebody compare bytes.
func (c *ctl) printJSON(m proto.Message) error {
	text, err := protojson.Marshal(m)
	if err != nil {
		return err
	}
	var line bytes.Buffer
	if err := json.Compact(&line, text); err != nil {
		return err
	}
	_, err = fmt.Fprintln(c.out, plainJSON(line.String()))
	return err
}

// plainJSON writes as \uXXXX what a terminal might obey or hide. Only strings can have it, and they are the same.
func plainJSON(text string) string {
	if !strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return text
	}
	var b strings.Builder
	for _, r := range text {
		if unicode.IsPrint(r) {
			b.WriteRune(r)
			continue
		}
		for _, unit := range utf16.AppendRune(nil, r) {
			fmt.Fprintf(&b, `\u%04x`, unit)
		}
	}
	return b.String()
}

func (c *ctl) jsonUnless(err error, m proto.Message) error {
	if err != nil {
		return err
	}
	return c.printJSON(m)
}

// word is an enum's value in lower case without what all its values begin with: PORT_CLASS_SYSTEM is "system".
func word(e interface {
	protoreflect.Enum
	String() string
},
) string {
	name := e.String()
	zero := string(e.Descriptor().Values().ByNumber(0).Name())
	return strings.ToLower(strings.TrimPrefix(name, strings.TrimSuffix(zero, "UNSPECIFIED")))
}

func protoWord(p pb.Protocol) string {
	if p == pb.Protocol_PROTOCOL_UNSPECIFIED {
		return "all"
	}
	return word(p)
}

func portsText(r *pb.PortRange) string {
	if r.GetLast() == 0 || r.GetLast() == r.GetFirst() {
		return strconv.Itoa(int(r.GetFirst()))
	}
	return fmt.Sprintf("%d-%d", r.GetFirst(), r.GetLast())
}

// printable is s with a question mark for all that a terminal might obey or hide. Imported registries and the names of
// programs may hold anything.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
}

const (
	usualWidth = 100 // of a line that goes to no terminal
	mostWidth  = 120 // that is still pleasant to read
	leastWidth = 40
)

// width is how many columns lines of prose may have.
func (c *ctl) width() int {
	f, ok := c.stdout.(*os.File)
	if !ok {
		return usualWidth
	}
	size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil || size.Col == 0 {
		return usualWidth
	}
	return min(max(int(size.Col), leastWidth), mostWidth)
}
