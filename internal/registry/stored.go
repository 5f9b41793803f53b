package registry

import "github.com/portd/portd/internal/ianadb"

// Stored is the service registry that a portd built with db would answer from, given what its store has: for a program that
// has no portd to ask. An edition that cannot be read, or is older than db and was not imported, is not used.
func Stored(db *ianadb.DB, editions []*Edition, own []*OwnService) (*Services, error) {
	next := *embedded(db)
	for _, e := range editions {
		switch {
		case e.Slot == PreviousSlot:
			next.Previous = e
		case next.Embedded.follows(e) || e.Blob == next.Embedded.Blob:
		default:
			if stored, err := ianadb.Open(e.Blob); err == nil {
				next.IANA, next.Current = stored, e
			}
		}
	}
	return next.withOwn(own)
}
