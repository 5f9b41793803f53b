package services_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"

	"github.com/portd/portd/internal/ianadb"
	"github.com/portd/portd/internal/registry"
	"github.com/portd/portd/internal/services"
	pb "github.com/portd/portd/proto/portd/v1"
)

// host is the embedded registry with entries of a host's own: myapp, and another https.
func host(t testing.TB) *registry.Services {
	t.Helper()
	var entries []ianadb.Entry
	s := services.Embedded()
	for i, text := range []string{
		`name: "https" protocol: 1 ports {first: 8443} description: "ours"`,
		`name: "myapp" protocol: 1 ports {first: 8120 last: 8129} description: "what we make"`,
	} {
		var e pb.ServiceEntry
		if err := prototext.Unmarshal([]byte(text), &e); err != nil {
			t.Fatal(err)
		}
		entry, err := services.ToEntry("service", &e)
		if err != nil {
			t.Fatal(err)
		}
		entries = append(entries, entry)
		s.Own = append(s.Own, &registry.OwnService{Entry: entry, By: "uid:7", Time: time.Unix(1e9, 0), Revision: registry.Revision(i + 1)})
	}
	blob, err := ianadb.Compile(entries, ianadb.Source{})
	if err != nil {
		t.Fatal(err)
	}
	if s.Directory.Own, err = ianadb.Open(string(blob)); err != nil {
		t.Fatal(err)
	}
	return s
}

func ask[M proto.Message](t testing.TB, text string, req M) M {
	t.Helper()
	if err := prototext.Unmarshal([]byte(text), req); err != nil {
		t.Fatal(err)
	}
	return req
}

// line is an entry in a few words.
func line(e *pb.ServiceEntry) string {
	s := e.GetName() + " " + e.GetPortNumber() + "/" + word(e.GetProtocol())
	if e.GetSource() == pb.EntrySource_ENTRY_SOURCE_HOST {
		s += " of " + e.GetChangedBy()
	}
	if e.GetAliasOf() != "" {
		s += " = " + e.GetAliasOf()
	}
	return s
}

func word(e fmt.Stringer) string {
	s := e.String()
	for _, prefix := range []string{"PROTOCOL_", "PORT_CLASS_", "ASSIGNMENT_STATUS_", "MATCH_KIND_"} {
		s = strings.TrimPrefix(s, prefix)
	}
	return s
}

