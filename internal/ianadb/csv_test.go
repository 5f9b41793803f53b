package ianadb_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/portd/portd/internal/ianadb"
)

const header = "Service Name,Port Number,Transport Protocol,Description,Assignee,Contact,Registration Date," +
	"Modification Date,Reference,Service Code,Unauthorized Use Reported,Assignment Notes\r\n"

// line is a record of which the first cells are given, quoted where they must be.
func line(cells ...string) string {
	return strings.Join(cells, ",") + strings.Repeat(",", 12-len(cells)) + "\r\n"
}

func TestParseCSV(t *testing.T) {
	got, err := ianadb.ParseCSV(strings.NewReader(header +
		line("", "0", "tcp", "Reserved") +
		line("http-alt", "8008", "udp", "\"HTTP, \"\"alternate\"\"\n   port\"") +
		line("active-net", "3322-3325", "") +
		line("", "4748-4748", "", "Unassigned") +
		line("1password", "", "tcp") +
		line("cl/1", "172", "dccp")))
	want := []ianadb.Entry{
		{Port: "0", Protocol: ianadb.TCP, Description: "Reserved"},
		{Name: "http-alt", Port: "8008", First: 8008, Last: 8008, Protocol: ianadb.UDP, Description: "HTTP, \"alternate\"\n   port"},
		{Name: "active-net", Port: "3322-3325", First: 3322, Last: 3325},
		{Port: "4748-4748", First: 4748, Last: 4748, Description: "Unassigned"},
		{Name: "1password", Protocol: ianadb.TCP},
		{Name: "cl/1", Port: "172", First: 172, Last: 172, Protocol: ianadb.DCCP},
	}
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("error %v (-want +got):\n%s", err, diff)
	}
}

