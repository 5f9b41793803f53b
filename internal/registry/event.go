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
	EventServiceAdded
	EventServiceEdited
	EventServiceRemoved
	EventRegistryReplaced
	EventUpdated
)

// An Event tells of one durable change to one reservation, lease or entry of the host's own in the service registry, or
// of IANA's part of that.
type Event struct {
	Type        EventType
	Reservation *Reservation // after the change; as it was before where it has ended; nil for events of leases
	Lease       *Lease
	Service     *OwnService // as it was before where it was removed
	Edition     *Edition    // the one that answers now, without its Blob
	Caller      Principal
	Reason      string // why, where that is not the caller's own wish; of an update and a replaced registry what it changed
}