func TestLookup(t *testing.T) {
	tests := []struct {
		ask  string
		want []string // class, entries, assignments
	}{
		{`port: 80`, []string{
			"SYSTEM", "http 80/TCP", "http 80/UDP", "www 80/TCP", "www 80/UDP", "www-http 80/TCP", "www-http 80/UDP", "http 80/SCTP",
			"80-80/TCP ASSIGNED", "80-80/UDP ASSIGNED", "80-80/SCTP ASSIGNED", "80-80/DCCP NONE",
		}},
		{`port: 53 protocol: PROTOCOL_UDPLITE`, []string{"SYSTEM", "domain 53/UDP", "53-53/UDPLITE ASSIGNED"}},
		{`port: 0 protocol: PROTOCOL_TCP`, []string{"SYSTEM", " 0/TCP", "0-0/TCP RESERVED"}},
		{`port: 65535 protocol: PROTOCOL_TCP`, []string{"DYNAMIC", "65535-65535/TCP DYNAMIC"}},
		{`port: 6005 protocol: PROTOCOL_TCP`, []string{"USER", "x11 6000-6063/TCP", "6005-6005/TCP ASSIGNED"}},
		{`port: 7775 protocol: PROTOCOL_UDP`, []string{"USER", " 7748-7776/UNSPECIFIED", " 7775/UDP", "7775-7775/UDP RESERVED"}},
		{`port: 8123 protocol: PROTOCOL_TCP`, []string{"USER", "myapp 8120-8129/TCP of uid:7", " 8123-8127/UNSPECIFIED", "8123-8123/TCP ASSIGNED"}},
		{`port: 8123 protocol: PROTOCOL_UDP`, []string{"USER", " 8123-8127/UNSPECIFIED", "8123-8123/UDP UNASSIGNED"}},
		{`ports {first: 6000 last: 6010} protocol: PROTOCOL_UDP`, []string{"USER", "x11 6000-6063/UDP", "6000-6010/UDP ASSIGNED"}},
		{`ports {} protocol: PROTOCOL_TCP`, []string{"SYSTEM", " 0/TCP", "0-0/TCP RESERVED"}},
		{`ports {first: 25} protocol: PROTOCOL_SCTP`, []string{"SYSTEM", "25-25/SCTP NONE"}},
		{`ports {first: 8118 last: 8121} protocol: PROTOCOL_TCP`, []string{
			"USER", "myapp 8120-8129/TCP of uid:7", "privoxy 8118/TCP", " 8119-8120/UNSPECIFIED", "apollo-data 8121/TCP",
			"8118-8118/TCP ASSIGNED", "8119-8119/TCP UNASSIGNED", "8120-8121/TCP ASSIGNED",
		}},
		{`ports {first: 49151 last: 65535} protocol: PROTOCOL_TCP`, []string{
			"USER", " 49151/UNSPECIFIED", "49151-49151/TCP RESERVED", "49152-65535/TCP DYNAMIC",
		}},
		{`name: "HTTPS"`, []string{
			"UNSPECIFIED", "https 8443/TCP of uid:7", "https 443/TCP", "https 443/UDP", "https 443/SCTP", "https /TCP",
		}},
		{`name: "cl/1" protocol: PROTOCOL_TCP`, []string{"UNSPECIFIED", "cl/1 172/TCP = cl-1"}},
		{`name: "1password"`, []string{"UNSPECIFIED", "1password /UNSPECIFIED"}},
		{`name: "http-alt" protocol: PROTOCOL_TCP`, []string{"UNSPECIFIED", "http-alt 591/TCP", "http-alt 8008/TCP", "http-alt 8080/TCP"}},
		{`service_code: 1145656131`, []string{"UNSPECIFIED", "discard 9/DCCP"}},
		{`service_code: 1885957735 protocol: PROTOCOL_DCCP`, []string{"UNSPECIFIED", "dccp-ping /DCCP"}},
	}
	s := host(t)
	for _, tt := range tests {
		t.Run(tt.ask, func(t *testing.T) {
			l, err := services.Lookup(s, ask(t, tt.ask, &pb.LookupServicesRequest{}))
			if err != nil {
				t.Fatal(err)
			}
			got := []string{word(l.GetPortClass())}
			for _, e := range l.GetEntries() {
				got = append(got, line(e))
			}
			for _, a := range l.GetAssignments() {
				got = append(got, fmt.Sprintf("%d-%d/%s %s", a.GetPorts().GetFirst(), a.GetPorts().GetLast(), word(a.GetProtocol()), word(a.GetStatus())))
				if a.GetPort() != a.GetPorts().GetFirst() {
					t.Errorf("%v: port is not the first of ports", a)
				}
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Error(diff)
			}
			if l.GetRegistryDate() != s.Current.Date || l.GetRegistrySource() != "embedded" {
				t.Errorf("of the %s registry of %s", l.GetRegistrySource(), l.GetRegistryDate())
			}
		})
	}
}

