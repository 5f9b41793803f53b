package registry

import "time"

// LeaseKind says what ends a lease.
type LeaseKind uint8

const (
	SessionLease LeaseKind = iota + 1 // the end of a stream, and a grace after it
	TTLLease                          // a time after which it must have been renewed
	ProcessLease                      // the end of a process
)

// Limits of a session's grace, and of a time to live.
const (
	DefaultGrace = 10 * time.Second
	MaxGrace     = time.Hour
	MinTTL       = time.Second
	MaxTTL       = 30 * 24 * time.Hour
)

// A LeaseSpec says what ends a lease.
type LeaseSpec struct {
	Kind  LeaseKind
	TTL   time.Duration
	PID   int32
	Grace time.Duration // of a session; 0 means DefaultGrace
}

// A Lease ends reservations by itself. It is never changed once it is in the table.
type Lease struct {
	ID      string
	Owner   Principal
	Spec    LeaseSpec
	Token   [32]byte // SHA-256 of a session's resume token; the token itself is only ever with its owner
	Start   int64    // of a process: when it started, in clock ticks of boot time; with its pid that is unique within a boot
	Single  bool     // made with a reservation: it ends when it carries none any more
	Created time.Time

	CreateRevision Revision
}

// LeaseStatus is a lease as it stands now; this part of it is not durable.
type LeaseStatus struct {
	*Lease
	Connected bool
	Expires   time.Time // zero while connected, and where a process decides
}

// check refuses a lease that cannot be made by asking for it. Field is where the spec stands in the request.
func (s LeaseSpec) check(field string) error {
	switch s.Kind {
	case SessionLease:
		return invalid(field, "a session is made by opening it; give its lease_id")
	case TTLLease:
		if s.TTL < MinTTL || s.TTL > MaxTTL {
			return invalid(field+".ttl", "%v is not allowed; allowed are %v to %.0fh (30 days)", s.TTL, MinTTL, MaxTTL.Hours())
		}
	case ProcessLease:
		if s.PID <= 0 {
			return invalid(field+".process.pid", "%d is not a pid", s.PID)
		}
	default:
		return invalid(field, "says nothing that ends the lease; one of ttl and process is wanted")
	}
	return nil
}
