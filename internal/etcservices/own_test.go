package etcservices_test

import (
	"errors"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/portd/portd/internal/etcservices"
	"github.com/portd/portd/internal/ianadb"
)

// entry makes one from "name", "port[-port]" and a protocol.
func entry(t testing.TB, name, port, proto string) ianadb.Entry {
	t.Helper()
	csv := "Service Name,Port Number,Transport Protocol,Description,Assignee,Contact,Registration Date," +
		"Modification Date,Reference,Service Code,Unauthorized Use Reported,Assignment Notes\r\n" +
		"x," + port + "," + proto + ",,,,,,,,,\r\n"
	all, err := ianadb.ParseCSV(strings.NewReader(csv))
	if err != nil {
		t.Fatal(err)
	}
	all[0].Name = name
	return all[0]
}

// The host's own services win, by name and by port, and take nothing else away.
func TestOwn(t *testing.T) {
	t.Parallel()
	own := []ianadb.Entry{
		entry(t, "web", "8123", "tcp"),          // nothing of IANA's
		entry(t, "http", "9999", "tcp"),         // a name of IANA's
		entry(t, "mydb", "5432", "tcp"),         // a port of IANA's
		entry(t, "printer1", "631", "tcp"),      // a port with two names
		entry(t, "auth", "9113", "tcp"),         // an alias of IANA's: 113/tcp ident auth
		entry(t, "domain", "53", "udp"),         // what IANA says anyway
		entry(t, "HTTPS", "8443", ""),           // in another case
		entry(t, "swx2", "7300-7309", ""),       // a part of the range of swx
		entry(t, "top", "65534-65535", "sctp"),  // up to the end
		entry(t, "zero", "0", "udp"),            // a port like others, to the C library
		entry(t, "taken-back", "9010", "tcp"),   // De-Registered is a word of IANA's
		entry(t, "one", "9001", "tcp"),          //
		entry(t, "two", "9002", "tcp"),          // answers two, though on 9001 it
		entry(t, "two", "9001", "tcp"),          // would stand above, if it were an alias of one
		entry(t, "three", "9004", "udp"),        //
		entry(t, "four", "9003", "tcp"),         // the same without a protocol
		entry(t, "four", "9004", "udp"),         //
		entry(t, "five", "9003", "tcp"),         // an alias
		entry(t, "five", "9003", "tcp"),         // twice
		entry(t, "", "50005", "tcp"),            // says nothing
		entry(t, "no-port", "", "tcp"),          //
		entry(t, "z"+long(200), "50006", "tcp"), // too long for musl
		entry(t, "z"+long(113), "65535", "tcp"), // just not
		entry(t, "my web", "50007", "tcp"),
		entry(t, "c#", "50008", "tcp"),
		entry(t, "naïve", "50009", "tcp"),
		entry(t, "new\nline", "50009", "tcp"),
		entry(t, "esc\x1b[2J", "50009", "tcp"),
	}
	own[10].Description = "De-registered by\n  our admins #1\x1b[2J " + long(200)

	want := map[question]string{
		{name: "web", proto: "tcp"}:        "web 8123/tcp",
		{port: 8123, proto: "tcp"}:         "web 8123/tcp",
		{name: "http", proto: "tcp"}:       "http 9999/tcp",
		{name: "http"}:                     "http 9999/tcp",
		{name: "http", proto: "udp"}:       "http 80/udp",
		{port: 80, proto: "tcp"}:           "http 80/tcp",
		{name: "www", proto: "tcp"}:        "http 80/tcp",
		{port: 9999, proto: "tcp"}:         "http 9999/tcp",
		{port: 5432, proto: "tcp"}:         "mydb 5432/tcp",
		{port: 5432, proto: "udp"}:         "postgresql 5432/udp",
		{name: "postgresql", proto: "tcp"}: "postgresql 5432/tcp",
		{port: 631}:                        "printer1 631/tcp",
		{name: "ipp", proto: "tcp"}:        "ipp 631/tcp",
		{name: "ipps", proto: "tcp"}:       "ipp 631/tcp",
		{name: "auth", proto: "tcp"}:       "auth 9113/tcp",
		{port: 113, proto: "tcp"}:          "ident 113/tcp",
		{name: "ident", proto: "tcp"}:      "ident 113/tcp",
		{port: 53, proto: "udp"}:           "domain 53/udp",
		{name: "HTTPS", proto: "tcp"}:      "HTTPS 8443/tcp",
		{name: "https", proto: "tcp"}:      "HTTPS 8443/tcp",
		{name: "https", proto: "udp"}:      "HTTPS 8443/udp",
		{name: "https", proto: "sctp"}:     "https 443/sctp",
		{port: 443, proto: "tcp"}:          "https 443/tcp",
		{port: 7305, proto: "udp"}:         "swx2 7305/udp",
		{port: 7310, proto: "udp"}:         "swx 7310/udp",
		{name: "swx", proto: "udp"}:        "swx 7300/udp",
		{name: "top"}:                      "top 65534/sctp",
		{port: 65535, proto: "sctp"}:       "top 65535/sctp",
		{name: "zero"}:                     "zero 0/udp",
		{port: 0, proto: "udp"}:            "zero 0/udp",
		{name: "taken-back"}:               "taken-back 9010/tcp",
		{name: "two", proto: "tcp"}:        "two 9002/tcp",
		{name: "two"}:                      "two 9002/tcp",
		{port: 9001, proto: "tcp"}:         "one 9001/tcp",
		{name: "four"}:                     "four 9003/tcp",
		{name: "four", proto: "udp"}:       "four 9004/udp",
		{port: 9004}:                       "three 9004/udp",
		{name: "five", proto: "tcp"}:       "four 9003/tcp",
		{name: "no-port"}:                  "none",
		{port: 50005}:                      "none",
		{port: 50006}:                      "none",
		{name: "z" + long(200)}:            "none",
		{name: "z" + long(113)}:            "z" + long(113) + " 65535/tcp",
		{port: 50007}:                      "none",
		{name: "my"}:                       "none",
		{port: 50008}:                      "none",
		{name: "c"}:                        "none",
		{port: 50009}:                      "none",
	}
	file, report := write(own, entries(ianadb.Embedded()))
	parse(t, file)
	g := newGlibc(t, file)
	for q, got := range g.ask(t, slices.Collect(maps.Keys(want))) {
		if got.String() != want[q] {
			t.Errorf("%v: %v, want %v", q, got, want[q])
		}
	}

	if diff := cmp.Diff(etcservices.Counts{
		Lines: 39, Written: 19, Duplicate: 1, Unnamed: 1, Portless: 1, Bad: 6,
	}, report.Own); diff != "" {
		t.Errorf("own (-want +got):\n%s", diff)
	}
	if report.IANA.Duplicate != 1 || report.IANA.Records() != ianadb.Embedded().Len() {
		t.Errorf("IANA's: %+v", report.IANA)
	}
	var notes strings.Builder
	for _, n := range report.Notes {
		notes.WriteString(n.String() + "\n")
	}
	if diff := cmp.Diff(`own service "z`+long(200)+`" (50006/tcp): left out: the name has 201 bytes; a line that every C library reads has room for 114
own service "my web" (50007/tcp): left out: services(5) ends a name at white space
own service "c#" (50008/tcp): left out: services(5) begins a comment at #
own service "naïve" (50009/tcp): left out: a name in services(5) is printable ASCII
own service "new\nline" (50009/tcp): left out: services(5) ends a name at white space
own service "esc\x1b[2J" (50009/tcp): left out: a name in services(5) is printable ASCII
own service "HTTPS" (8443): written for tcp as https too, for services(5) heeds case and IANA spells it so
own service "HTTPS" (8443): written for udp as https too, for services(5) heeds case and IANA spells it so
`, notes.String()); diff != "" {
		t.Errorf("notes (-want +got):\n%s", diff)
	}
	if !strings.Contains(string(file), "\ntaken-back      9010/tcp        # De-registered by our admins #1\ufffd[2J xxxxx") {
		t.Errorf("the description is not on the line:\n%.3000s", file)
	}
}

