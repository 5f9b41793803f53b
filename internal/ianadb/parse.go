package ianadb

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	digest "hash" // the package has a function hash
	"io"
	"slices"
	"strings"
)

// A File is an edition of the registry as it was read from outside.
type File struct {
	Date    string   // YYYY-MM-DD; empty where nothing in the file tells
	Dated   bool     // the file says so itself, as XML does; the day of a CSV is that of its latest entry
	SHA256  [32]byte // of the bytes read
	Entries []Entry  // in file order
}

// MaxFile is the size in bytes beyond which no file is read on: four times the XML of 2026.
const MaxFile = 16 << 20

// Parse reads IANA's registry from r, to its end: the CSV or the XML, told apart by how they begin. It is as strict as
// ParseCSV and ParseXML, and says of other things what they look like. An error of r is wrapped.
func Parse(r io.Reader) (*File, error) {
	in := newInput(r)
	f := &File{}
	begin, err := in.buf.Peek(sniffed)
	switch {
	case err != nil && !errors.Is(err, io.EOF):
		return nil, readError(1, err)
	case looksLike(begin) != "":
		return nil, fmt.Errorf("line 1: %s, want the registry as CSV or XML from %s", looksLike(begin), origin)
	case bytes.HasPrefix(bytes.TrimSpace(begin), []byte("<")):
		f.Entries, f.Date, err = parseXML(in)
		f.Dated = f.Date != ""
	default:
		f.Entries, err = parseCSV(in)
	}
	if err != nil {
		return nil, err
	}
	if !f.Dated {
		f.Date = latest(slices.Values(f.Entries))
	}
	in.meter.sum.Sum(f.SHA256[:0])
	return f, nil
}

const (
	sniffed  = 512     // bytes, of which Parse says what it looks at
	maxPiece = 1 << 20 // bytes of a record of the CSV or a token of the XML: twelve of the longest cells fit in, all quotes
	origin   = "https://www.iana.org/assignments/service-names-port-numbers/"
)

// looksLike names what people import by mistake, "" for what may be the registry. Proxies and portals answer a download
// with a page, browsers and archives compress, and a spreadsheet that saves the CSV leaves its mark.
func looksLike(begin []byte) string {
	for _, known := range [...]struct{ magic, is string }{
		{"\x1f\x8b", "this is compressed by gzip"},
		{"BZh", "this is compressed by bzip2"},
		{"\xfd7zXZ\x00", "this is compressed by xz"},
		{"\x28\xb5\x2f\xfd", "this is compressed by zstd"},
		{"PK\x03\x04", "this is a zip archive or a spreadsheet"},
		{"%PDF-", "this is a PDF"},
		{"\xef\xbb\xbf", "this begins with a byte order mark, so some program has rewritten it"},
		{"\xff\xfe", "this is UTF-16, so some program has rewritten it"},
		{"\xfe\xff", "this is UTF-16, so some program has rewritten it"},
		{magic, "this is a registry that was compiled already"},
	} {
		if bytes.HasPrefix(begin, []byte(known.magic)) {
			return known.is
		}
	}
	text := strings.ToLower(string(bytes.TrimSpace(begin)))
	switch {
	case text == "":
		return "this is empty"
	case strings.HasPrefix(text, "{"), strings.HasPrefix(text, "["):
		return "this is JSON"
	case strings.HasPrefix(text, "<") && (strings.HasPrefix(text, "<!doctype html") || strings.Contains(text, "<html")):
		return "this is an HTML page"
	case strings.ContainsRune(text, 0):
		return "this is not text"
	}
	return ""
}

// An input is a file on its way into a parser, which reads from buf.
type input struct {
	buf   *bufio.Reader
	meter *meter
}

// A meter counts and digests what is read through it, and ends at MaxFile. It also ends within a piece that is too long,
// for what reads pieces needs up to sixty times as much memory: encoding/csv a gigabyte for MaxFile bytes of commas.
type meter struct {
	r     io.Reader
	sum   digest.Hash
	size  int64
	piece int64 // bytes since the parser began the piece that it reads; it says so
	last  byte  // the byte read last
	err   error // what ended it before its end
}

func newInput(r io.Reader) input {
	m := &meter{r: r, sum: sha256.New()}
	return input{bufio.NewReaderSize(m, 64<<10), m}
}

func (m *meter) Read(p []byte) (int, error) {
	n, err := m.r.Read(p)
	if n > 0 {
		m.sum.Write(p[:n])
		m.size += int64(n)
		m.piece += int64(n)
		m.last = p[n-1]
	}
	switch {
	case m.size > MaxFile:
		n, err = 0, fmt.Errorf("more than %d MiB, which is no registry", MaxFile>>20)
	case m.piece > maxPiece:
		n, err = 0, fmt.Errorf("a record of more than %d MiB, which is no registry", maxPiece>>20)
	}
	if !errors.Is(err, io.EOF) {
		m.err = err
	}
	return n, err
}

// begin tells the meter that a piece begins.
func (in input) begin() { in.meter.piece = 0 }

// atEnd reports whether a parser has read all there is.
func (in input) atEnd() bool {
	_, err := in.buf.Peek(1)
	return errors.Is(err, io.EOF)
}

// readError wraps what ended reading in a line before its end.
func readError(line int, err error) error { return fmt.Errorf("line %d: %w", line, err) }
