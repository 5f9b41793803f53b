package registry

import (
	"context"
	"iter"
	"time"
)

// A Store keeps what the registry decided. Implementations pass storetest.Run.
type Store interface {
	// Load reads everything but the Requests, as of one revision. A store that is new has a StoreID, revision 0 and nothing else.
	Load(ctx context.Context) (*State, error)
	// Requests reads those that are remembered. They may be many, and no port waits for them.
	Requests(ctx context.Context) ([]*Request, error)
	// Commit writes all changes or none, durably, on top of revision base; the changes' revisions follow it one by one.
	// ErrConflict where the store is at another revision, ErrUnavailable where it cannot write.
	Commit(ctx context.Context, base Revision, changes []Change) error
	// Events reads the changes kept from revision from on, in order, up to the last one committed when it was called. It
	// yields a *CompactedError where from is older than what is kept. What it yields has Revision, Time and Events only, and
	// is there for changes without events too.
	Events(ctx context.Context, from Revision) iter.Seq2[Change, error]
	// Close releases the store; nothing may be called after it.
	Close() error
}

// BackupInfo is what a backup of a Store says of itself.
type BackupInfo struct {
	StoreID          string // of the store that it was made of
	Revision, Oldest Revision
	Schema           uint32
	Size             int64 // bytes in all
	Time             time.Time
	Reservations     int64
}

// State is everything a Store has, but for the requests and the events.
type State struct {
	StoreID  string   // new when the store was made, and after a restore
	Schema   uint32   // version of the records' format
	Revision Revision // of the last change
	Oldest   Revision // from which on events are kept; Revision+1 where there are none
	Boot     *Boot    // nil in a new store

	Reservations []*Reservation
	Leases       []*Lease
	Editions     []*Edition
	Services     []*OwnService
	Formers      []*Former
	Namespaces   []*Namespace

	// Damaged says, a reason each, which editions of the service registry could not be read and are left out. Ports are held
	// without them; a damaged record of any other kind is an error of Load.
	Damaged []error
}

// A Change is everything that one request changed, under one revision.
type Change struct {
	Revision Revision
	Time     time.Time
	Put      []Record
	Delete   []Key
	Events   []Event
	Compact  Revision // forget the events before this revision; 0: none
}

// A Record is something that a Store keeps: *Reservation, *Lease, *Request, *Boot, *Edition, *OwnService, *Former or *Namespace.
type Record interface{ Key() Key }

// Kind is a kind of record.
type Kind string

const (
	KindReservation Kind = "reservation"
	KindLease       Kind = "lease"
	KindRequest     Kind = "request"
	KindBoot        Kind = "boot"
	KindEdition     Kind = "edition"
	KindService     Kind = "service"
	KindFormer      Kind = "former"
	KindNamespace   Kind = "namespace"
)

// A Key names a record.
type Key struct {
	Kind Kind
	ID   string
}

// A Request remembers the answer to a request that came with an id, so that its repetition gets the same one.
type Request struct {
	Caller Principal
	Method string // "Reserve"
	ID     string
	Digest [32]byte // of the request's content
	Time   time.Time
	// Result is the reservation as it was answered; Lease likewise. Either may be nil.
	Result   *Reservation
	Lease    *Lease
	Passed   []PassedOver // of a Reserve
	Revision Revision
}

// A Former is a reservation that has ended and still means something: its name gets its ports again, or its ports are kept
// from others for a while.
type Former struct {
	Reservation *Reservation // as it was
	Ended       time.Time
	Until       time.Time // when its ports may go to another owner
}

// A Namespace is a network namespace in which there are reservations, other than portd's own.
type Namespace struct {
	Name   string // as endpoints have it
	Inode  uint64 // of /proc/PID/ns/net
	Cookie uint64 // SO_NETNS_COOKIE; no other has it before the next boot
	BootID string // of the boot in which Inode and Cookie were seen
}

// Boot is the boot of the host in which the store was last written to.
type Boot struct {
	ID   string    // /proc/sys/kernel/random/boot_id
	Seen time.Time // when portd was alive, to two minutes while there are leases that live by time; zero: unknown
}

func (r *Reservation) Key() Key { return Key{KindReservation, r.ID} }
func (l *Lease) Key() Key       { return Key{KindLease, l.ID} }
func (r *Request) Key() Key {
	return Key{KindRequest, string(r.Caller) + "\x00" + r.Method + "\x00" + r.ID}
}
func (b *Boot) Key() Key       { return Key{KindBoot, ""} }
func (e *Edition) Key() Key    { return Key{KindEdition, e.Slot} }
func (s *OwnService) Key() Key { return serviceKey(s.Entry) }
func (f *Former) Key() Key     { return Key{KindFormer, f.Reservation.ID} }
func (n *Namespace) Key() Key  { return Key{KindNamespace, n.Name} }
