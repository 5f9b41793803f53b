package registry

import (
	"fmt"
	"time"
)

// HandoffOptions say how a listener's connections reach its workers. The zero value is portd's default.
type HandoffOptions struct {
	Strategy      HandoffStrategy
	WithoutWorker WithoutWorker
	// RefuseAfter is how long a listener may be without a ready worker before its clients are refused, whatever WithoutWorker says;
	// 0: for ever.
	RefuseAfter time.Duration
	// TakeBackAfter is how long what was sent to a worker may lie in its queue before others get it; 0: for ever.
	TakeBackAfter time.Duration
}

// HandoffStrategy is how a worker is chosen among those of the highest priority that have room.
type HandoffStrategy uint8

const (
	LeastActive   HandoffStrategy = iota // who has the fewest connections open, for its weight
	RoundRobin                           // one after the other, by their weights
	ClientAddress                        // the same client address the same worker, for as long as that is attached
)

func (s HandoffStrategy) String() string {
	switch s {
	case LeastActive:
		return "least-active"
	case RoundRobin:
		return "round-robin"
	case ClientAddress:
		return "client-address"
	}
	return fmt.Sprintf("strategy %d", uint8(s))
}

// WithoutWorker is what becomes of clients while no worker is attached and ready.
type WithoutWorker uint8

const (
	Wait   WithoutWorker = iota // they are connected, and wait in the kernel's backlog
	Refuse                      // they are refused, as if nobody listened
	Park                        // they are not answered, and their own retries connect them once a worker is there
)

func (w WithoutWorker) String() string {
	switch w {
	case Wait:
		return "wait"
	case Refuse:
		return "refuse"
	case Park:
		return "park"
	}
	return fmt.Sprintf("without worker %d", uint8(w))
}

// Reception is what becomes of clients of a listener that connect now.
type Reception uint8

// 0 where it is not known.
const (
	Served   Reception = iota + 1 // a worker is ready, or a program has the socket itself
	Waiting                       // they are connected, and wait for a worker
	Refusing                      // they are refused
	Parking                       // they are not answered
)

func (r Reception) String() string {
	return [...]string{"unknown", "served", "waiting", "refusing", "parking"}[r]
}

// leastTakeBack is a time in which a worker that is well takes what it was sent, most of the time; before it every worker is stuck.
const leastTakeBack = 10 * time.Millisecond

// check refuses options that mean nothing.
func (o HandoffOptions) check() error {
	switch {
	case o.Strategy > ClientAddress:
		return invalid("options.handoff.strategy", "%d is none", o.Strategy)
	case o.WithoutWorker > Park:
		return invalid("options.handoff.without_worker", "%d is nothing to do", o.WithoutWorker)
	case o.RefuseAfter < 0:
		return invalid("options.handoff.refuse_after", "%v is not a time to wait; 0 refuses nobody", o.RefuseAfter)
	case o.TakeBackAfter < 0 || o.TakeBackAfter > 0 && o.TakeBackAfter < leastTakeBack:
		return invalid("options.handoff.take_back_after", "%v is not allowed; allowed are %v and more, and 0 takes nothing back", o.TakeBackAfter, leastTakeBack)
	}
	return nil
}

// fit refuses what the sockets of an endpoint cannot do without a worker.
func (o HandoffOptions) fit(e Endpoint, bound BindOptions) error {
	kind := ""
	switch {
	case o.WithoutWorker != Park:
		return nil
	case e.Proto == Unix:
		kind = "unix"
	case bound.MPTCP:
		kind = "Multipath TCP"
	default:
		return nil
	}
	return &UnsupportedError{
		"park clients of " + e.String(), "a " + kind + " socket has no filter that could keep them unanswered: let them wait, or refuse them", "PARK",
	}
}
