package ianadb_test

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"errors"
	"io"
	"os"
	"runtime"
	"strings"
	"testing"
	"testing/iotest"
	"unicode"

	"github.com/google/go-cmp/cmp"

	"github.com/portd/portd/internal/ianadb"
)

// excerpts are a hundred records of the registry as IANA's XML has them and as its CSV has them, the awkward ones among
// them; the people of the XML are invented.
func excerpts(t testing.TB) (xml, csv []byte) {
	t.Helper()
	xml, err := os.ReadFile("testdata/excerpt.xml")
	if err != nil {
		t.Fatal(err)
	}
	csv, err = os.ReadFile("testdata/excerpt.csv")
	if err != nil {
		t.Fatal(err)
	}
	return xml, csv
}

func TestParse(t *testing.T) {
	xml, csv := excerpts(t)
	entries, err := ianadb.ParseCSV(bytes.NewReader(csv))
	if err != nil {
		t.Fatal(err)
	}
	for format, file := range map[string][]byte{"xml": xml, "csv": csv} {
		// A CSV does not say of when it is; its latest entry does.
		want := &ianadb.File{SHA256: sha256.Sum256(file), Entries: entries, Date: "2026-07-23"}
		if format == "xml" {
			want.Date, want.Dated = "2026-08-17", true
		}
		for name, r := range map[string]io.Reader{
			"whole":         bytes.NewReader(file),
			"byte by byte":  iotest.OneByteReader(bytes.NewReader(file)),
			"data with EOF": iotest.DataErrReader(bytes.NewReader(file)),
		} {
			got, err := ianadb.Parse(r)
			if diff := cmp.Diff(want, got); err != nil || diff != "" {
				t.Errorf("%s, %s: error %v (-want +got):\n%s", format, name, err, diff)
			}
		}
		broken := errors.New("connection reset")
		for _, n := range []int{0, 300, 10_000} {
			_, err := ianadb.Parse(io.MultiReader(bytes.NewReader(file[:n]), iotest.ErrReader(broken)))
			if !errors.Is(err, broken) {
				t.Errorf("%s, broken after %d bytes: error %v", format, n, err)
			}
		}
	}
}

func TestParseRefuses(t *testing.T) {
	xml, csv := excerpts(t)
	var zipped bytes.Buffer
	z := gzip.NewWriter(&zipped)
	z.Write(csv)
	z.Close()
	for name, tt := range map[string]struct{ file, reason string }{
		"nothing":                {"", "line 1: this is empty"},
		"white space":            {" \r\n\n", "line 1: this is empty"},
		"an HTML page":           {"\n<!DOCTYPE html>\n<html><body>404</body></html>", "line 1: this is an HTML page, want the registry as CSV or XML from https://www.iana.org/"},
		"HTML without a doctype": {"<HTML><head>", "line 1: this is an HTML page"},
		"XHTML":                  {"<?xml version=\"1.0\"?>\n<html xmlns=\"http://www.w3.org/1999/xhtml\">", "line 1: this is an HTML page"},
		"XHTML after a comment":  {"<?xml version=\"1.0\"?>\n<!--" + strings.Repeat("\n", 600) + "--><html/>", "line 602: this is an HTML page"},
		"JSON":                   {`{"error": "not found"}`, "line 1: this is JSON"},
		"JSON in a list":         {"[\n1]", "line 1: this is JSON"},
		"gzip":                   {zipped.String(), "line 1: this is compressed by gzip"},
		"a spreadsheet":          {"PK\x03\x04\x14", "line 1: this is a zip archive or a spreadsheet"},
		"a byte order mark":      {"\ufeff" + string(csv), "line 1: this begins with a byte order mark"},
		"one before XML":         {"\ufeff" + string(xml), "line 1: this begins with a byte order mark"},
		"UTF-16":                 {"\xff\xfeS\x00e\x00", "line 1: this is UTF-16"},
		"a program":              {"\x7fELF\x02\x01\x01\x00", "line 1: this is not text"},
		"our own blob":           {"ianaport\x01\x00\x00\x00", "line 1: this is a registry that was compiled already"},
		"/etc/services":          {"# Network services\nhttp\t80/tcp\twww\n", `line 1: header "# Network services", want "Service Name,`},
		"another page of IANA's": {"Value,Description,Reference\r\n0,Reserved,[RFC6335]\r\n", `line 1: header "Value,`},
		"half a CSV":             {string(csv[:len(csv)/2]), "looks cut off within a record"},
		"half an XML":            {string(xml[:len(xml)/2]), "looks cut off"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := ianadb.Parse(strings.NewReader(tt.file))
			if err == nil || !strings.Contains(err.Error(), tt.reason) || !strings.HasPrefix(err.Error(), "line ") {
				t.Errorf("error %v, want one with %q", err, tt.reason)
			}
			if got != nil {
				t.Errorf("%d entries beside the error", len(got.Entries))
			}
		})
	}
}

// endless never ends, and knows how much was read of it.
type endless struct {
	what string
	n    int
}

func (e *endless) Read(p []byte) (int, error) {
	n := 0
	for n < len(p) {
		n += copy(p[n:], e.what[(e.n+n)%len(e.what):])
	}
	e.n += n
	return n, nil
}

