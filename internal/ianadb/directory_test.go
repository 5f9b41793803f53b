package ianadb_test

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/portd/portd/internal/ianadb"
)

// directory has the embedded registry and entries of the host's own, each written "name ports protocol description".
func directory(t testing.TB, own ...string) ianadb.Directory {
	t.Helper()
	d := ianadb.Directory{IANA: ianadb.Embedded()}
	if own == nil {
		return d
	}
	var entries []ianadb.Entry
	for _, s := range own {
		cells := append(strings.SplitN(s, " ", 4), "", "", "")
		e := ianadb.Entry{Name: cells[0], Port: cells[1], Description: cells[3]}
		e.Protocol, _ = ianadb.ParseProtocol(cells[2])
		if e.Port != "" {
			first, last := bounds(e.Port)
			e.First, e.Last = uint16(first), uint16(last)
		}
		entries = append(entries, e)
	}
	blob, err := ianadb.Compile(entries, ianadb.Source{})
	if err != nil {
		t.Fatal(err)
	}
	if d.Own, err = ianadb.Open(string(blob)); err != nil {
		t.Fatal(err)
	}
	return d
}

// TestOwnEntriesWin: they come first everywhere, and decide where only one answer can be right.
func TestOwnEntriesWin(t *testing.T) {
	d := directory(t,
		"orders 8123 tcp", "wide 29200-29210 ", "http 8080 tcp", "ssh 2222 tcp", "taken 8124 tcp De-Registered by us",
		"Https 443 tcp", "intranet 49200 tcp", "bare  tcp")
	for _, tt := range []struct {
		port     uint16
		protocol ianadb.Protocol
		want     string // status, names, records
	}{
		{8123, tcp, "assigned [orders] [orders 8123/tcp, - 8123-8127/-]"},
		{8123, udp, "unassigned [] [- 8123-8127/-]"},
		{8123, any_, "none [orders] [orders 8123/tcp, - 8123-8127/-]"},
		{29205, sctp, "assigned [wide] [wide 29200-29210/-, - 29170-29998/-]"},
		{29211, sctp, "unassigned [] [- 29170-29998/-]"},
		{8080, tcp, "assigned [http http-alt] [http 8080/tcp, http-alt 8080/tcp]"},
		{8080, udp, "assigned [http-alt] [http-alt 8080/udp]"},
		{443, tcp, "assigned [Https] [Https 443/tcp, https 443/tcp]"}, // said once, as the host spells it
		{443, udp, "assigned [https] [https 443/udp]"},
		{49200, tcp, "assigned [intranet] [intranet 49200/tcp]"},
		{49200, udp, "dynamic [] []"},
		{8124, tcp, "assigned [taken] [taken 8124/tcp, - 8123-8127/-]"}, // whatever words of IANA's it uses
		{4502, tcp, "none [] []"},
	} {
		got := fmt.Sprintf("%v %v [%s]", d.Status(tt.port, tt.protocol), slices.Collect(d.Names(tt.port, tt.protocol)),
			brief(d.ByPort(tt.port, tt.protocol)))
		if got != tt.want {
			t.Errorf("%d/%v: %s, want %s", tt.port, tt.protocol, got, tt.want)
		}
		if free := d.Unassigned(tt.port, tt.protocol); free != strings.HasPrefix(tt.want, "unassigned") {
			t.Errorf("%d/%v: Unassigned is %v", tt.port, tt.protocol, free)
		}
	}
	for _, tt := range []struct {
		name     string
		protocol ianadb.Protocol
		want     string // records, ports
	}{
		{"http", tcp, "http 8080/tcp, http 80/tcp: [{8080 8080}]"},
		{"http", udp, "http 80/udp: [{80 80}]"},
		{"SSH", any_, "ssh 2222/tcp, ssh 22/tcp, ssh 22/udp, ssh 22/sctp, ssh -/tcp: [{2222 2222}]"},
		{"wide", dccp, "wide 29200-29210/-: [{29200 29210}]"},
		{"taken", tcp, "taken 8124/tcp: [{8124 8124}]"},
		{"bare", any_, "bare -/tcp: []"},
		{"x11", tcp, "x11 6000-6063/tcp: [{6000 6063}]"},
		{"nothing", any_, ": []"},
	} {
		if got := fmt.Sprintf("%s: %v", brief(d.ByName(tt.name, tt.protocol)), d.Ports(tt.name, tt.protocol)); got != tt.want {
			t.Errorf("%s/%v: %s, want %s", tt.name, tt.protocol, got, tt.want)
		}
	}
	n := 0
	for r := range d.All() {
		if own := n < d.Own.Len(); d.IsOwn(r) != own {
			t.Fatalf("record %d: IsOwn is %v", n, !own)
		}
		n++
	}
	if want := d.Own.Len() + d.IANA.Len(); n != want {
		t.Errorf("All: %d records, want %d", n, want)
	}
}

// TestLeavingOff: whoever has seen enough gets no more, not even of the other registry.
func TestLeavingOff(t *testing.T) {
	d := directory(t, "http 80 tcp", "web 80 tcp")
	for _, want := range []int{1, 2, 3, 4} {
		for what, records := range map[string]func(func(ianadb.Record) bool){
			"ByPort": d.ByPort(80, any_), "ByName": d.ByName("http", any_), "All": d.All(),
			"ByPorts": d.ByPorts(ianadb.Range{First: 79, Last: 81}, any_),
		} {
			n := 0
			records(func(ianadb.Record) bool { n++; return n < want })
			if n != want {
				t.Errorf("%s: %d records after %d were enough", what, n, want)
			}
		}
		n := 0
		d.Names(80, any_)(func(string) bool { n++; return n < want })
		if n != want {
			t.Errorf("Names: %d after %d were enough", n, want)
		}
	}
}

