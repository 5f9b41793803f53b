package registry

import (
	"cmp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/portd/portd/internal/ianadb"
)

// Services is the service registry at one moment: IANA's, with the host's own entries over it. It never changes.
type Services struct {
	ianadb.Directory
	Current  *Edition // the edition of IANA's registry that answers
	Previous *Edition // the one that UndoImport brings back; nil: none
	Embedded *Edition // the one that portd was built with
	// Unreadable is what the store has where Current is Embedded only because this portd cannot read that; nil: nothing.
	Unreadable *Edition

	Own []*OwnService // sorted by name, protocol and port
}

// Origin says how an edition got here.
type Origin uint8

const (
	Embedded Origin = iota + 1 // with portd itself
	Imported
)

func (o Origin) String() string { return [...]string{"unknown", "embedded", "imported"}[o] }

// An Edition is IANA's registry as it was at some date. It is never changed.
type Edition struct {
	Slot    string // CurrentSlot or PreviousSlot
	Origin  Origin
	Date    string   // YYYY-MM-DD; empty where it is not known
	SHA256  [32]byte // of the file it was made from
	Records int
	Blob    string // as ianadb.Open reads it; empty in events

	// Of an imported one:
	From         string // URL or name of the file
	LastModified string // what the web server said of it (RFC 9110 section 8.8)
	ETag         string
	By           Principal
	Time         time.Time
}

// The places in the store that an edition can be in.
const (
	CurrentSlot  = "current"
	PreviousSlot = "previous"
)

// An OwnService is an entry of the host's own. It is never changed: a change makes another.
type OwnService struct {
	Entry    ianadb.Entry // with a name, ports and a protocol
	By       Principal    // who added or last changed it
	Time     time.Time    // when
	Revision Revision
}

// Services is the service registry as it is now. It waits for nothing.
func (r *Registry) Services() *Services { return r.services.Load() }

// embedded is the services of a host that has nothing of its own.
func embedded(db *ianadb.DB) *Services {
	source := db.Source()
	e := &Edition{
		Slot: CurrentSlot, Origin: Embedded, Date: source.Date, SHA256: source.SHA256, Records: db.Len(), Blob: db.Blob(),
	}
	return &Services{Directory: ianadb.Directory{IANA: db}, Current: e, Embedded: e}
}

// compare orders the host's own entries by name, protocol and port.
func (s *OwnService) compare(o *OwnService) int {
	a, b := s.Entry, o.Entry
	return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.First, b.First), cmp.Compare(a.Last, b.Last))
}

// age orders the host's own entries by their last change; one that is being changed now has no revision yet.
func (s *OwnService) age() uint64 { return uint64(s.Revision) - 1 }

// withOwn is s with other entries of the host's own.
func (s *Services) withOwn(own []*OwnService) (*Services, error) {
	next := *s
	next.Own, next.Directory.Own = own, nil
	slices.SortFunc(next.Own, (*OwnService).compare)
	if len(own) == 0 {
		return &next, nil
	}
	// Answers come in the order of these: one that holds fewer ports was meant for just them, and a later one, which is of the
	// highest revision or of none yet, for what was there.
	order := slices.Clone(own)
	slices.SortStableFunc(order, func(a, b *OwnService) int {
		return cmp.Or(cmp.Compare(a.Entry.Last-a.Entry.First, b.Entry.Last-b.Entry.First), cmp.Compare(b.age(), a.age()))
	})
	entries := make([]ianadb.Entry, len(order))
	for i, o := range order {
		entries[i] = o.Entry
	}
	var err error
	next.Directory.Own, err = ianadb.New(entries, ianadb.Source{})
	return &next, err
}

func serviceKey(e ianadb.Entry) Key {
	return Key{KindService, strings.ToLower(e.Name) + "/" + e.Protocol.String() + "/" + portsText(e.First, e.Last)}
}

// portsText spells ports as the registry does: "443", "6000-6063".
func portsText(first, last uint16) string {
	text := strconv.Itoa(int(first))
	if last != first {
		text += "-" + strconv.Itoa(int(last))
	}
	return text
}
