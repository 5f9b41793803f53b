package registry

import "time"

// LeaseKind says what ends a lease.
type LeaseKind uint8

const (
	SessionLease LeaseKind = iota + 1 // the end of a stream, and a grace after it
	TTLLease                          // a time after which it must have been renewed
	ProcessLease                      // the end of a process
)

// Limits of a session's grace.
const (
	DefaultGrace = 10 * time.Second
	MaxGrace     = time.Hour
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
	Created time.Time

	CreateRevision Revision
}

// LeaseStatus is a lease as it stands now; this part of it is not durable.
type LeaseStatus struct {
	*Lease
	Connected bool
	Expires   time.Time // zero while connected
}