// TestDirectoryIsItsRegistry: where the host has nothing of its own, a directory answers as IANA's registry does, which
// other tests compare with the file.
func TestDirectoryIsItsRegistry(t *testing.T) {
	for what, d := range map[string]ianadb.Directory{"none": directory(t), "elsewhere": directory(t, "elsewhere 50000 dccp")} {
		for port := range uint16(50000) {
			for _, p := range []ianadb.Protocol{tcp, udp, any_} {
				if got, want := d.Status(port, p), d.IANA.Status(port, p); got != want {
					t.Fatalf("own %s: %d/%v: %v, want %v", what, port, p, got, want)
				}
			}
			if got, want := slices.Collect(d.ByPort(port, any_)), slices.Collect(d.IANA.ByPort(port, any_)); !slices.Equal(got, want) {
				t.Fatalf("own %s: %d: %v, want %v", what, port, got, want)
			}
		}
		for _, name := range []string{"cl/1", "914c/g", "Z39.50", "dec_dlm", "http-alt", "rdp", "sql*net", "whois++", "tcp", ""} {
			if got, want := slices.Collect(d.ByName(name, any_)), slices.Collect(d.IANA.ByName(name, any_)); !slices.Equal(got, want) {
				t.Errorf("own %s: %s: %v, want %v", what, name, got, want)
			}
			if diff := cmp.Diff(d.IANA.Ports(name, tcp), d.Ports(name, tcp)); diff != "" {
				t.Errorf("own %s: %s (-want +got):\n%s", what, name, diff)
			}
		}
	}
}

func TestByPorts(t *testing.T) {
	all := rows(t)
	d := directory(t, "late 7776 tcp", "early 7000-7750 udp", "wide 1-65535 ")
	for _, tt := range []ianadb.Range{
		{First: 0, Last: 65535},
		{First: 0, Last: 0},
		{First: 65535, Last: 65535},
		{First: 80, Last: 80},
		{First: 6005, Last: 6005},
		{First: 6060, Last: 6070},
		{First: 7700, Last: 7800},
		{First: 7775, Last: 7776},
		{First: 7990, Last: 8000},
		{First: 27003, Last: 27020},
		{First: 29300, Last: 29301},
		{First: 440, Last: 430},
	} {
		for _, p := range []ianadb.Protocol{any_, tcp, udp, sctp} {
			var want [][]string
			for _, r := range all {
				if r[1] == "" || p != any_ && r[2] != "" && r[2] != p.String() {
					continue
				}
				if low, high := bounds(r[1]); tt.First <= tt.Last && low <= int(tt.Last) && high >= int(tt.First) {
					want = append(want, r)
				}
			}
			var got [][]string
			var own []string
			for r := range d.ByPorts(tt, p) {
				if d.IsOwn(r) {
					if own = append(own, r.Name()); got != nil {
						t.Errorf("%v, %v: %s comes after IANA's", tt, p, r.Name())
					}
				} else {
					got = append(got, row(r.Entry()))
				}
			}
			if !slices.EqualFunc(want, got, slices.Equal[[]string]) {
				t.Errorf("%v, %v (-want +got):\n%s", tt, p, cmp.Diff(want, got))
			}
			if tt == (ianadb.Range{First: 7700, Last: 7800}) && p == any_ {
				if diff := cmp.Diff([]string{"early", "wide", "late"}, own); diff != "" {
					t.Errorf("%v, own (-want +got):\n%s", tt, diff)
				}
			}
		}
	}
}

func TestByServiceCode(t *testing.T) {
	d := directory(t)
	want := map[string]string{ // from the file, as other programs read it
		"1145656131": "discard 9/dccp", "7107696": "ltp-deepspace 1113/dccp", "1685351985": "dtn-bundle 4556/dccp", "1885957735": "dccp-ping -/dccp",
	}
	for _, r := range rows(t) {
		if (r[9] != "") != (want[r[9]] != "") {
			t.Errorf("%s has the service code %s", r[0], r[9])
		}
	}
	for code, record := range want {
		n, err := strconv.ParseUint(code, 10, 32)
		if err != nil {
			t.Fatal(err)
		}
		if got := brief(d.ByServiceCode(uint32(n))); got != record {
			t.Errorf("%s: %s, want %s", code, got, record)
		}
	}
	if got := brief(d.ByServiceCode(0)); got != "" {
		t.Errorf("0: %s, want none", got)
	}
	d.Own = compile(t, []ianadb.Entry{{Name: "mine", Port: "5001", First: 5001, Last: 5001, Protocol: dccp, ServiceCode: "1145656131"}})
	if got, want := brief(d.ByServiceCode(1145656131)), "mine 5001/dccp, discard 9/dccp"; got != want {
		t.Errorf("with one of the host's own: %s, want %s", got, want)
	}
}

// TestDirectoryAllocatesNothing: lookups are in the way of every request.
func TestDirectoryAllocatesNothing(t *testing.T) {
	for what, d := range map[string]ianadb.Directory{"none": directory(t), "some": directory(t, "http 80 tcp", "web 80-90 ")} {
		n := 0
		for lookup, f := range map[string]func(){
			"ByPort": func() {
				for r := range d.ByPort(80, any_) {
					n += len(r.Name())
				}
			},
			"ByName": func() {
				for r := range d.ByName("HTTP", tcp) {
					n += len(r.Entry().Description)
				}
			},
			"Names": func() {
				for name := range d.Names(80, tcp) {
					n += len(name)
				}
			},
			"Status": func() { n += int(d.Status(80, tcp)) },
		} {
			if allocs := testing.AllocsPerRun(100, f); allocs != 0 {
				t.Errorf("own %s: %s allocates %v times", what, lookup, allocs)
			}
		}
	}
}
