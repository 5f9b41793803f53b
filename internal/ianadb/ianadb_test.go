package ianadb_test

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"iter"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/portd/portd/internal/ianadb"
)

const (
	any_ = ianadb.AnyProtocol
	tcp  = ianadb.TCP
	udp  = ianadb.UDP
	sctp = ianadb.SCTP
	dccp = ianadb.DCCP
)

// brief writes records as "http 80/tcp"; "-" stands for an empty cell.
func brief(records iter.Seq[ianadb.Record]) string {
	var all []string
	dash := func(s string) string {
		if s == "" {
			return "-"
		}
		return s
	}
	for r := range records {
		e := r.Entry()
		all = append(all, fmt.Sprintf("%s %s/%s", dash(e.Name), dash(e.Port), dash(e.Protocol.String())))
	}
	return strings.Join(all, ", ")
}

func TestSource(t *testing.T) {
	db := ianadb.Embedded()
	csv, err := os.ReadFile(csvFile)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := db.Source(), (ianadb.Source{Date: "2026-08-17", SHA256: sha256.Sum256(csv)}); got != want {
		t.Errorf("source %s %x, want %s %x", got.Date, got.SHA256, want.Date, want.SHA256)
	}
	if n := db.Len(); n != 14533 {
		t.Errorf("%d records, want 14533", n)
	}
	provenance, err := os.ReadFile("PROVENANCE.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, fact := range []string{db.Source().Date, fmt.Sprintf("%x", db.Source().SHA256), "14,533", "CC0"} {
		if !bytes.Contains(provenance, []byte(fact)) {
			t.Errorf("PROVENANCE.md does not say %s", fact)
		}
	}
}

func TestSourceWithoutDate(t *testing.T) {
	blob, err := ianadb.Compile([]ianadb.Entry{{Name: "a"}}, ianadb.Source{})
	if err != nil {
		t.Fatal(err)
	}
	db, err := ianadb.Open(string(blob))
	if err != nil {
		t.Fatal(err)
	}
	if got := db.Source(); got != (ianadb.Source{}) {
		t.Errorf("source %+v, want the zero one that was given", got)
	}
}

func TestByPort(t *testing.T) {
	db := ianadb.Embedded()
	for _, tt := range []struct {
		port     uint16
		protocol ianadb.Protocol
		want     string
	}{
		{443, any_, "https 443/tcp, https 443/udp, https 443/sctp"},
		{443, tcp, "https 443/tcp"},
		{22, any_, "ssh 22/tcp, ssh 22/udp, ssh 22/sctp"},
		{53, any_, "domain 53/tcp, domain 53/udp"},
		{53, dccp, ""},
		// In file order, which does not go by protocol.
		{80, any_, "http 80/tcp, http 80/udp, www 80/tcp, www 80/udp, www-http 80/tcp, www-http 80/udp, http 80/sctp"},
		{80, sctp, "http 80/sctp"},
		// Port 0 is a port.
		{0, any_, "- 0/tcp, - 0/udp"},
		// Ranges, with and without a protocol; of one port too.
		{6005, tcp, "x11 6000-6063/tcp"},
		{6063, any_, "x11 6000-6063/tcp, x11 6000-6063/udp"},
		{6667, any_, "ircu 6665-6669/tcp, - 6665-6669/udp"},
		{27000, sctp, "flex-lm 27000-27009/-"},
		{27009, udp, "flex-lm 27000-27009/-"},
		{6400, tcp, "boe-cms 6400/-"},
		{4748, tcp, "- 4748-4748/-"},
		{20047, udp, "- 20047-20047/-"},
		// Stale ranges are in the registry, and so they are here.
		{7775, any_, "- 7748-7776/-, inetfs 7775/tcp, - 7775/udp"},
		{7776, any_, "- 7748-7776/-, - 7776/-"},
		{7997, any_, "- 7983-7997/-, pushns 7997/tcp, - 7997/udp"},
		// No record for the protocol, though there is one for another.
		{4502, tcp, ""},
		{4502, any_, "a25-fap-fgw 4502/sctp"},
		{49151, tcp, "- 49151/-"},
		{49152, any_, ""},
		{65535, any_, ""},
	} {
		if got := brief(db.ByPort(tt.port, tt.protocol)); got != tt.want {
			t.Errorf("%d/%v: %s, want %s", tt.port, tt.protocol, got, tt.want)
		}
	}
}

