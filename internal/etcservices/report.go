package etcservices

import (
	"fmt"
	"iter"

	"github.com/portd/portd/internal/ianadb"
)

// A Report says what became of the records that Write was given.
type Report struct {
	Own, IANA Counts
	Cut       int    // lines with a description that was cut to fit
	Notes     []Note // what could not be written as it is
}

// Counts are the numbers of one block. Every record is in one of those from Written to Bad.
type Counts struct {
	Lines        int // in the file: one for each port and protocol, and some for names that cannot share one
	Written      int // records with a line of their own, or a place on another's
	Duplicate    int // records that add nothing: name, port and protocol were there
	Unnamed      int // without a name: Unassigned, Reserved and the like
	Portless     int // with a name alone
	DeRegistered int // with a name that IANA took back
	Bad          int // that services(5) cannot hold; each has a Note
}

// Records returns the number of records that were given.
func (c Counts) Records() int {
	return c.Written + c.Duplicate + c.Unnamed + c.Portless + c.DeRegistered + c.Bad
}

// A Note is about one record that is not in the file as it is in the registry.
type Note struct {
	Own   bool // rather than IANA's
	Entry ianadb.Entry
	What  string // was done, and why: "left out: …", "written … too, …"
}

// String returns the note on one line that is safe to print.
func (n Note) String() string {
	whose := "IANA's"
	if n.Own {
		whose = "own"
	}
	ports := fmt.Sprint(n.Entry.First)
	if n.Entry.First != n.Entry.Last {
		ports = fmt.Sprintf("%d-%d", n.Entry.First, n.Entry.Last)
	}
	if p := n.Entry.Protocol; p != ianadb.AnyProtocol && p <= ianadb.DCCP {
		ports += "/" + p.String()
	}
	return fmt.Sprintf("%s service %q (%s): %s", whose, n.Entry.Name, ports, n.What)
}

func (r *Report) note(own bool, e ianadb.Entry, what string) {
	r.Notes = append(r.Notes, Note{own, e, what})
}

// sift returns the records that the file can hold, and counts the others.
func (r *Report) sift(records iter.Seq[ianadb.Entry], own bool) []ianadb.Entry {
	if records == nil {
		return nil
	}
	c := &r.IANA
	if own {
		c = &r.Own
	}
	var sound []ianadb.Entry
	for e := range records {
		switch fault := faultOf(e.Name); {
		case e.Name == "":
			c.Unnamed++
		case !e.HasPort():
			c.Portless++
		case !own && e.Status() != ianadb.StatusAssigned:
			c.DeRegistered++
		case fault != "":
			c.Bad++
			r.note(own, e, "left out: "+fault)
		case e.First > e.Last || e.Protocol > ianadb.DCCP:
			c.Bad++
			r.note(own, e, "left out: no such ports or protocol")
		default:
			sound = append(sound, e)
		}
	}
	return sound
}
