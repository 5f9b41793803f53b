// Gen compiles the registry's CSV into the blob that package ianadb embeds.
package main

import (
	"bytes"
	"crypto/sha256"
	"flag"
	"fmt"
	"os"

	"github.com/portd/portd/internal/ianadb"
)

func main() {
	date := flag.String("date", "", "`date` of the registry, YYYY-MM-DD")
	flag.Usage = func() {
		fmt.Fprintln(os.Stderr, "usage: gen -date DATE CSV BLOB")
		flag.PrintDefaults()
	}
	flag.Parse()
	if flag.NArg() != 2 {
		flag.Usage()
		os.Exit(2)
	}
	if err := run(*date, flag.Arg(0), flag.Arg(1)); err != nil {
		fmt.Fprintln(os.Stderr, "gen:", err)
		os.Exit(1)
	}
}

func run(date, from, to string) error {
	csv, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	entries, err := ianadb.ParseCSV(bytes.NewReader(csv))
	if err != nil {
		return fmt.Errorf("%s: %w", from, err)
	}
	blob, err := ianadb.Compile(entries, ianadb.Source{Date: date, SHA256: sha256.Sum256(csv)})
	if err != nil {
		return err
	}
	return os.WriteFile(to, blob, 0o644)
}
