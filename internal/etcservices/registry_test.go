package etcservices_test

import (
	"bytes"
	"iter"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/portd/portd/internal/etcservices"
	"github.com/portd/portd/internal/ianadb"
)

// protos are what getservbyname and getservbyport may be asked for; "" is a null pointer.
var protos = []string{"", "tcp", "udp", "sctp", "dccp"}

func entries(db *ianadb.DB) iter.Seq[ianadb.Entry] {
	return func(yield func(ianadb.Entry) bool) {
		for r := range db.All() {
			if !yield(r.Entry()) {
				return
			}
		}
	}
}

// write returns the file of a registry. A buffer refuses nothing.
func write(own []ianadb.Entry, iana iter.Seq[ianadb.Entry]) ([]byte, *etcservices.Report) {
	var b bytes.Buffer
	r, err := etcservices.Write(&b, slices.Values(own), iana, etcservices.Head{
		Date: "2026-08-17", Records: ianadb.Embedded().Len(), Written: time.Date(2026, 9, 1, 12, 0, 0, 0, time.UTC),
	})
	if err != nil {
		panic(err)
	}
	return b.Bytes(), r
}

// right is what the registry answers to a question, found by its own indexes: of the records that are in the file, the
// first.
func right(db *ianadb.DB, q question) servent {
	p, _ := ianadb.ParseProtocol(q.proto)
	records := db.ByPort(q.port, p)
	if q.name != "" {
		records = db.ByName(q.name, p)
	}
	for r := range records {
		ports, ok := r.Ports()
		proto := r.Protocol()
		if !ok || r.Status() != ianadb.StatusAssigned || proto == ianadb.AnyProtocol && p > ianadb.UDP {
			continue
		}
		if p == ianadb.AnyProtocol && proto == p {
			proto = ianadb.TCP
		} else if p != ianadb.AnyProtocol {
			proto = p
		}
		if q.name != "" {
			return servent{[]string{q.name}, ports.First, proto.String()}
		}
		return servent{[]string{r.Name()}, q.port, proto.String()}
	}
	return servent{}
}

// check compares an answer of the C library's.
func check(t *testing.T, db *ianadb.DB, q question, got servent) {
	t.Helper()
	want := right(db, q)
	same := got.Port == want.Port && got.Proto == want.Proto && (got.Names == nil) == (want.Names == nil)
	if same && want.Names != nil {
		if q.name != "" {
			same = slices.Contains(got.Names, q.name) // the first one is the port's
		} else {
			same = got.Names[0] == want.Names[0]
		}
	}
	if !same {
		t.Errorf("%v: the C library says %v, the registry %v", q, got, want)
	}
}

// ianaFile is the file of the registry that portd is shipped with.
var ianaFile = sync.OnceValues(func() ([]byte, *etcservices.Report) {
	return write(nil, entries(ianadb.Embedded()))
})

// The C library reads the file from the top for each question, which takes it a millisecond. Here it reads it once, by
// getservent, and the first line that fits answers; TestByKey shows that it is no different with the real questions.
func TestWholeRegistry(t *testing.T) {
	t.Parallel()
	db := ianadb.Embedded()
	file, report := ianaFile()
	lines := newGlibc(t, file).all(t)
	if diff := cmp.Diff(parse(t, file), lines); diff != "" {
		t.Fatalf("the C library reads other lines than are written (-written +read):\n%s", diff)
	}
	if len(lines) != report.IANA.Lines || report.IANA.Records() != db.Len() || len(report.Notes) != 0 {
		t.Errorf("%d lines of %d records; the report: %+v", len(lines), db.Len(), report)
	}

	answers := make(map[question]servent)
	answer := func(q question, s servent) {
		if _, ok := answers[q]; !ok {
			answers[q] = s
		}
	}
	for _, l := range lines {
		for _, proto := range []string{"", l.Proto} {
			answer(question{port: l.Port, proto: proto}, l)
			for _, name := range l.Names {
				answer(question{name: name, proto: proto}, l)
			}
		}
	}
	asked := 0
	ask := func(q question) {
		asked++
		check(t, db, q, answers[q])
		delete(answers, q)
	}
	for _, proto := range protos {
		for port := range 1 << 16 {
			ask(question{port: uint16(port), proto: proto})
		}
		for _, name := range names(db) {
			ask(question{name: name, proto: proto})
		}
	}
	for q := range answers {
		t.Errorf("%v: not in the registry", q)
	}
	t.Logf("%d lines, %d bytes, %d questions", len(lines), len(file), asked)
}

// names are the distinct names of a registry, in file order.
func names(db *ianadb.DB) []string {
	var all []string
	seen := make(map[string]bool)
	for r := range db.All() {
		if name := r.Name(); name != "" && !seen[name] {
			seen[name] = true
			all = append(all, name)
		}
	}
	return all
}

