package registry

import (
	"fmt"

	"github.com/portd/portd/internal/ianadb"
)

// seed makes the service registry of what the store has, and adds to c what the store has not: the edition that portd was
// built with, where it has none, or where it only has an older one that portd was built with before.
func (r *Registry) seed(st *State, c *commit) {
	next := *r.Services() // as portd was built
	shipped := next.Embedded
	var stored *Edition
	for _, err := range st.Damaged {
		r.cfg.Log.Error("an edition of the service registry is lost; if it was imported, import it again", "err", err)
	}
	for _, e := range st.Editions {
		if e.Blob == shipped.Blob {
			e.Blob = shipped.Blob // the same bytes, and the program has them anyway
		}
		switch e.Slot {
		case CurrentSlot:
			stored = e
		case PreviousSlot:
			next.Previous = e
		}
	}
	switch {
	case stored == nil:
		c.put = append(c.put, shipped)
		if len(st.Damaged) > 0 { // in a new store there is nothing that it replaces
			c.events = append(c.events, replacedBy(shipped, "the registry in the store was damaged; "+shipped.describe()+" answers"))
		}
	case shipped.follows(stored):
		next.Previous = stored.in(PreviousSlot)
		reason := "portd was built with a newer registry: " + shipped.summary(stored)
		c.put = append(c.put, shipped, next.Previous)
		c.events = append(c.events, replacedBy(shipped, reason))
		r.cfg.Log.Info("the service registry is replaced", "reason", reason)
	case stored.Origin == Embedded && stored.SHA256 == shipped.SHA256 && stored.Blob != shipped.Blob:
		// Compiled in another way by another portd, and the same.
		next.Current = stored.in(CurrentSlot)
		next.Current.Blob = shipped.Blob
		c.put = append(c.put, next.Current)
	default:
		if err := next.answerFrom(stored); err != nil {
			r.cfg.Log.Error("the service registry in the store cannot be read and is left there; the one that portd was built with answers",
				"stored", stored.describe(), "built with", shipped.describe(), "err", err)
		}
	}
	services, err := next.withOwn(st.Services)
	if err != nil {
		r.cfg.Log.Error("the host's own entries in the service registry are left out", "entries", len(st.Services), "err", err)
		services = &next
		services.Own = st.Services
	}
	r.services.Store(services)
}

// replacedBy is the event of a start that puts another edition in place.
func replacedBy(e *Edition, reason string) Event {
	return Event{Type: EventRegistryReplaced, Edition: e.facts(), Caller: Self, Reason: reason}
}

// Stored is the service registry that a portd built with db would answer from, given what its store has: for a program that
// has no portd to ask. An edition that a portd built with db would replace is not used.
func Stored(db *ianadb.DB, current *Edition, own []*OwnService) (*Services, error) {
	next := *embedded(db)
	if !next.Embedded.follows(current) {
		_ = next.answerFrom(current) // where it fails, the embedded one answers
	}
	return next.withOwn(own)
}

// answerFrom makes e the edition that answers in place of the embedded one, which goes on where e cannot be read.
func (s *Services) answerFrom(e *Edition) error {
	if e.Blob != s.Embedded.Blob {
		db, err := ianadb.Open(e.Blob)
		if err != nil {
			s.Unreadable = e.facts()
			return err
		}
		s.IANA = db
	}
	s.Current = e
	return nil
}

// follows says whether e, which portd was built with, is to take the place of one in the store: of one that is there for
// no other reason than that an earlier portd was built with it.
func (e *Edition) follows(stored *Edition) bool {
	return stored.Origin == Embedded && stored.By == "" && stored.SHA256 != e.SHA256 && e.Date > stored.Date
}

// summary says what is new in e, as far as the one before can be read.
func (e *Edition) summary(before *Edition) string {
	was, err := ianadb.Open(before.Blob)
	if err != nil {
		return e.describe()
	}
	is, err := ianadb.Open(e.Blob)
	if err != nil {
		return e.describe()
	}
	return fmt.Sprintf("%s in place of %s: %s", e.describe(), before.describe(), countChanges(ianadb.Diff(was, is)))
}

// describe names e in messages: "2026-08-17 (embedded)".
func (e *Edition) describe() string {
	date := e.Date
	if date == "" {
		date = "without a date"
	}
	return fmt.Sprintf("%s (%v)", date, e.Origin)
}

// in is e in another place of the store.
func (e *Edition) in(slot string) *Edition {
	moved := *e
	moved.Slot = slot
	return &moved
}

// facts is e without its blob, which would make a megabyte of an event.
func (e *Edition) facts() *Edition {
	f := *e
	f.Blob = ""
	return &f
}