func TestRefusals(t *testing.T) {
	s := host(t)
	lookup := func(text string) func() error {
		return func() error {
			_, err := services.Lookup(s, ask(t, text, &pb.LookupServicesRequest{}))
			return err
		}
	}
	search := func(text string) func() error {
		return func() error {
			_, err := services.Search(s, ask(t, text, &pb.SearchServicesRequest{}))
			return err
		}
	}
	list := func(text string) func() error {
		return func() error {
			_, err := services.List(s, ask(t, text, &pb.ListServicesRequest{}))
			return err
		}
	}
	entry := func(text string) func() error {
		return func() error {
			_, err := services.ToEntry("services[0]", ask(t, text, &pb.ServiceEntry{}))
			return err
		}
	}
	tests := []struct {
		name string
		ask  func() error
		is   error
		says string
	}{
		{"a typo", lookup(`name: "htpps"`), registry.ErrNotFound, `neither the IANA registry nor this host has a service "htpps"; near: https`},
		{"not for dccp", lookup(`name: "https" protocol: PROTOCOL_DCCP`), registry.ErrNotFound, `a service "https" for dccp; there is one for tcp, udp, sctp`},
		{"a code", lookup(`service_code: 1`), registry.ErrNotFound, "no service with the DCCP service code SC=1"},
		{"a code of letters", lookup(`service_code: 1346981447`), registry.ErrNotFound, "no service with the DCCP service code SC:PING"},
		{"a code of tcp", lookup(`service_code: 1145656131 protocol: PROTOCOL_TCP`), registry.ErrInvalid, "protocol: only DCCP has service codes"},
		{"a long name", lookup(`name: "` + strings.Repeat("x", 1<<20) + `"`), registry.ErrNotFound, "nor this host has a service"},
		{"no name", lookup(`name: ""`), registry.ErrInvalid, "name: is empty"},
		{"no question", lookup(``), registry.ErrInvalid, "query: is missing"},
		{"no port", lookup(`port: 65536`), registry.ErrInvalid, "port: 65536 is not a port"},
		{"no range", lookup(`ports {first: 1 last: 65536}`), registry.ErrInvalid, "ports.last: 65536 is not a port"},
		{"backwards", lookup(`ports {first: 2 last: 1}`), registry.ErrInvalid, "ports: 2-1 runs backwards"},
		{"no protocol", lookup(`port: 1 protocol: 6`), registry.ErrInvalid, "protocol: 6 is unknown"},
		{"less than no protocol", lookup(`port: 1 protocol: -1`), registry.ErrInvalid, "protocol: -1 is unknown"},
		{"search for nothing", search(`query: "  "`), registry.ErrInvalid, "query: search for nothing"},
		{"nine words", search(`query: "a b c d e f g h i"`), registry.ErrInvalid, "query: search for 9 words, 8 are the most"},
		{"long words", search(`query: "` + strings.Repeat("x", 257) + `"`), registry.ErrInvalid, "257 bytes, 256 are the most"},
		{"a page of less than nothing", search(`query: "a" page_size: -1`), registry.ErrInvalid, "page_size: -1 is negative"},
		{"a made-up token", search(`query: "a" page_token: "x"`), registry.ErrInvalid, `page_token: "x" is not one of portd's; leave it out to start again`},
		{"no source", list(`source: 3`), registry.ErrInvalid, "source: 3 is unknown"},
		{"an entry of UDP-Lite", entry(`name: "a" protocol: PROTOCOL_UDPLITE ports {first: 1}`), registry.ErrInvalid, "services[0].protocol: UDP-Lite has the ports of UDP"},
		{"an entry backwards", entry(`name: "a" protocol: PROTOCOL_UDP ports {first: 2 last: 1}`), registry.ErrInvalid, "services[0].ports: 2-1 runs backwards"},
		{"an alias", entry(`name: "a" protocol: PROTOCOL_UDP ports {first: 2} alias_of: "b"`), registry.ErrInvalid, "services[0].alias_of: follows from the notes"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err := tt.ask()
			if !errors.Is(err, tt.is) || !strings.Contains(err.Error(), tt.says) || len(err.Error()) > 300 {
				t.Errorf("got %.300v, want %v: …%s…", err, tt.is, tt.says)
			}
		})
	}
}

