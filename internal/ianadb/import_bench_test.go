package ianadb_test

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/portd/portd/internal/ianadb"
)

// BenchmarkParse reads the whole CSV; the XML is an excerpt, which bytes per second compare, or the whole one of
// PORTD_IANA_FILES.
func BenchmarkParse(b *testing.B) {
	xml, _ := excerpts(b)
	csv, err := os.ReadFile(csvFile)
	if err != nil {
		b.Fatal(err)
	}
	if names, _ := filepath.Glob(filepath.Join(os.Getenv("PORTD_IANA_FILES"), "official-*.xml.gz")); len(names) > 0 {
		xml = unzip(b, names[0])
	}
	for format, file := range map[string][]byte{"csv": csv, "xml": xml} {
		b.Run(format, func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(int64(len(file)))
			for b.Loop() {
				if _, err := ianadb.Parse(bytes.NewReader(file)); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkImport is all that an import does before it can answer, beside the disk.
func BenchmarkImport(b *testing.B) {
	csv, err := os.ReadFile(csvFile)
	if err != nil {
		b.Fatal(err)
	}
	old := ianadb.Embedded()
	b.ReportAllocs()
	for b.Loop() {
		file, err := ianadb.Parse(bytes.NewReader(csv))
		if err != nil {
			b.Fatal(err)
		}
		if err := ianadb.CheckSuccessor(old, file.Entries); err != nil {
			b.Fatal(err)
		}
		blob, err := ianadb.Compile(file.Entries, ianadb.Source{SHA256: file.SHA256})
		if err != nil {
			b.Fatal(err)
		}
		db, err := ianadb.Open(string(blob))
		if err != nil {
			b.Fatal(err)
		}
		sink += len(ianadb.Diff(old, db))
	}
}

func BenchmarkDiff(b *testing.B) {
	entries := entriesOf(ianadb.Embedded())
	for i := range entries {
		if i%200 == 0 {
			entries[i].Notes += " changed"
		}
	}
	old, new := ianadb.Embedded(), compile(b, entries)
	b.ReportAllocs()
	for b.Loop() {
		sink += len(ianadb.Diff(old, new))
	}
}
