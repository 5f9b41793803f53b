package registry

import (
	"strings"
	"time"
)

// DefaultPool is the name of the pool that ports come from when nobody says which.
const DefaultPool = "default"

// A Strategy is how a pool draws from its free ports.
type Strategy uint8

const (
	StrategyRandom Strategy = iota // two who choose at the same time seldom meet
	StrategyLowest
	StrategyNext // goes round: the next one after the last that was given
)

var strategies = [...]string{"random", "lowest", "next"}

func (s Strategy) String() string { return strategies[s] }

// ParseStrategy reads a strategy as String spells it. The error is an *InvalidError.
func ParseStrategy(s string) (Strategy, error) {
	for i, name := range strategies {
		if s == name {
			return Strategy(i), nil
		}
	}
	return 0, invalid("strategy", "%q is not one; known are %s", s, strings.Join(strategies[:], ", "))
}

// Avoid is a set of kinds of ports that a pool leaves out, a bit each.
type Avoid uint8

const (
	AvoidEphemeral Avoid = 1 << iota // the kernel's range for outgoing connections
	AvoidNodePorts                   // what Kubernetes gives out by default, 30000-32767
	AvoidAssigned                    // assigned to a service by IANA or the host, or kept by IANA without one
)

var avoided = [...]string{"ephemeral", "node-ports", "assigned"}

// Names are the names of the kinds in a, in the order of their bits.
func (a Avoid) Names() []string {
	var names []string
	for i, name := range avoided {
		if a>>i&1 != 0 {
			names = append(names, name)
		}
	}
	return names
}

func (a Avoid) String() string { return strings.Join(a.Names(), ", ") }

// ParseAvoid reads the name of one kind. The error is an *InvalidError.
func ParseAvoid(s string) (Avoid, error) {
	for i, name := range avoided {
		if s == name {
			return 1 << i, nil
		}
	}
	return 0, invalid("avoid", "%q is not a kind of ports; known are %s", s, strings.Join(avoided[:], ", "))
}

// PoolPorts is what a pool has of one protocol.
type PoolPorts struct {
	Ranges []PortRange // in the order in which they were given; they may overlap
	Avoid  Avoid
}

// A Pool is where ports of portd's choice come from. It has nothing of a protocol that is not in Ports.
type Pool struct {
	Name       string
	Ports      map[Protocol]PoolPorts
	Strategy   Strategy
	Quarantine time.Duration // how long a port that was chosen from it and released is kept from other owners
}

// History is how much of the history of changes is kept for those who watch.
type History struct {
	Revisions int           // 0 means 100,000
	Age       time.Duration // 0: no limit by age
}

// Settings are what the administrator decides, and may change while portd runs.
type Settings struct {
	Pools   []Pool // where none is named DefaultPool, portd has its own
	History History
}

// PoolCounts are the ports of one protocol in a pool.
type PoolCounts struct {
	Size        int // that it may choose
	Reserved    int // of these, by anybody
	Quarantined int // of these, kept from others for a while
}

// PoolStatus is a pool and how it stands with it.
type PoolStatus struct {
	Pool
	Counts map[Protocol]PoolCounts
}
