package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"text/tabwriter"

	pb "github.com/portd/portd/proto/portd/v1"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// A table is columns that are as wide as they need to be.
type table struct{ w *tabwriter.Writer }

func (c *ctl) table(header ...string) table {
	t := table{tabwriter.NewWriter(c.out, 0, 8, 2, ' ', 0)}
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
	for i, cell := range cells[:len(cells)-1] {
		if cell == "" {
			cells[i] = "-"
		}
	}
	fmt.Fprintln(t.w, strings.Join(cells, "\t"))
}

func (t table) flush() error { return t.w.Flush() }

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
	line.WriteByte('\n')
	_, err = c.out.Write(line.Bytes())
	return err
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