func TestByName(t *testing.T) {
	db := ianadb.Embedded()
	for _, tt := range []struct {
		name     string
		protocol ianadb.Protocol
		want     string
	}{
		{"http", any_, "http 80/tcp, http 80/udp, http 80/sctp"},
		{"www", any_, "www 80/tcp, www 80/udp"},
		{"https", any_, "https 443/tcp, https 443/udp, https 443/sctp, https -/tcp"},
		{"https", udp, "https 443/udp"},
		{"1password", any_, "1password -/-"},
		{"dns", any_, ""},
		{"smtps", any_, ""},
		{"", any_, ""},
		{strings.Repeat("x", 1000), any_, ""},
		// One name, several ports.
		{"http-alt", tcp, "http-alt 591/tcp, http-alt 8008/tcp, http-alt 8080/tcp"},
		{"msp", tcp, "msp 18/tcp, msp 2438/tcp"},
		{"rda", any_, "rda 630/tcp, rda 630/udp, rda 2371/tcp"},
		{"raid-am", any_, "raid-am 2007/udp, raid-am 2013/tcp"},
		{"rdp", any_, "rdp -/-, rdp -/-"},
		// ASCII letters fold and nothing else does: not the Kelvin sign, whose lower case is k, and no hyphen.
		{"HTTPS", tcp, "https 443/tcp, https -/tcp"},
		{"3COM-nsd", tcp, "3Com-nsd 1742/tcp"},
		{"besapi", udp, "BESApi 3408/udp"},
		{"\u212aerberos", tcp, ""},
		{"kerberos", tcp, "kerberos 88/tcp"},
		{"sunrpc", tcp, "sunrpc 111/tcp"},
		{"sun-rpc", any_, "sun-rpc -/-"},
		{"flexlm", tcp, "flexlm 744/tcp"},
		{"flex-lm", tcp, "flex-lm 27000-27009/-"},
		{"sflm", tcp, "sflm 3162/tcp"},
		{"sf-lm", tcp, "sf-lm 4546/tcp"},
		// Names that break RFC 6335's syntax, patterns and paths.
		{"dec_dlm", tcp, "dec_dlm 625/tcp"},
		{"whois++", tcp, "whois++ 63/tcp"},
		{"sql*net", udp, "sql*net 66/udp"},
		{"CL/1", tcp, "cl/1 172/tcp"},
		{"z39.50", tcp, "z39.50 210/tcp"},
		{"914c/g", udp, "914c/g 211/udp"},
		{"novell-lu6.2", tcp, "novell-lu6.2 1416/tcp"},
		{"ethernet/ip-1", tcp, "EtherNet/IP-1 2222/tcp"},
		{"EtherNet/IP-2", udp, "EtherNet/IP-2 44818/udp"},
		// Names that look like something else.
		{"9pfs", tcp, "9pfs 564/tcp"},
		{"tcp", any_, "tcp -/-"},
		{"udp", any_, "udp -/-"},
		{"name", udp, "name 42/udp"},
		{"help", any_, "help -/-"},
		{"af", any_, "af 1411/tcp, af 1411/udp"},
	} {
		if got := brief(db.ByName(tt.name, tt.protocol)); got != tt.want {
			t.Errorf("%.20s, %v: %s, want %s", tt.name, tt.protocol, got, tt.want)
		}
	}
}

func TestPorts(t *testing.T) {
	db := ianadb.Embedded()
	one := func(port uint16) ianadb.Range { return ianadb.Range{First: port, Last: port} }
	for _, tt := range []struct {
		name     string
		protocol ianadb.Protocol
		want     []ianadb.Range
	}{
		{"https", tcp, []ianadb.Range{one(443)}},
		{"http", any_, []ianadb.Range{one(80)}},
		{"http-alt", tcp, []ianadb.Range{one(591), one(8008), one(8080)}},
		{"rda", udp, []ianadb.Range{one(630)}},
		{"rda", tcp, []ianadb.Range{one(630), one(2371)}},
		{"sql-net", tcp, []ianadb.Range{one(66), one(150)}},
		{"epp", tcp, []ianadb.Range{one(700), one(3044)}},
		{"X11", udp, []ianadb.Range{{First: 6000, Last: 6063}}},
		{"flex-lm", dccp, []ianadb.Range{{First: 27000, Last: 27009}}},
		{"cl/1", tcp, []ianadb.Range{one(172)}},
		{"raid-am", sctp, nil},
		{"1password", tcp, nil},
		{"dns", udp, nil},
		{"sua", tcp, []ianadb.Range{one(14001)}},
		{"sua", udp, nil}, // de-registered: no longer its port
	} {
		if diff := cmp.Diff(tt.want, db.Ports(tt.name, tt.protocol)); diff != "" {
			t.Errorf("%s, %v (-want +got):\n%s", tt.name, tt.protocol, diff)
		}
	}
}

// TestNoAllocations: lookups are in the way of every request.
func TestNoAllocations(t *testing.T) {
	db := ianadb.Embedded()
	n := 0
	for what, f := range map[string]func(){
		"ByPort": func() {
			for r := range db.ByPort(80, any_) {
				n += len(r.Name())
			}
		},
		"ByName": func() {
			for r := range db.ByName("HTTP-Alt", tcp) {
				n += len(r.Entry().Description)
			}
		},
		"Names": func() {
			for name := range db.Names(80, tcp) {
				n += len(name)
			}
		},
		"Status":     func() { n += int(db.Status(80, tcp)) },
		"Unassigned": func() { _ = db.Unassigned(80, tcp) },
	} {
		if allocs := testing.AllocsPerRun(100, f); allocs != 0 {
			t.Errorf("%s allocates %v times", what, allocs)
		}
	}
}
