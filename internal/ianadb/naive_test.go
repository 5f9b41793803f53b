package ianadb_test

import (
	"bytes"
	"encoding/csv"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/portd/portd/internal/ianadb"
)

const csvFile = "service-names-port-numbers.csv"

// rows is the registry by encoding/csv alone: none of the package's own code has touched it.
func rows(t testing.TB) [][]string {
	t.Helper()
	b, err := os.ReadFile(csvFile)
	if err != nil {
		t.Fatal(err)
	}
	all, err := csv.NewReader(bytes.NewReader(b)).ReadAll()
	if err != nil {
		t.Fatal(err)
	}
	return all[1:]
}

// long is how many of alike cases a test looks at: all with PORTD_LONG=1, else some.
func long(all, some int) int {
	if os.Getenv("PORTD_LONG") != "" {
		return all
	}
	return some
}

type answer struct {
	Status string
	Names  []string
}

// naive reads the answer for a port off the rows that hold it, in the plainest way that follows the rules.
func naive(holders [][]string, port int, proto string) answer {
	var ours [][]string
	for _, r := range holders {
		if r[2] == proto || r[2] == "" {
			ours = append(ours, r)
		}
	}
	var names []string
	for _, r := range ours {
		if r[0] != "" && r[3] != "De-Registered" {
			names = append(names, r[0])
		}
	}
	if names != nil {
		return answer{"assigned", names}
	}
	best, bestRank := "", 1<<30
	for _, r := range ours {
		low, high := bounds(r[1])
		rank := 2 * (high - low)
		if r[2] == "" {
			rank++
		}
		if rank < bestRank {
			best, bestRank = r[3], rank
		}
	}
	switch d := strings.ToLower(best); {
	case len(ours) == 0 && port >= 49152:
		return answer{Status: "dynamic"}
	case len(ours) == 0:
		return answer{Status: "none"}
	case strings.Contains(d, "unassigned"):
		return answer{Status: "unassigned"}
	case strings.HasPrefix(d, "reserved"):
		return answer{Status: "reserved"}
	case strings.HasPrefix(d, "any private"):
		return answer{Status: "private"}
	case d == "de-registered", d == "removed", d == "deprecated", d == "de-commissioned port", strings.HasPrefix(d, "decomissioned port"):
		return answer{Status: "retired"}
	}
	return answer{Status: "other"}
}

func bounds(port string) (low, high int) {
	from, to, isRange := strings.Cut(port, "-")
	low, _ = strconv.Atoi(from)
	if high = low; isRange {
		high, _ = strconv.Atoi(to)
	}
	return low, high
}

// TestEveryPort compares all answers with the naive ones, and their totals with counts made by other programs.
func TestEveryPort(t *testing.T) {
	db := ianadb.Embedded()
	holders := make([][][]string, 1<<16)
	for _, r := range rows(t) {
		if r[1] != "" {
			low, high := bounds(r[1])
			for port := low; port <= high; port++ {
				holders[port] = append(holders[port], r)
			}
		}
	}
	totals := map[string]map[string]int{}
	for _, p := range []ianadb.Protocol{ianadb.TCP, ianadb.UDP, ianadb.SCTP, ianadb.DCCP} {
		totals[p.String()] = map[string]int{}
		for port := range 1 << 16 {
			got := answer{Status: db.Status(uint16(port), p).String()}
			for name := range db.Names(uint16(port), p) {
				got.Names = append(got.Names, name)
			}
			if want := naive(holders[port], port, p.String()); got.Status != want.Status || !slices.Equal(got.Names, want.Names) {
				t.Errorf("%d/%v: %v, want %v", port, p, got, want)
			}
			if free := db.Unassigned(uint16(port), p); free != (got.Status == "unassigned") {
				t.Errorf("%d/%v: Unassigned is %v with status %s", port, p, free, got.Status)
			}
			totals[p.String()][got.Status]++
		}
	}
	want := map[string]map[string]int{
		"tcp": {
			"assigned": 6148, "unassigned": 42721, "reserved": 250, "private": 7, "retired": 9, "none": 17, "dynamic": 16384,
		},
		"udp": {
			"assigned": 5755, "unassigned": 42723, "reserved": 635, "private": 7, "retired": 12, "none": 19, "other": 1,
			"dynamic": 16384,
		},
		"sctp": {"assigned": 278, "unassigned": 42707, "reserved": 44, "retired": 9, "none": 6114, "dynamic": 16384},
		"dccp": {"assigned": 199, "unassigned": 42705, "reserved": 44, "retired": 9, "none": 6195, "dynamic": 16384},
	}
	if diff := cmp.Diff(want, totals); diff != "" {
		t.Errorf("totals (-want +got):\n%s", diff)
	}
}

// TestEveryName compares the records found under every name, spelled in capitals, with a plain scan of the rows.
func TestEveryName(t *testing.T) {
	db := ianadb.Embedded()
	want := map[string][][]string{}
	for _, r := range rows(t) {
		if r[0] != "" {
			want[r[0]] = append(want[r[0]], r)
		}
	}
	if len(want) != 7327 {
		t.Errorf("%d distinct names, want 7327", len(want))
	}
	for name, rows := range want {
		var got [][]string
		for r := range db.ByName(strings.ToUpper(name), ianadb.AnyProtocol) {
			got = append(got, row(r.Entry()))
		}
		if !slices.EqualFunc(rows, got, slices.Equal[[]string]) { // cmp would take seconds for all of them
			t.Errorf("%s (-want +got):\n%s", name, cmp.Diff(rows, got))
		}
	}
}

// row is an entry as the CSV has it.
func row(e ianadb.Entry) []string {
	return []string{
		e.Name, e.Port, e.Protocol.String(), e.Description, e.Assignee, e.Contact, e.RegistrationDate, e.ModificationDate,
		e.Reference, e.ServiceCode, e.UnauthorizedUse, e.Notes,
	}
}
