package handoff

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/portd/portd/internal/registry"
	"github.com/portd/portd/internal/sockdiag"
)

// A Connection is one that was handed over, and what the kernel knows of it.
type Connection struct {
	Seq         uint64 // counts them from 1 since portd started
	Key         registry.SocketKey
	Owner       registry.Principal // of the reservation
	Endpoint    registry.Endpoint  // of one port
	Worker      string
	PID         int32
	Peer        netip.AddrPort // not valid for a unix socket
	Accepted    time.Time
	Redelivered bool

	// Local is not valid where the connection is over and the listener is on every address.
	Local netip.AddrPort
	// State is as in ss(8), and empty where the connection is over. Where a client has the same port to several addresses of the listener it
	// is that of all of them, "ESTABLISHED" or "ESTABLISHED/CLOSE-WAIT", and nothing else is known.
	State string
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

// Connections are those of the last ones that were handed over, and of those before them that are still open, which a query asks for, the
// newest first. More says that there are more, which a query Before the last of these gets. Those that follow are of the same look at the
// kernel's table, if they are asked for within some seconds.
func (p *Pool) Connections(ctx context.Context, q ConnectionQuery) (some []Connection, more bool, err error) {
	v := p.lastSurvey(q)
	if v == nil {
		if v, err = p.survey(ctx, q.Reservation, true); err != nil {
			return nil, false, err
		}
	}
	if q.Open && v.blind != nil {
		return nil, false, &registry.UnsupportedError{What: "to tell which connections are open", Why: v.blind.Error(), Code: "NO_SOCK_DIAG"}
	}
	zones := map[uint32]string{}
	start := 0
	if q.Before > 0 {
		start, _ = slices.BinarySearchFunc(v.entries, q.Before-1, func(e entry, seq uint64) int { return cmp.Compare(seq, e.seq) })
	}
	if q.Worker == "" && !q.Open { // nearly all of them
		n := len(v.entries) - start
		if q.Most > 0 {
			n = min(n, q.Most)
		}
		some = make([]Connection, 0, n)
	}
	for i := range v.entries[start:] {
		e := &v.entries[start+i]
		key, owner := e.listener.key, v.owners[e.listener]
		if q.Open && e.kernel < 0 || q.Worker != "" && q.Worker != e.worker.id || q.Reservation != "" && q.Reservation != key.Reservation ||
			q.Shown != nil && !q.Shown(key.Reservation, owner) {
			continue
		}
		if q.Most > 0 && len(some) == q.Most {
			p.keepSurvey(v)
			return some, true, nil
		}
		some = append(some, v.connection(e, owner, zones))
	}
	return some, false, nil
}

func (v *survey) connection(e *entry, owner registry.Principal, zones map[uint32]string) Connection {
	c := Connection{
		Seq: e.seq, Key: e.listener.key, Owner: owner, Endpoint: *e.endpoint, Worker: e.worker.id, PID: e.worker.caller.PID,
		Peer: e.peerAddr(), Accepted: time.Unix(0, e.accepted), Redelivered: e.redelivered,
	}
	zoned := func(a netip.AddrPort) netip.AddrPort {
		if e.scope == 0 || !linkLocal(a.Addr()) {
			return a
		}
		name, known := zones[e.scope]
		if !known {
			name = zone(e.scope)
			zones[e.scope] = name
		}
		return netip.AddrPortFrom(a.Addr().WithZone(name), a.Port())
	}
	c.Peer = zoned(c.Peer)
	if a := e.endpoint.Addr; a.IsValid() && !a.IsUnspecified() {
		c.Local = netip.AddrPortFrom(a, e.endpoint.First)
	}
	if e.kernel < 0 {
		return c
	}
	k := &v.kernel[e.kernel]
	if k.twins != "" {
		c.State = k.twins
		return c
	}
	c.State, c.Local = stateText(k.State), zoned(k.Local)
	c.Figures, c.RTT, c.BytesReceived, c.BytesSent = true, k.RTT, k.BytesReceived, k.BytesSent
	return c
}

func stateText(s sockdiag.State) string { return strings.ToUpper(s.String()) }

func linkLocal(a netip.Addr) bool {
	return a.Is6() && (a.IsLinkLocalUnicast() || a.IsLinkLocalMulticast())
}

// zone is the name of the interface that a scope id is the index of, or the index where it is gone.
func zone(scope uint32) string {
	if i, err := net.InterfaceByIndex(int(scope)); err == nil {
		return i.Name
	}
	return fmt.Sprint(scope)
}