func long(n int) string { return strings.Repeat("x", n) }

// The file as a whole, where it is small.
func ExampleWrite() {
	own := []ianadb.Entry{{Name: "web", Port: "8123", First: 8123, Last: 8123, Protocol: ianadb.TCP, Description: "ours"}}
	iana := []ianadb.Entry{
		{Name: "http", Port: "80", First: 80, Last: 80, Protocol: ianadb.TCP, Description: "World Wide Web\n  HTTP"},
		{Name: "www", Port: "80", First: 80, Last: 80, Protocol: ianadb.TCP},
		{Name: "http", Port: "80", First: 80, Last: 80, Protocol: ianadb.SCTP},
		{Port: "81-87", First: 81, Last: 87, Description: "Unassigned"},
		{Name: "game", Port: "4200-4201", First: 4200, Last: 4201},
	}
	_, _ = etcservices.Write(os.Stdout, slices.Values(own), slices.Values(iana), etcservices.Head{Date: "2026-08-17", Records: 5})
	// Output:
	// # Network services, see services(5). Made by portctl services; do not edit: the next one takes its place.
	// # From IANA's Service Name and Transport Protocol Port Number Registry:
	// #   date     2026-08-17
	// #   records  5
	//
	// # This host's own services. They come first, and so win by name and by port.
	//
	// web             8123/tcp        # ours
	//
	// # Services that IANA assigned to ports.
	//
	// http            80/tcp      www # World Wide Web HTTP
	// http            80/sctp
	// game            4200/tcp
	// game            4200/udp
	// game            4201/tcp
	// game            4201/udp
}

// A full disk is the caller's to hear of.
func TestWriteError(t *testing.T) {
	t.Parallel()
	full := errors.New("no space left on device")
	some := slices.Collect(entries(ianadb.Embedded()))[:500]
	for _, room := range []int{0, 10_000} {
		w := &disk{room: room, err: full}
		r, err := etcservices.Write(w, nil, slices.Values(some), etcservices.Head{})
		if !errors.Is(err, full) || r != nil {
			t.Errorf("room for %d bytes: %v, %v", room, r, err)
		}
	}
}

type disk struct {
	room int
	err  error
}

func (d *disk) Write(p []byte) (int, error) {
	if d.room -= len(p); d.room < 0 {
		return 0, d.err
	}
	return len(p), nil
}