// TestByKey asks what is awkward and a sample of the rest; with PORTD_LONG all that has an answer, and many that have none.
func TestByKey(t *testing.T) {
	t.Parallel()
	db := ianadb.Embedded()
	var some, rest []question
	for _, name := range names(db) {
		for _, proto := range protos {
			q := question{name: name, proto: proto}
			if awkward(db, name) && (proto == "" || proto == "tcp") {
				some = append(some, q)
			} else {
				rest = append(rest, q)
			}
		}
	}
	for port := range 1 << 16 {
		for _, proto := range protos {
			rest = append(rest, question{port: uint16(port), proto: proto})
		}
	}
	t.Logf("%d awkward questions", len(some))

	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	rng.Shuffle(len(rest), func(i, j int) { rest[i], rest[j] = rest[j], rest[i] })
	sample := 300
	if os.Getenv("PORTD_LONG") != "" {
		sample = 20_000
		for _, q := range rest[sample:] {
			if right(db, q).Names != nil {
				some = append(some, q)
			}
		}
	}
	some = append(some, rest[:sample]...)

	file, _ := ianaFile()
	found := 0
	for q, got := range newGlibc(t, file).ask(t, some) {
		check(t, db, q, got)
		if got.Names != nil {
			found++
		}
	}
	t.Logf("%d questions, %d of them with an answer", len(some), found)
}

// awkward picks names that are not letters, digits and hyphens alone, and those with several ports or every protocol.
func awkward(db *ianadb.DB, name string) bool {
	if strings.ContainsAny(name, "_+*/.") {
		return true
	}
	var first ianadb.Range
	for r := range db.ByName(name, ianadb.AnyProtocol) {
		ports, ok := r.Ports()
		if !ok {
			continue
		}
		if first != (ianadb.Range{}) && ports != first || ports.First != ports.Last || r.Protocol() == ianadb.AnyProtocol {
			return true
		}
		first = ports
	}
	return false
}

// What a reader of the file would look for first, written out.
func TestKnownServices(t *testing.T) {
	t.Parallel()
	want := map[question]string{
		{name: "https", proto: "tcp"}:          "https 443/tcp",
		{name: "https", proto: "sctp"}:         "https 443/sctp",
		{name: "https"}:                        "https 443/tcp",
		{name: "www", proto: "udp"}:            "http 80/udp",
		{name: "http-alt", proto: "tcp"}:       "http-alt 591/tcp",
		{port: 8008, proto: "tcp"}:             "http-alt 8008/tcp",
		{port: 8080, proto: "udp"}:             "http-alt 8080/udp",
		{name: "x11", proto: "tcp"}:            "x11 6000/tcp",
		{port: 6005, proto: "tcp"}:             "x11 6005/tcp",
		{port: 6063, proto: "udp"}:             "x11 6063/udp",
		{port: 6667, proto: "tcp"}:             "ircu 6667/tcp",
		{port: 6667, proto: "udp"}:             "none",
		{port: 4299, proto: "tcp"}:             "vrml-multi-use 4299/tcp",
		{name: "vrml-multi-use", proto: "udp"}: "vrml-multi-use 4200/udp",
		{name: "flex-lm"}:                      "flex-lm 27000/tcp",
		{name: "boe-cms", proto: "udp"}:        "boe-cms 6400/udp",
		{name: "boe-cms", proto: "sctp"}:       "none",
		{port: 514, proto: "tcp"}:              "shell 514/tcp",
		{port: 514, proto: "udp"}:              "syslog 514/udp",
		{name: "raid-am"}:                      "raid-am 2007/udp",
		{name: "raid-am", proto: "tcp"}:        "raid-am 2013/tcp",
		{name: "cl/1", proto: "tcp"}:           "cl-1 172/tcp",
		{name: "914c/g", proto: "udp"}:         "914c-g 211/udp",
		{name: "whois++", proto: "tcp"}:        "whoispp 63/tcp",
		{name: "sql*net", proto: "tcp"}:        "sql-net 66/tcp",
		{name: "z39.50", proto: "tcp"}:         "z39-50 210/tcp",
		{name: "novell-lu6.2", proto: "udp"}:   "novell-lu6-2 1416/udp",
		{name: "EtherNet/IP-1", proto: "tcp"}:  "EtherNet-IP-1 2222/tcp",
		{name: "dec_dlm", proto: "tcp"}:        "dec-dlm 625/tcp",
		{name: "sua", proto: "udp"}:            "none", // De-Registered
		{name: "sua", proto: "sctp"}:           "sua 14001/sctp",
		{name: "1password"}:                    "none", // no port
		{name: "Unassigned"}:                   "none",
		{port: 0, proto: "tcp"}:                "none",
		{port: 49151, proto: "tcp"}:            "none",
		{port: 65535, proto: "udp"}:            "none",
		{name: "ltp-deepspace", proto: "dccp"}: "ltp-deepspace 1113/dccp",
		{name: "HTTPS", proto: "tcp"}:          "none", // the case of the registry alone
		{name: "3Com-nsd", proto: "tcp"}:       "3Com-nsd 1742/tcp",
	}
	file, _ := ianaFile()
	answers := newGlibc(t, file).ask(t, slices.Collect(maps.Keys(want)))
	for q, got := range answers {
		if got.String() != want[q] {
			t.Errorf("%v: %v, want %v", q, got, want[q])
		}
	}
}