func TestParseCSVRefuses(t *testing.T) {
	for name, tt := range map[string]struct{ csv, line, reason string }{
		"nothing":                     {"", "line 1", "empty"},
		"an HTML page":                {"<!DOCTYPE html>\n<html lang=\"en\">\n", "line 1", "header"},
		"a quoted HTML page":          {"<html lang=\"en\">\n", "line 1", "bare \""},
		"a byte order mark":           {"\ufeff" + header + line("a", "1", "tcp"), "line 1", "header"},
		"another column":              {strings.Replace(header, "Contact", "Contacts", 1) + line("a", "1", "tcp"), "line 1", "header"},
		"a header alone":              {header, "line 2", "no record"},
		"too few cells":               {header + line("a", "1", "tcp") + "b,2,tcp\r\n", "line 3", "number of fields"},
		"too many cells":              {header + line("a", "1", "tcp") + "," + line("b", "2", "tcp"), "line 3", "number of fields"},
		"an end within a quote":       {header + line("a", "1", "tcp") + "b,2,tcp,\"begun", "line 3", "quote"},
		"a wrong quote":               {header + line("a", "1", "tcp", "an \"inch\""), "line 2", "bare \""},
		"port 65536":                  {header + line("a", "1", "tcp") + line("b", "65536", "tcp"), "line 3: Port Number", `"65536"`},
		"a range past the end":        {header + line("a", "65000-65536", "tcp"), "line 2: Port Number", `"65536"`},
		"a range backwards":           {header + line("a", "80-70", "tcp"), "line 2: Port Number", "80-70 runs backwards"},
		"half a range":                {header + line("a", "80-", "tcp"), "line 2: Port Number", `""`},
		"a negative port":             {header + line("a", "-1", "tcp"), "line 2: Port Number", `""`},
		"three ends":                  {header + line("a", "1-2-3", "tcp"), "line 2: Port Number", `"2-3"`},
		"a sign":                      {header + line("a", "+80", "tcp"), "line 2: Port Number", `"+80"`},
		"a leading zero":              {header + line("a", "080", "tcp"), "line 2: Port Number", `"080"`},
		"a blank":                     {header + line("a", " 80", "tcp"), "line 2: Port Number", `" 80"`},
		"an unknown protocol":         {header + line("a", "1", "quic"), "line 2: Transport Protocol", `"quic"`},
		"a protocol in capital":       {header + line("a", "1", "TCP"), "line 2: Transport Protocol", `"TCP"`},
		"two protocols":               {header + line("a", "1", "tcp/udp"), "line 2: Transport Protocol", `"tcp/udp"`},
		"neither name nor port":       {header + line("", "", "tcp", "lost"), "line 2: Service Name", "neither"},
		"Latin-1":                     {header + line("a", "1", "tcp", "FORT\xc9"), "line 2: Description", "UTF-8"},
		"an escape sequence":          {header + line("a", "1", "tcp", "\x1b[31mred"), "line 2: Description", "U+001B"},
		"text that turns round":       {header + line("a", "1", "tcp", "safe \u202egnihtemos"), "line 2: Description", "U+202E"},
		"a NUL":                       {header + line("a\x00b", "1", "tcp"), "line 2: Service Name", "U+0000"},
		"an endless cell":             {header + line("a", "1", "tcp", strings.Repeat("x", 1<<15)), "line 2: Description", "32768 bytes"},
		"an end within a record":      {header + line("a", "1", "tcp") + "b,2", "line 3", "cut off within a record"},
		"an end at a break in a cell": {header + line("a", "1", "tcp") + "b,2,tcp,\"one\n", "line 3", "cut off within a record"},
		"an end within the last cell": {header + line("a", "1", "tcp") + strings.TrimSuffix(line("b", "2", "tcp"), "\r\n") + "alias of", "line 3", "looks cut off"},
		"an end before a line break":  {header + strings.TrimSuffix(line("a", "1", "tcp"), "\r\n"), "line 2", "looks cut off"},
		"a record twice":              {header + line("a", "1", "tcp", "x") + line("b", "2") + line("a", "1", "tcp", "y"), "line 4", `"a 1/tcp" is a duplicate of line 2`},
		"in other letters":            {header + line("abc", "1", "tcp") + line("ABC", "1", "tcp"), "line 3", `duplicate of line 2`},
		"a port as a range of one":    {header + line("abc", "1", "tcp") + line("abc", "1-1", "tcp"), "line 3", `duplicate of line 2`},
		"a nameless record twice":     {header + line("", "1-9", "", "Unassigned") + line("", "1-9", "", "Reserved"), "line 3", `"1-9" is a duplicate of line 2`},
		"a name without a port twice": {header + line("rdp", "", "", "x") + line("rdp", "", "", "x"), "line 3", `"rdp" is a duplicate of line 2`},
		"a name of two words":         {header + line("a b", "1", "tcp"), "line 2: Service Name", `"a b" has ' '`},
		"a name of two lines":         {header + line("\"a\nb\"", "1", "tcp"), "line 2: Service Name", `has '\n'`},
		"a name of another alphabet":  {header + line("ѕsh", "22", "tcp"), "line 2: Service Name", `has 'ѕ'`}, // not an s
		"a description for a name":    {header + line(strings.Repeat("World-Wide-Web", 5), "1", "tcp"), "line 2: Service Name", "70 bytes, want at most 60"},
		"many wide ranges":            {header + wideRanges(20), "line 16", `want at most 948574`},
		// The line is that of the cell, also where cells before it have line breaks.
		"a late line": {header + line("a", "1", "tcp", "\"one\ntwo\nthree\"") + line("b", "bad", "tcp"), "line 5: Port Number", `"bad"`},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := ianadb.ParseCSV(strings.NewReader(tt.csv))
			if err == nil || !strings.Contains(err.Error(), tt.line) || !strings.Contains(err.Error(), tt.reason) {
				t.Errorf("error %v, want one of %s about %s", err, tt.line, tt.reason)
			}
			if got != nil {
				t.Errorf("%d entries beside the error", len(got))
			}
		})
	}
}

// TestParseCSVLongest: the longest record is no piece too long, even if all of it needs escaping.
func TestParseCSVLongest(t *testing.T) {
	cells := []string{"a", "1", "tcp"}
	for len(cells) < 12 {
		cells = append(cells, `"`+strings.Repeat(`""`, 1<<15-1)+`"`)
	}
	got, err := ianadb.ParseCSV(strings.NewReader(header + line("b") + line(cells...)))
	if err != nil || len(got) != 2 || len(got[1].Notes) != 1<<15-1 {
		t.Errorf("%d entries, error %v", len(got), err)
	}
}

