package ianadb

import (
	"fmt"
	"iter"
	"slices"
	"time"
)

// CheckSuccessor refuses what has no fault in it but does not look like the next edition of the registry, and says why: a
// file that was cut off between two records, a file too unlike old in size, and one that is older by what is in it. A week
// changes a handful of records, a year a few dozen. Whoever knows better may take it all the same.
func CheckSuccessor(old *DB, new []Entry) error {
	was, is := old.Len(), len(new)
	if was == 0 {
		return nil
	}
	implausible := func(format string, args ...any) error {
		return fmt.Errorf("not a plausible next edition: "+format, args...)
	}
	if is == 0 {
		return implausible("it has no records")
	}
	if is < was && beginsWith(old, new) {
		return implausible("its %d records are the first of the %d in use, and nothing is new: it looks cut off after %q", is, was, new[is-1].label())
	}
	if 2*is < was {
		return implausible("%d records, fewer than half of the %d in use: it looks cut off, or like an excerpt", is, was)
	}
	if is > 2*was {
		return implausible("%d records, more than twice the %d in use", is, was)
	}
	if n := old.portless(); n >= fewPortless && !slices.ContainsFunc(new, func(e Entry) bool { return !e.HasPort() }) {
		return implausible("no name without a port, and %d are in use: it looks cut off where the ports end, after %q", n, new[is-1].label())
	}
	if n := missingTail(old, new); n >= fewMissing {
		return implausible("the last %d records in use are missing from it: it looks cut off after %q", n, new[is-1].label())
	}
	had := latest(func(yield func(Entry) bool) {
		old.All()(func(r Record) bool { return yield(r.Entry()) })
	})
	if has := latest(slices.Values(new)); has < had {
		return implausible("its latest entry is of %s, and the latest in use of %s: it looks older", orNoDate(has), had)
	}
	return nil
}

// latest is the day on which an entry was last added or changed, or "". Nearly every change has its day in the entry, so
// that this is the date of the registry. Some old entries have a month alone.
func latest(entries iter.Seq[Entry]) (day string) {
	for e := range entries {
		for _, date := range [...]string{e.RegistrationDate, e.ModificationDate} {
			if date > day && isDay(date) {
				day = date
			}
		}
	}
	return day
}

func isDay(date string) bool {
	_, err := time.Parse(time.DateOnly, date)
	return err == nil
}

func orNoDate(day string) string {
	if day == "" {
		return "no known day"
	}
	return day
}

const (
	fewPortless = 10 // an edition may lose all its names without a port if they were fewer
	fewMissing  = 4  // and its last three records: two services, or one of three protocols
)

// beginsWith reports whether old begins with these records.
func beginsWith(old *DB, records []Entry) bool {
	for i, e := range records {
		if (Record{old, uint32(i)}).Entry() != e {
			return false
		}
	}
	return true
}

// portless counts the names without a port.
func (db *DB) portless() (n int) {
	for r := range db.All() {
		if _, ok := r.Ports(); !ok {
			n++
		}
	}
	return n
}

// missingTail counts the last records of old that new has no more.
func missingTail(old *DB, new []Entry) (n int) {
	has := make(map[identity]bool, len(new))
	for _, e := range new {
		id := e.identity()
		id.description = "" // which may change
		has[id] = true
	}
	for n < old.Len() {
		e := (Record{old, uint32(old.Len() - 1 - n)}).Entry()
		id := e.identity()
		id.description = ""
		if has[id] {
			break
		}
		n++
	}
	return n
}
