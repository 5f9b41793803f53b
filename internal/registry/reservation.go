package registry

import (
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// A Revision counts durable changes, one per request, from 1 on.
type Revision int64

// Mode says how a reservation keeps others out.
type Mode uint8

const (
	Held     Mode = iota // bound in the kernel
	Recorded             // in the table only, for a program that binds the port itself
)

func (m Mode) String() string { return [...]string{"held", "recorded"}[m] }

// A PortRange is the ports First to Last, both included. The zero PortRange is no ports.
type PortRange struct{ First, Last uint16 }

// AnyPorts leaves the choice of ports to portd: Count contiguous ones of Pool, as far as they lie in Within. With Within and no
// pool they come from there, whatever they are otherwise for. First of all portd tries what is preferred, then what the name had.
type AnyPorts struct {
	Within PortRange // zero: the whole pool
	Count  int       // 0 means 1
	// Pool is the name of a pool; empty: DefaultPool, or, with Within, none.
	Pool string
	// Tried first, one of the two at most: the port of a service, or the first port by its number.
	PreferService string
	PreferPort    uint16
}

// A Preference says why some ports were tried before all others.
type Preference uint8

const (
	PreferredByRequest Preference = iota + 1 // the request asked so
	PreferredByName                          // the reservation that last had this name and owner had them
)

// PassedOver is ports that were to be tried first and could not be had.
type PassedOver struct {
	Ports      PortRange
	Preference Preference
	Reason     string // a sentence: who has them, or why they are not to be had
}

// An EndpointSpec asks for endpoints: every protocol on every address gets the same ports. Just one of Exact, Any and
// Service is set.
type EndpointSpec struct {
	Netns   string // empty: the caller's own
	Protos  []Protocol
	Addrs   []netip.Addr // none: every address of both families
	V6Only  bool
	Device  string
	Exact   PortRange
	Any     *AnyPorts
	Service string // the port that IANA gives this service
	Path    string // of a Unix endpoint, which has nothing else
}

// BindOptions are the socket options that bind(2) decides on.
type BindOptions struct {
	Freebind    bool // IP_FREEBIND
	Transparent bool // IP_TRANSPARENT; portd needs CAP_NET_ADMIN
	MPTCP       bool // TCP only
	// Group holds a UDP port by so many sockets, 2 to 64, in a SO_REUSEPORT group; 0: by one.
	Group int
	// FileMode is what a Unix endpoint's file may be used for (chmod(2)); 0: 0600.
	FileMode uint16
}

// ListenOptions are the socket options of a listener. The zero value is portd's default.
type ListenOptions struct {
	Backlog      int  // 0 means 4096, what net.core.somaxconn has by default; the kernel caps it there
	NoDelayOff   bool // TCP_NODELAY is on by default, as in Go
	KeepAliveOff bool // SO_KEEPALIVE is on by default, as in Go
	// TCP_KEEPIDLE and TCP_KEEPINTVL, in whole seconds, and TCP_KEEPCNT; 0: as the host has them (net.ipv4.tcp_keepalive_*).
	KeepAliveIdle, KeepAliveInterval time.Duration
	KeepAliveProbes                  int
	UserTimeout                      time.Duration // TCP_USER_TIMEOUT, in whole milliseconds; 0: none
	DeferAccept                      time.Duration // TCP_DEFER_ACCEPT, in whole seconds; 0: off
	FastOpen                         int           // TCP_FASTOPEN: how many SYNs with data may wait; 0: off
	Mark                             uint32        // SO_MARK; 0: none
	ReceiveBuffer, SendBuffer        int           // SO_RCVBUF and SO_SNDBUF in bytes, of which the kernel books twice as many; 0: the kernel's choice

	Handoff HandoffOptions
}

// A Spec is what was asked for.
type Spec struct {
	Endpoints []EndpointSpec
	Mode      Mode
	Options   BindOptions
}

// A Reservation is one caller's claim on endpoints. It is never changed once it is in the table: a change makes a copy.
type Reservation struct {
	ID       string
	Name     string // the caller's; may be empty
	Labels   map[string]string
	Owner    Principal
	Group    *uint32 // of who reserved a path, which its file is to have after a restart, too; nil where there is no path
	Spec     Spec
	Assigned []Assigned
	Lease    string // id of the lease that ends it; empty: until released
	Created  time.Time

	CreateRevision, Revision Revision
}

// Assigned is an endpoint that was given.
type Assigned struct {
	Endpoint Endpoint
	Listen   *ListenOptions // how it is to listen; nil: not at all
	Lost     []PortRange    // ports that are to be held and are not: another program has them
}

// EndpointState says how it stands with an endpoint or one of its ports.
type EndpointState uint8

const (
	StateHeld EndpointState = iota + 1
	StateListening
	StateRecorded
	StateLost
)

func (s EndpointState) String() string {
	return [...]string{"unknown", "held", "listening", "recorded", "lost"}[s]
}

// State is how it stands with the ports of a that are not lost, and StateLost where all are.
func (a Assigned) State(m Mode) EndpointState {
	switch {
	case m == Recorded:
		return StateRecorded
	case a.lostPorts() == a.Endpoint.Ports():
		return StateLost
	case a.Listen != nil:
		return StateListening
	}
	return StateHeld
}

func (a Assigned) lostPorts() (n int) {
	for _, r := range a.Lost {
		n += int(r.Last) - int(r.First) + 1
	}
	return n
}

// LostAny says whether r has a port that is lost.
func (r *Reservation) LostAny() bool {
	return slices.ContainsFunc(r.Assigned, func(a Assigned) bool { return len(a.Lost) > 0 })
}

// Endpoints spells what was assigned, for people: "tcp/8080, udp/8080".
func (r *Reservation) Endpoints() string {
	s := make([]string, len(r.Assigned))
	for i, a := range r.Assigned {
		s[i] = a.Endpoint.String()
	}
	return strings.Join(s, ", ")
}

// describe names r in messages: by its name where it has one.
func (r *Reservation) describe() string {
	who := string(r.Owner)
	if uid, ok := r.Owner.uid(); ok {
		who = UserName(uid)
	}
	if r.Name != "" {
		return `"` + r.Name + `" (` + r.ID + ", " + who + ")"
	}
	return r.ID + " (" + who + ")"
}

// with is a copy of r to change; what its fields point to is shared, but for Assigned and Labels.
func (r *Reservation) with(change func(*Reservation)) *Reservation {
	c := *r
	c.Assigned = slices.Clone(r.Assigned)
	c.Labels = maps.Clone(r.Labels)
	change(&c)
	return &c
}
