package ianadb_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/portd/portd/internal/ianadb"
)

func TestCheckSuccessor(t *testing.T) {
	old := ianadb.Embedded()
	all := entriesOf(old)
	ported := slices.IndexFunc(all, func(e ianadb.Entry) bool { return !e.HasPort() })
	news := ianadb.Entry{Name: "newcomer", Port: "49000", First: 49000, Last: 49000, Protocol: ianadb.TCP}
	insert := func(entries []ianadb.Entry) []ianadb.Entry {
		return slices.Insert(slices.Clone(entries), 3000, news)
	}
	many := slices.Clone(all)
	for i := range len(all) + 1 {
		many = append(many, ianadb.Entry{Name: fmt.Sprint("more", i)})
	}
	reworded := slices.Clone(all)
	for i := len(all) - 10; i < len(all); i++ {
		reworded[i].Description += ", reworded"
	}
	older := slices.Clone(all)
	for i := range older {
		if older[i].ModificationDate == "2026-08-17" {
			older[i].ModificationDate = ""
		}
		if older[i].RegistrationDate == "2026-08-17" {
			older[i].RegistrationDate = "2026-08-16"
		}
	}
	undated := slices.Clone(all)
	for i := range undated {
		undated[i].ModificationDate, undated[i].RegistrationDate = "", "someday"
	}
	for name, tt := range map[string]struct {
		new    []ianadb.Entry
		reason string // "" for a plausible one
	}{
		"the same":                 {all, ""},
		"one more":                 {insert(all), ""},
		"one less in the middle":   {slices.Delete(slices.Clone(all), 5000, 5001), ""},
		"the last three gone":      {insert(all[:len(all)-3]), ""},
		"the last ten reworded":    {reworded, ""},
		"twice as many":            {many[:2*len(all)], ""},
		"half":                     {insert(slices.Concat(all[:len(all)/4], all[len(all)/4*3-1:])), ""},
		"none":                     {nil, "no records"},
		"older by what is in it":   {older, "its latest entry is of 2026-08-16, and the latest in use of 2026-08-17: it looks older"},
		"without any day":          {undated, "its latest entry is of no known day"},
		"fewer than half":          {all[8000:], "6533 records, fewer than half of the 14533 in use"},
		"more than twice":          {many, "29067 records, more than twice the 14533 in use"},
		"cut off near the end":     {all[:len(all)-1], `its 14532 records are the first of the 14533 in use, and nothing is new: it looks cut off after "zigbee-gateway/tcp"`},
		"cut off early":            {all[:100], "its 100 records are the first"},
		"a new one cut off":        {insert(all[:len(all)-4]), "the last 4 records in use are missing from it"},
		"a new one without a tail": {insert(all[:ported]), `no name without a port, and 1070 are in use: it looks cut off where the ports end, after "49151"`},
	} {
		t.Run(name, func(t *testing.T) {
			err := ianadb.CheckSuccessor(old, tt.new)
			if tt.reason == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if err == nil || !strings.HasPrefix(err.Error(), "not a plausible next edition: ") || !strings.Contains(err.Error(), tt.reason) {
				t.Errorf("error %v, want %s", err, tt.reason)
			}
		})
	}
}

// TestCutOff: wherever the next edition breaks off between two records, one check or the other sees it.
func TestCutOff(t *testing.T) {
	next := entriesOf(ianadb.Embedded())
	var last []ianadb.Entry // an older edition: without some of the records, others worded differently
	for i, e := range next {
		if i%400 != 7 {
			last = append(last, e)
		}
		if i%500 == 3 {
			last[len(last)-1].Description += " (old)"
		}
	}
	old := compile(t, last)
	if err := ianadb.CheckSuccessor(old, next); err != nil {
		t.Errorf("the whole: %v", err)
	}
	for n := 0; n <= len(next)-8; n += 97 {
		if ianadb.CheckSuccessor(old, next[:n]) == nil {
			t.Errorf("the first %d of %d records pass for the next edition", n, len(next))
		}
	}
}