// TestParseEnds: a file that does not end is given up soon, with the line to blame, and what it takes of memory stays in
// proportion. Left alone, encoding/csv makes 1 GiB of the commas, and encoding/xml 400 MiB of the attributes.
func TestParseEnds(t *testing.T) {
	const tooLong = "a record of more than 1 MiB, which is no registry"
	root, _, _ := strings.Cut(xmlFile("<record>"), "<record>")
	for name, tt := range map[string]struct {
		begin, forever, reason string
		most                   int // MiB read
	}{
		"a cell":             {header + `a,1,tcp,"`, "x", "line 2: " + tooLong, 1},
		"lines of a cell":    {header + line("a", "1", "tcp") + `b,2,tcp,"`, "x\n", "line 3: " + tooLong, 1},
		"a last cell":        {header + strings.Repeat(",", 11) + "\"\n", "x\n", "line 2: " + tooLong, 1},
		"a header":           {"", ",", "line 1: " + tooLong, 1},
		"a row":              {header + line("a", "1", "tcp", "\"two\nlines\""), ",", "line 4: " + tooLong, 1},
		"a row after notes":  {header + "a,1" + strings.Repeat(",", 10) + "\"two\nlines\"\r\n", ",", "line 4: " + tooLong, 1},
		"one record":         {header, line("a", "1", "tcp"), `line 3: "a 1/tcp" is a duplicate of line 2`, 1},
		"a quote":            {header, line("a", "1", "tcp", `"b`), `line 2: extraneous or missing " in quoted-field`, 1},
		"empty lines":        {header, "\n", "line 2: " + tooLong, 1},
		"text in XML":        {root + "<record><name>", "x", "line 3: " + tooLong, 1},
		"attributes":         {root + "<record ", "a='' ", "line 3: " + tooLong, 1},
		"a comment":          {root + "<!-- ", "x", "line 3: " + tooLong, 1},
		"elements in a cell": {root + "<record><note>", "<br/>", "line 3: <note> is longer than 131068 bytes", 1},
		"elements":           {root, "<people>" + strings.Repeat("x", 1<<16) + "</people>\n", "more than 16 MiB, which is no registry", 16},
	} {
		t.Run(name, func(t *testing.T) {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			rest := &endless{what: strings.Repeat(tt.forever, 1+1<<12/len(tt.forever))}
			_, err := ianadb.Parse(io.MultiReader(strings.NewReader(tt.begin), rest))
			runtime.ReadMemStats(&after)
			if err == nil || !strings.HasSuffix(err.Error(), tt.reason) || !strings.HasPrefix(err.Error(), "line ") {
				t.Errorf("error %v, want %s", err, tt.reason)
			}
			if rest.n > (tt.most+1)<<20 {
				t.Errorf("%d bytes were read", rest.n)
			}
			if took := (after.TotalAlloc - before.TotalAlloc) >> 20; tt.most == 1 && took > 200 {
				t.Errorf("%d MiB were allocated in all", took)
			}
		})
	}
}

func compile(t testing.TB, entries []ianadb.Entry) *ianadb.DB {
	t.Helper()
	blob, err := ianadb.Compile(entries, ianadb.Source{})
	if err != nil {
		t.Fatal(err)
	}
	db, err := ianadb.Open(string(blob))
	if err != nil {
		t.Fatal(err)
	}
	return db
}

// FuzzParse: what is accepted, in either form, can be compiled and opened and written again, and is still the same.
func FuzzParse(f *testing.F) {
	xml, csv := excerpts(f)
	f.Add(csv)
	f.Add(xml)
	f.Add(csv[:8_000]) // breaks off within a record
	f.Add(xml[:8_000])
	f.Add([]byte(header + line("cl/1", "172", "tcp", "\"a\"\"b,\nc\"") + line("x11", "6000-6063", "udp") + line("dns", "", "") + line("", "0", "", "Reserved")))
	f.Add([]byte(header + line("http", "80", "tcp") + line("HTTP", "80", "sctp") + line("http", "8080", "tcp") + line("", "1-65535", "", "Unassigned")))
	f.Add([]byte(xmlFile(`<record date="2026" updated="2027"><name>a</name><note>b<br/><xref type="rfc" data="rfc1"/> &lt;c&#x3e; <![CDATA[<d>]]> e
   f<paragraph>g</paragraph></note><xref type="text">h</xref><assignee><xref type="person" data="i"/></assignee></record>`)))
	f.Add([]byte(`<?xml version="1.0"?><!DOCTYPE r [<!ENTITY a "b">]>` + xmlFile("<record><name>&a;</name></record>")))
	f.Add([]byte("<html>"))
	f.Fuzz(func(t *testing.T, b []byte) {
		file, err := ianadb.Parse(bytes.NewReader(b))
		if err != nil {
			if !strings.HasPrefix(err.Error(), "line ") || len(err.Error()) > 700 || strings.ContainsFunc(err.Error(), unicode.IsControl) {
				t.Errorf("a refusal without a line, or not fit for a terminal: %.1000q", err)
			}
			return
		}
		if want := sha256.Sum256(b); file.SHA256 != want {
			t.Errorf("digest %x, want %x", file.SHA256, want)
		}
		again, err := ianadb.ParseCSV(bytes.NewReader(writeCSV(t, file.Entries)))
		if diff := cmp.Diff(file.Entries, again); err != nil || diff != "" {
			t.Errorf("written and read: error %v (-want +got):\n%s", err, diff)
		}
		db := compile(t, file.Entries)
		if diff := cmp.Diff(file.Entries, entriesOf(db)); diff != "" {
			t.Errorf("compiled and opened (-want +got):\n%s", diff)
		}
		for _, e := range file.Entries {
			if !found(db, e) {
				t.Errorf("not found again: %+v", e)
			}
		}
		if changes := ianadb.Diff(db, db); len(changes) > 0 {
			t.Errorf("differs from itself: %v", changes)
		}
	})
}
