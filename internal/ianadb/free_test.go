package ianadb_test

import (
	"cmp"
	"slices"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/portd/portd/internal/ianadb"
)

var everyPort = ianadb.Range{First: 0, Last: 65535}

// TestFreeTotals: the counts are those of two other programs.
func TestFreeTotals(t *testing.T) {
	d := directory(t)
	for _, tt := range []struct {
		protocols []ianadb.Protocol
		ports     int
	}{
		{[]ianadb.Protocol{tcp}, 42721},
		{[]ianadb.Protocol{udp}, 42723},
		{[]ianadb.Protocol{sctp}, 42707},
		{[]ianadb.Protocol{dccp}, 42705},
		{[]ianadb.Protocol{tcp, udp}, 42721}, // the two that udp has more are taken on tcp
		{nil, 42703},                         // sctp and dccp have stale ranges that still cover 7775 and 7997
		{[]ianadb.Protocol{tcp, any_}, 42703},
	} {
		runs, ports := d.Free(everyPort, tt.protocols...), 0
		for i, run := range runs {
			ports += int(run.Last-run.First) + 1
			if i > 0 && int(run.First) <= int(runs[i-1].Last)+1 {
				t.Errorf("%v: %v follows %v: not ascending, or one run", tt.protocols, run, runs[i-1])
			}
			for port := int(run.First); port <= int(run.Last); port++ {
				for _, p := range tt.protocols {
					if p != any_ && !d.Unassigned(uint16(port), p) {
						t.Errorf("%v: %d is not free for %v", tt.protocols, port, p)
					}
				}
			}
		}
		if ports != tt.ports {
			t.Errorf("%v: %d ports, want %d", tt.protocols, ports, tt.ports)
		}
	}
}

// TestFreeRanges: the file has 754 ranges of unassigned ports, and the largest are runs of their own.
func TestFreeRanges(t *testing.T) {
	ranges := 0
	for _, r := range rows(t) {
		if r[0] == "" && strings.Contains(r[1], "-") && r[3] == "Unassigned" {
			ranges++
		}
	}
	if ranges != 754 {
		t.Errorf("%d ranges in the file, want 754", ranges)
	}
	runs := directory(t).Free(everyPort, tcp, udp)
	slices.SortStableFunc(runs, func(a, b ianadb.Range) int { return cmp.Compare(b.Last-b.First, a.Last-a.First) })
	want := []ianadb.Range{{First: 29170, Last: 29998}, {First: 41798, Last: 42507}, {First: 43442, Last: 44122}}
	if diff := gocmp.Diff(want, runs[:3]); diff != "" {
		t.Errorf("the largest runs (-want +got):\n%s", diff)
	}
}

func TestFree(t *testing.T) {
	one := func(port uint16) ianadb.Range { return ianadb.Range{First: port, Last: port} }
	d := directory(t, "mine 29300-29400 tcp", "wide 29500 ")
	for _, tt := range []struct {
		within    ianadb.Range
		protocols []ianadb.Protocol
		want      []ianadb.Range
	}{
		{ianadb.Range{First: 29167, Last: 30000}, []ianadb.Protocol{tcp, udp}, []ianadb.Range{
			{First: 29170, Last: 29299}, {First: 29401, Last: 29499}, {First: 29501, Last: 29998},
		}},
		{ianadb.Range{First: 29200, Last: 29600}, []ianadb.Protocol{udp}, []ianadb.Range{
			{First: 29200, Last: 29499}, {First: 29501, Last: 29600},
		}},
		{ianadb.Range{First: 29300, Last: 29300}, []ianadb.Protocol{udp}, []ianadb.Range{one(29300)}},
		{ianadb.Range{First: 29300, Last: 29300}, []ianadb.Protocol{udp, tcp}, nil},
		{ianadb.Range{First: 7770, Last: 7780}, []ianadb.Protocol{tcp}, []ianadb.Range{ // in the stale range
			{First: 7770, Last: 7774}, one(7776), one(7780),
		}},
		{ianadb.Range{First: 49000, Last: 65535}, []ianadb.Protocol{tcp}, []ianadb.Range{{First: 49002, Last: 49149}}}, // dynamic is not free
		{ianadb.Range{First: 716, Last: 716}, []ianadb.Protocol{tcp}, nil},                                             // nor is "no record"
		{ianadb.Range{First: 0, Last: 0}, nil, nil},
		{ianadb.Range{First: 65535, Last: 65535}, nil, nil},
		{ianadb.Range{First: 29400, Last: 29200}, []ianadb.Protocol{udp}, nil},
	} {
		if diff := gocmp.Diff(tt.want, d.Free(tt.within, tt.protocols...)); diff != "" {
			t.Errorf("%v, %v (-want +got):\n%s", tt.within, tt.protocols, diff)
		}
	}
}
