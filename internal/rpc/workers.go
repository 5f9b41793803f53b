package rpc

import (
	"context"
	"net/netip"
	"time"

	"github.com/portd/portd/internal/registry"
)

// Workers is what the hand-off shows of itself. Its methods may be called at the same time, and what they return is the
// caller's.
type Workers interface {
	// Workers are those that are attached, in any order.
	Workers() []Worker
	// Connections are those handed over lately, and those before them that are still open, the newest first; how many are remembered is
	// bounded. More says that there are more, which a query Before the last of these gets.
	Connections(ctx context.Context, q ConnectionQuery) (some []Connection, more bool, err error)
	// Totals are a listener's counts, zero for one that the hand-off does not know.
	Totals(key registry.SocketKey) Totals
	// Sum is what all listeners together count since portd started.
	Sum() Totals
	// Drain drains workers, and tells them. Where successors are to be ready first and are not in time it drains these, and the error is a
	// *registry.UnsupportedError with the code NOT_READY; a worker that is not there is an ErrNotFound.
	Drain(ctx context.Context, d Drain) (Drained, error)
}

// A Worker is a process that is attached to listeners.
type Worker struct {
	ID        string // "wrk_…"
	UID       uint32
	PID       int32
	Command   string // as in /proc/PID/comm
	Listeners []WorkerListener
	Sent      uint64 // connections sent to it
	Done      uint64 // those of them that it said it was done with
	Attached  time.Time

	Generation string // as it calls the release or start that it belongs to
	Received   uint64 // as it says
	TakenBack  uint64 // sent to it, and gone to others, since it did not take them; not in Sent
	Stuck      bool   // it gets none until it takes what lies in its queue

	PerSecond float64 // sent, over the last ten or so
}

// A WorkerListener is what a worker has of one listener.
type WorkerListener struct {
	Key      registry.SocketKey
	Owner    registry.Principal // of the reservation
	Endpoint registry.Endpoint
	State    WorkerState
	Socket   bool // it has the socket itself rather than its connections
	Room     int  // messages that may wait in its queue
	Drained  bool // it is draining, and nothing that it was sent lies in its queue
	Weight   int  // its share beside others of its priority
	Priority int  // 0 is the highest
}

// WorkerState says whether a worker gets connections of a listener.
type WorkerState uint8

const (
	WorkerAttached WorkerState = iota + 1 // not ready yet
	WorkerReady
	WorkerDraining // takes no more
)

// A Connection is one that was handed over.
type Connection struct {
	Seq         uint64 // counts them from 1 since portd started
	Key         registry.SocketKey
	Owner       registry.Principal // of the reservation
	Endpoint    registry.Endpoint  // of one port
	Worker      string             // its id
	PID         int32
	Peer        netip.AddrPort // not valid for a unix socket
	Accepted    time.Time
	Redelivered bool // handed over once more, after its first worker had died

	Local netip.AddrPort // not valid where it is not known
	State string         // as in ss(8); empty where the connection is over
	// Figures says whether those below are known.
	Figures                  bool
	RTT                      time.Duration
	BytesReceived, BytesSent uint64 // sent: and acknowledged
}

// A ConnectionQuery says which connections are wanted; the zero one says all.
type ConnectionQuery struct {
	Reservation string                                                  // of this one only, by its id
	Worker      string                                                  // handed to this one only, by its id
	Open        bool                                                    // those only that are not over
	Shown       func(reservation string, owner registry.Principal) bool // nil: all
	Before      uint64                                                  // those only with a lower Seq, where it is not 0
	Most        int                                                     // so many of them; 0: all
}

// Totals are a listener's counts since portd started.
type Totals struct {
	Workers     int // attached ones that take connections from it
	HandedOver  uint64
	Redelivered uint64
	TakenBack   uint64             // from workers that were stuck
	Lost        uint64             // accepted and not handed to anybody
	Refused     uint64             // for want of a worker, as far as portd saw them: those that had waited for one
	Reception   registry.Reception // what becomes of clients that connect now
	Held        int                // accepted, and in portd's hands
	Waiting     int                // in the kernel's backlog at this moment; 0 for a unix socket
	PerSecond   float64            // handed over, over the last ten or so
	Waits       []WaitBucket       // from established to handed over, of a sample
}

// A WaitBucket counts samples that took at most so long, and more than the bucket before has; the last one has no bound, and AtMost 0.
type WaitBucket = struct {
	AtMost time.Duration
	Count  uint64
}
