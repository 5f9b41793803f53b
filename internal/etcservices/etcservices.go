// Package etcservices writes a registry of services as an /etc/services (services(5)) from which the C library answers
// getservbyname(3) and getservbyport(3) as portd does.
//
// The C library reads the file from the top for every question and answers from the first line that fits. So the host's
// own services come first, in a block of their own, and win by name and by port; IANA's follow in file order. Within a
// block there is one line for each port and protocol: the first name is the one getservbyport answers, further ones are
// its aliases. A name gets a line of its own where as an alias it would stand above the port that it should answer.
//
//   - A range becomes a line for each of its ports. By name it answers the first.
//   - A name with several ports (http-alt) answers the first of them in file order; the others find it by port.
//   - A record without a protocol is written for tcp and udp; sctp and dccp are written where a record names them.
//   - Records without a name or without a port, and De-Registered ones of IANA's, are left out.
//   - A name for a port and protocol is written once, however often it is given.
//   - Names keep their case, which services(5) heeds and the registry does not. Where an own service takes a name from
//     IANA in another case, IANA's spelling becomes its alias, so that it is overridden too.
//   - A name that services(5) cannot hold is left out, for under a changed one nobody would look for it.
//   - Descriptions become comments, on one line, without control characters, and cut to fit.
//
// Readers differ where one name has several ports: Go's net package, if it does without the C library, takes the last
// line rather than the first, and in it finds no name with a capital letter. A file of all of IANA's has 12,000 lines; to
// read it to the end takes the C library between one and two milliseconds, for each question anew.
package etcservices

import (
	"bufio"
	"fmt"
	"io"
	"iter"
	"time"

	"github.com/portd/portd/internal/ianadb"
)

// A Head is what the comment at the top of the file says. What is zero goes unsaid.
type Head struct {
	Date    string    // of IANA's registry, YYYY-MM-DD
	SHA256  [32]byte  // of the file that the registry came in
	Records int       // in the registry, of which not all make a line
	Written time.Time // when the file was made
}

// Write writes the host's own services and IANA's to w; either may be nil. What could not be written as it is stands in
// the report and is no error. An error is one of w's, and leaves a part of the file behind. The same arguments give the
// same bytes.
func Write(w io.Writer, own, iana iter.Seq[ianadb.Entry], head Head) (*Report, error) {
	var r Report
	ours, theirs := r.sift(own, true), r.sift(iana, false)
	t := newTable()
	t.block(ours, &r.Own)
	t.respell(ours, theirs, &r)
	split := len(t.lines)
	t.block(theirs, &r.IANA)
	r.Own.Lines, r.IANA.Lines = split, len(t.lines)-split

	b := bufio.NewWriter(w) // keeps the first error for Flush
	head.write(b)
	for _, part := range []struct {
		title string
		lines []*line
	}{
		{"This host's own services. They come first, and so win by name and by port.", t.lines[:split]},
		{"Services that IANA assigned to ports.", t.lines[split:]},
	} {
		if len(part.lines) > 0 {
			fmt.Fprintf(b, "\n# %s\n\n", part.title)
		}
		for _, l := range part.lines {
			text, cut := l.text()
			b.WriteString(text)
			if cut {
				r.Cut++
			}
		}
	}
	if err := b.Flush(); err != nil {
		return nil, fmt.Errorf("write services: %w", err)
	}
	return &r, nil
}

func (h Head) write(b *bufio.Writer) {
	b.WriteString("# Network services, see services(5). Made by portctl services; do not edit: the next one takes its place.\n")
	b.WriteString("# From IANA's Service Name and Transport Protocol Port Number Registry:\n")
	if h.Date != "" {
		date, _ := comment(h.Date, len("YYYY-MM-DD"))
		fmt.Fprintf(b, "#   date     %s\n", date)
	}
	if h.SHA256 != [32]byte{} {
		fmt.Fprintf(b, "#   sha256   %x\n", h.SHA256)
	}
	if h.Records != 0 {
		fmt.Fprintf(b, "#   records  %d\n", h.Records)
	}
	if !h.Written.IsZero() {
		fmt.Fprintf(b, "#   written  %s\n", h.Written.UTC().Format(time.RFC3339))
	}
}
