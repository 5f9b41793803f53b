package ianadb_test

import (
	"bytes"
	"compress/gzip"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/portd/portd/internal/ianadb"
)

// TestOfficialFiles reads whole files of IANA's, which are too large to carry along: official-DATE.csv.gz and
// official-DATE.xml.gz in a directory.
func TestOfficialFiles(t *testing.T) {
	dir := os.Getenv("PORTD_IANA_FILES")
	if dir == "" {
		t.Skip("PORTD_IANA_FILES is not set: want a directory with official-2026-08-17.xml.gz and the like")
	}
	names, err := filepath.Glob(filepath.Join(dir, "official-*.gz"))
	if err != nil || len(names) == 0 {
		t.Fatalf("no official-*.gz in %s (%v)", dir, err)
	}
	slices.Sort(names) // by date
	byDate := map[string][]ianadb.Entry{ianadb.Embedded().Source().Date: entriesOf(ianadb.Embedded())}
	var before *ianadb.DB
	for _, name := range names {
		t.Log(name)
		date, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(name), "official-"), ".")
		raw := unzip(t, name)
		file, err := ianadb.Parse(bytes.NewReader(raw))
		if err != nil {
			t.Fatal(err)
		}
		if file.Date != date || file.Dated != strings.HasSuffix(name, ".xml.gz") {
			t.Errorf("the file is of %s, says itself: %v", file.Date, file.Dated)
		}
		if same := byDate[date]; same != nil {
			if diff := cmp.Diff(same, file.Entries); diff != "" {
				t.Errorf("differs from the other form of that day (-want +got):\n%.5000s", diff)
			}
		}
		byDate[date] = file.Entries
		if strings.HasSuffix(name, ".csv.gz") && !bytes.Equal(writeCSV(t, file.Entries), raw) {
			t.Error("written again it is another file")
		}
		db := compile(t, file.Entries)
		if before != nil {
			if err := ianadb.CheckSuccessor(before, file.Entries); err != nil {
				t.Error(err)
			}
			if err := ianadb.CheckSuccessor(db, entriesOf(before)); err == nil {
				t.Error("the older one passes for the next edition of the newer")
			}
			changes := ianadb.Diff(before, db)
			checkDiff(t, before, db, changes)
			t.Logf("%d changes", len(changes))
		}
		before = db
	}
}

func unzip(t testing.TB, name string) []byte {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
