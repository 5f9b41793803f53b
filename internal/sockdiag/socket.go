// Package sockdiag tells which internet sockets this network namespace has and whose they are.
//
// The kernel tells everybody about every socket (sock_diag(7)); only the step from a socket to its processes, through /proc, depends on who
// asks. What a caller may learn is for whoever asks on the caller's behalf to decide: each answer carries the uid for it.
package sockdiag

import (
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// A Protocol is a space of ports. MPTCP has none of its own: see [Socket.Multipath].
type Protocol uint8

const (
	TCP     Protocol = unix.IPPROTO_TCP
	UDP     Protocol = unix.IPPROTO_UDP
	UDPLite Protocol = unix.IPPROTO_UDPLITE
)

func (p Protocol) String() string {
	switch p {
	case TCP:
		return "tcp"
	case UDP:
		return "udp"
	case UDPLite:
		return "udplite"
	}
	return fmt.Sprintf("protocol %d", uint8(p))
}

// A State is where a socket stands: the kernel's TCP states (tcp(7)), and what it has no name or two meanings for.
type State uint8

const (
	Established State = 1 // for UDP: connected
	SynSent     State = 2
	SynRecv     State = 3
	FinWait1    State = 4
	FinWait2    State = 5
	TimeWait    State = 6
	Unconnected State = 7 // UDP: bound, for datagrams from anywhere
	CloseWait   State = 8
	LastAck     State = 9
	Listening   State = 10
	Closing     State = 11
	BoundOnly   State = 13 // TCP: bound to a port, neither listening nor connected; see BoundOnlyVisible
)

var stateNames = [...]string{
	Established: "established", SynSent: "syn-sent", SynRecv: "syn-recv", FinWait1: "fin-wait-1", FinWait2: "fin-wait-2",
	TimeWait: "time-wait", Unconnected: "unconnected", CloseWait: "close-wait", LastAck: "last-ack", Listening: "listening",
	Closing: "closing", BoundOnly: "bound",
}

func (s State) String() string {
	if int(s) < len(stateNames) && stateNames[s] != "" {
		return stateNames[s]
	}
	return fmt.Sprintf("state %d", uint8(s))
}

// A Socket is one socket as the kernel described it at some moment of the call. It is comparable.
type Socket struct {
	Protocol Protocol
	// Multipath marks MPTCP, which lives in TCP's port space. The kernel does not show it of a bound-only socket, nor before Linux 6.15
	// to a process without CAP_NET_ADMIN.
	Multipath bool
	State     State
	// Local and Remote are unmapped: IPv4 also where an IPv6 socket speaks it. A link-local address has its device as zone. Remote is the
	// zero AddrPort where there is none.
	Local, Remote netip.AddrPort
	// V6Only is true of a listening, bound-only or unconnected IPv6 socket that leaves IPv4 alone, so of every one on a specific IPv6
	// address; one on [::] without it takes all of IPv4 too.
	V6Only bool
	// Device is the one network device that the socket is bound to, if any.
	Device Device
	// UID is the user who made the socket. The kernel knows none, and says 0, for TimeWait and SynRecv.
	UID uint32
	// Inode is what /proc/PID/fd shows (see Owners); 0 if no process has the socket any more, as in TimeWait.
	Inode uint64
	// Cookie identifies the socket until the next boot (SO_COOKIE).
	Cookie uint64
}

// A Device is a network device. Index 0 is none; the name is empty if the device is gone.
type Device struct {
	Index int
	Name  string
}