// Pages are what one large page is, and end with the registry that they are of.
func TestPages(t *testing.T) {
	s := host(t)
	var got []string
	req := &pb.ListServicesRequest{PageSize: 1000}
	pages := 0
	for ; ; pages++ {
		l, err := services.List(s, req)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range l.GetServices() {
			got = append(got, line(e))
		}
		if req.PageToken = l.GetNextPageToken(); req.PageToken == "" {
			break
		}
	}
	var want []string
	for r := range s.All() {
		want = append(want, line(services.Entry(s, r)))
	}
	if !slices.Equal(got, want) || pages != len(want)/1000 {
		t.Errorf("%d entries on %d pages, want %d", len(got), pages+1, len(want))
	}

	one, err := services.Search(s, &pb.SearchServicesRequest{Query: "mail server"})
	if err != nil {
		t.Fatal(err)
	}
	var paged pb.SearchServicesResponse
	for token := ""; ; {
		l, err := services.Search(s, &pb.SearchServicesRequest{Query: "mail server", PageSize: 3, PageToken: token})
		if err != nil || l.GetTotal() != one.GetTotal() {
			t.Fatalf("%v, of %d", err, l.GetTotal())
		}
		paged.Matches = append(paged.Matches, l.GetMatches()...)
		if token = l.GetNextPageToken(); token == "" {
			break
		}
	}
	paged.Total, paged.RegistryDate = one.GetTotal(), one.GetRegistryDate()
	if !proto.Equal(one, &paged) || len(one.GetMatches()) < 4 || len(one.GetMatches()) != int(one.GetTotal()) {
		t.Errorf("one page is %v, many are %v", one, &paged)
	}

	first, err := services.List(s, &pb.ListServicesRequest{PageSize: 1})
	if err != nil {
		t.Fatal(err)
	}
	token := first.GetNextPageToken()
	changed := *s
	changed.Own = changed.Own[1:]
	imported := *s
	edition := *s.Current
	edition.SHA256[0]++
	imported.Current = &edition
	for name, next := range map[string]func() error{
		"an entry less": func() error { _, err := services.List(&changed, &pb.ListServicesRequest{PageToken: token}); return err },
		"another edition": func() error {
			_, err := services.List(&imported, &pb.ListServicesRequest{PageToken: token})
			return err
		},
		"another protocol": func() error {
			_, err := services.List(s, &pb.ListServicesRequest{PageToken: token, Protocol: 1})
			return err
		},
		"another kind": func() error {
			_, err := services.Search(s, &pb.SearchServicesRequest{PageToken: token, Query: "a"})
			return err
		},
		"the same, after 0s": func() error { _, err := services.List(s, &pb.ListServicesRequest{PageToken: token}); return err },
	} {
		err := next()
		if ok := strings.HasPrefix(name, "the same"); ok && err != nil || !ok && (!errors.Is(err, registry.ErrInvalid) || !strings.Contains(err.Error(), "start again")) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestListFilters(t *testing.T) {
	s := host(t)
	own, err := services.List(s, &pb.ListServicesRequest{Source: pb.EntrySource_ENTRY_SOURCE_HOST})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range own.GetServices() {
		got = append(got, line(e))
		if e.GetChangeTime().AsTime().Unix() != 1e9 {
			t.Errorf("%v has no time", e)
		}
	}
	if diff := cmp.Diff([]string{"https 8443/TCP of uid:7", "myapp 8120-8129/TCP of uid:7"}, got); diff != "" {
		t.Error(diff)
	}
	udp, err := services.List(s, &pb.ListServicesRequest{Source: pb.EntrySource_ENTRY_SOURCE_HOST, Protocol: pb.Protocol_PROTOCOL_UDP})
	if err != nil || len(udp.GetServices()) > 0 {
		t.Errorf("of udp: %v (%v)", udp, err)
	}
	iana, err := services.List(s, &pb.ListServicesRequest{Source: pb.EntrySource_ENTRY_SOURCE_IANA, Protocol: pb.Protocol_PROTOCOL_DCCP, PageSize: 1000})
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range iana.GetServices() {
		if e.GetSource() != pb.EntrySource_ENTRY_SOURCE_IANA || e.GetProtocol() != 0 && e.GetProtocol() != pb.Protocol_PROTOCOL_DCCP {
			t.Errorf("dccp has %v", e)
		}
	}
}

// Every record of the registry fits into a message, and is the same after the way there and back.
func TestEveryEntryIsSent(t *testing.T) {
	s, n := services.Embedded(), 0
	for r := range s.All() {
		sent := services.Entry(s, r)
		if _, err := proto.Marshal(sent); err != nil {
			t.Fatalf("%v: %v", r.Entry(), err)
		}
		want := r.Entry()
		if want.HasPort() && want.First == want.Last {
			want.Port = fmt.Sprint(want.First) // rather than 4748-4748
		}
		if got, err := services.ToEntry("", sent); err != nil || got != want {
			t.Errorf("%v comes back as %v (%v)", want, got, err)
		}
		n++
	}
	if n != s.Current.Records || n < 14_000 {
		t.Errorf("%d entries", n)
	}
}

func TestStatus(t *testing.T) {
	s := host(t)
	when := time.Unix(1e9, 0)
	s.Current = &registry.Edition{Origin: registry.Imported, Date: "2027-01-02", Records: 3, From: "new.csv", By: "uid:7", Time: when, ETag: `"x"`}
	s.Previous = s.Embedded
	got := services.Status(s)
	if got.GetSource() != "imported" || got.GetFrom() != "new.csv" || !got.GetImportTime().AsTime().Equal(when) || got.GetHostEntries() != 2 ||
		got.GetPrevious().GetSource() != "embedded" || got.GetPrevious().GetDate() != got.GetEmbeddedDate() || got.GetPrevious().GetImportTime() != nil ||
		got.GetImportedBy() != "uid:7" || got.GetEtag() != `"x"` || got.GetDate() != "2027-01-02" {
		t.Errorf("got %v", got)
	}
}

func BenchmarkLookup(b *testing.B) {
	s := services.Embedded()
	for _, text := range []string{`port: 443`, `name: "https"`, `ports {first: 6000 last: 6010}`, `ports {last: 65535}`} {
		req := ask(b, text, &pb.LookupServicesRequest{})
		b.Run(text, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := services.Lookup(s, req); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