func TestCompileRefuses(t *testing.T) {
	for _, date := range []string{"2026-8-17", "2026-02-30", "yesterday"} {
		if _, err := ianadb.Compile([]ianadb.Entry{{Name: "a"}}, ianadb.Source{Date: date}); err == nil {
			t.Errorf("a registry of %s was compiled", date)
		}
	}
	wide := slices.Repeat([]ianadb.Entry{{Name: "a", Port: "0-65535", Last: 65535}}, 20)
	if _, err := ianadb.Compile(wide, ianadb.Source{}); err == nil || !strings.Contains(err.Error(), "1310720 ports") {
		t.Errorf("20 times all ports: error %v", err)
	}
}

// wideRanges are n services on every port.
func wideRanges(n int) string {
	var all strings.Builder
	for i := range n {
		all.WriteString(line(fmt.Sprintf("wide%d", i), "0-65535"))
	}
	return all.String()
}

func TestParseCSVLimits(t *testing.T) {
	portless := func(i int) string { return line(fmt.Sprint("a", i)) }
	onePort := func(i int) string { return line(fmt.Sprint("a", i), "80", "tcp") }
	oneName := func(i int) string { return line([]string{"abc", "ABC"}[i%2], fmt.Sprint(i), "tcp") }
	for want, tt := range map[string]struct {
		record func(i int) string
		fit    int
	}{
		"line 100002: more than 100000 records, which is no registry":               {portless, 100_000},
		"line 1002: more than 1000 records that hold port 80, which is no registry": {onePort, 1000},
		`line 1002: more than 1000 records of the name "abc", which is no registry`: {oneName, 1000},
	} {
		var file strings.Builder
		file.WriteString(header)
		for i := range tt.fit {
			file.WriteString(tt.record(i))
		}
		if _, err := ianadb.ParseCSV(strings.NewReader(file.String())); err != nil {
			t.Errorf("%d records: %v", tt.fit, err)
		}
		file.WriteString(tt.record(tt.fit))
		if _, err := ianadb.ParseCSV(strings.NewReader(file.String())); err == nil || err.Error() != want {
			t.Errorf("%v, want %s", err, want)
		}
	}
}

// writeCSV is WriteCSV from and to memory.
func writeCSV(t testing.TB, entries []ianadb.Entry) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := ianadb.WriteCSV(&b, slices.Values(entries)); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// TestWriteCSVQuotes: a cell has quotes where it needs them and nowhere else, and its line breaks stay what they are.
func TestWriteCSVQuotes(t *testing.T) {
	file := header + line("a", "1", "tcp", `"one, two"`, `"a ""b"""`, "\"one\n  two\"", "  blanks  ", "don't", "#", "=1", `\.`, "\t")
	entries, err := ianadb.ParseCSV(strings.NewReader(file))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(file, string(writeCSV(t, entries))); diff != "" {
		t.Errorf("(-read +written):\n%s", diff)
	}
}

type brokenPipe struct{}

func (brokenPipe) Write([]byte) (int, error) { return 0, io.ErrClosedPipe }

func TestWriteCSVFails(t *testing.T) {
	if err := ianadb.WriteCSV(brokenPipe{}, slices.Values(entriesOf(ianadb.Embedded()))); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("error %v", err)
	}
}

func entriesOf(db *ianadb.DB) (all []ianadb.Entry) {
	for r := range db.All() {
		all = append(all, r.Entry())
	}
	return all
}

// found reports whether an entry comes up under its name and under its ports.
func found(db *ianadb.DB, e ianadb.Entry) bool {
	named, held := e.Name == "", !e.HasPort()
	for r := range db.ByName(e.Name, e.Protocol) {
		named = named || r.Entry() == e
	}
	for r := range db.ByPort(e.Last, e.Protocol) {
		held = held || r.Entry() == e
	}
	return named && held
}
