package registry

import (
	"fmt"
	"slices"
	"strings"
)

// SocketState is what a socket does with its port.
type SocketState uint8

const (
	SocketListening SocketState = iota + 1
	SocketBound                 // bound and nothing more; for UDP all there is
	SocketConnected             // the local port of a connection
	SocketLeftover              // left over from a closed connection (TIME_WAIT and its like); nobody owns it
)

// A Holder is a socket that portd does not own, and whose it is.
type Holder struct {
	Endpoint Endpoint // one port
	State    SocketState
	// Multipath marks MPTCP, where the kernel tells.
	Multipath bool
	UID       uint32 // of the socket; meaningless where State is SocketLeftover
	// Processes have the socket open, as far as portd could see them and the caller may. Where there may be more, Hidden says why,
	// and who could see them.
	Processes []Process
	Hidden    string
}

// A Process has a socket open.
type Process struct {
	PID     int
	UID     uint32
	Viewer  uint32 // the user who, besides root, may look into it (proc(5), ptrace(2))
	Command string // as in /proc/PID/comm
	// Cgroup is its control group as portd sees it; Container (64 digits) and Unit (of systemd) are what that is made for. Empty
	// where there is none.
	Cgroup, Container, Unit string
}

// Place says in short where a process runs: "container 3f2a91c0d5e7", as the container's own tools have it, or
// "nginx.service". It is empty where that is nowhere in particular: systemd's scopes say no more than the command.
func (p Process) Place() string {
	switch {
	case p.Container != "":
		return "container " + p.Container[:min(12, len(p.Container))]
	case strings.HasSuffix(p.Unit, ".scope"):
		return ""
	}
	return p.Unit
}

// String says who does what: "nginx (pid 812, user www-data, nginx.service) is listening on 0.0.0.0:8080".
func (h Holder) String() string {
	who, several := "a process of "+UserName(h.UID), false
	switch {
	case h.State == SocketLeftover:
		who = "a closed connection that the kernel still remembers"
	case len(h.Processes) > 0:
		p, command, more := h.first()
		who = fmt.Sprintf("%s (pid %d, %s", command, p.PID, UserName(p.UID))
		if place := p.Place(); place != "" {
			who += ", " + place
		}
		who += ")"
		if several = more > 0; several {
			who += fmt.Sprintf(" and %d more", more)
		}
	}
	return fmt.Sprintf("%s %s %s", who, h.does(several), h.where())
}

// first is the process to name, by what, and how many others there are. The processes that a portd consists of are one.
func (h Holder) first() (p Process, command string, more int) {
	if !slices.ContainsFunc(h.Processes, func(p Process) bool { return p.Command == "portd-keeper" }) {
		return h.Processes[0], h.Processes[0].Command, len(h.Processes) - 1
	}
	for _, other := range h.Processes {
		switch {
		case other.Command == "portd" || other.Command == "portd-keeper" && p.PID == 0:
			p = other
		case other.Command != "portd-keeper" && other.Command != "portd-holder":
			more++
		}
	}
	return p, "another portd", more
}

func (h Holder) does(several bool) string {
	switch {
	case h.State == SocketListening && several:
		return "are listening on"
	case h.State == SocketListening:
		return "is listening on"
	case h.State == SocketConnected && several:
		return "have a connection from"
	case h.State == SocketConnected:
		return "has a connection from"
	case h.State == SocketLeftover:
		return "is on"
	case several:
		return "are bound to"
	}
	return "is bound to"
}

func (h Holder) where() string {
	if h.Endpoint.Proto == Unix {
		return h.Endpoint.Path
	}
	addr := h.Endpoint.Addr.String()
	if h.Endpoint.Addr.Is6() {
		addr = "[" + addr + "]"
	}
	if h.Endpoint.Device != "" {
		addr += "%" + h.Endpoint.Device
	}
	where := fmt.Sprintf("%s:%d", addr, h.Endpoint.First)
	if !h.Endpoint.Proto.Streams() {
		where += " (" + h.Endpoint.Proto.String() + ")"
	}
	return strings.TrimSpace(where)
}
