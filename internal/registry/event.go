package registry

// EventType says what happened.
type EventType uint8

const (
	EventReserved EventType = iota + 1
	EventReleased
	EventListening
	EventClosed
	EventLost
	EventRecovered
	EventExpired
	EventLeaseCreated
	EventLeaseEnded
)

// An Event tells of one durable change to one reservation or lease.
type Event struct {
	Type        EventType
	Reservation *Reservation // after the change; as it was before where it has ended; nil for events of leases
	Lease       *Lease
	Caller      Principal
	Reason      string // why, where that is not the caller's own wish
}
