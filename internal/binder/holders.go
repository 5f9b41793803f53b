package binder

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"

	"github.com/portd/portd/internal/registry"
	"github.com/portd/portd/internal/sockdiag"
)

// A found socket is one of a network namespace, which sock_diag does not say of it.
type found struct {
	sockdiag.Socket
	netns string
}

// Holders are the sockets of others that overlap any of the endpoints: first those that listen, then those that are bound,
// connected, and left over. A connection on a port that the Binder itself holds is in nobody's way, and not among them.
// Of SCTP and DCCP none are found, for sock_diag(7) is not asked about them.
func (b *Binder) Holders(ctx context.Context, eps ...registry.Endpoint) ([]registry.Holder, error) {
	var all []found
	var paths []registry.Holder
	for len(eps) > 0 {
		if eps[0].Proto == registry.Unix {
			more, err := b.pathHolders(ctx, eps[0])
			if err != nil {
				return nil, fmt.Errorf("holders of %v: %w", eps[0], err)
			}
			paths, eps = append(paths, more...), eps[1:]
			continue
		}
		// What is of the same ports is one look.
		n := 1
		for n < len(eps) && eps[n].Proto != registry.Unix && sameLook(eps[0], eps[n]) {
			n++
		}
		more, err := b.look(ctx, eps[:n])
		if err != nil {
			return nil, fmt.Errorf("holders of %v: %w", eps[0], err)
		}
		all, eps = append(all, more...), eps[n:]
	}
	holders, err := withProcesses(ctx, b.foreign(all))
	if err != nil {
		return nil, fmt.Errorf("holders of ports: %w", err)
	}
	slices.SortStableFunc(holders, func(x, y registry.Holder) int {
		return cmp.Or(cmp.Compare(x.State, y.State), cmp.Compare(x.Endpoint.First, y.Endpoint.First), x.Endpoint.Addr.Compare(y.Endpoint.Addr))
	})
	return append(holders, paths...), nil
}

func sameLook(x, y registry.Endpoint) bool {
	return x.Netns == y.Netns && x.First == y.First && x.Last == y.Last
}

// look is the sockets in the way of any of some endpoints, which are all of the same ports of one network namespace.
func (b *Binder) look(ctx context.Context, eps []registry.Endpoint) (all []found, err error) {
	f := sockdiag.Filter{First: eps[0].First, Last: eps[0].Last}
	for _, ep := range eps {
		p := sockdiag.Protocol(ep.Proto)
		if ep.Proto != registry.SCTP && ep.Proto != registry.DCCP && !slices.Contains(f.Protocols, p) && !b.fills(ep) {
			f.Protocols = append(f.Protocols, p)
		}
	}
	if len(f.Protocols) == 0 {
		return nil, nil
	}
	var socks []sockdiag.Socket
	if eps[0].Netns == registry.HostNetns {
		socks, err = b.sockets.List(ctx, f)
	} else {
		err = b.in(eps[0].Netns, func() (err error) {
			socks, err = sockdiag.List(ctx, f)
			return err
		})
	}
	for _, s := range socks {
		f := found{s, eps[0].Netns}
		if slices.ContainsFunc(eps, func(ep registry.Endpoint) bool { return ep.Proto == registry.Protocol(s.Protocol) && inTheWay(f, ep) }) {
			all = append(all, f)
		}
	}
	return all, err
}

// fills says whether the Binder has the port of ep on every address, by a socket that nobody else ever had: then no other's can be
// on that port, but for connections, which are in nobody's way.
func (b *Binder) fills(ep registry.Endpoint) bool {
	if ep.Ports() != 1 {
		return false
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.ContainsFunc(b.at[spotOf(ep)], func(own *socket) bool {
		return own.ep.Addr == registry.AnyAddr && !own.ep.V6Only && own.ep.Device == "" && !own.adopted && !own.exposed && !own.grouped
	})
}

// foreign leaves out what is the Binder's own, what came through that, what holds no port, and what is there twice.
func (b *Binder) foreign(all []found) []found {
	seen := make(map[uint64]bool, len(all))
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.DeleteFunc(all, func(s found) bool {
		if seen[s.Cookie] || stateOf(s) == 0 {
			return true
		}
		seen[s.Cookie] = true
		ep := endpointOf(s)
		return slices.ContainsFunc(b.at[spotOf(ep)], func(own *socket) bool {
			return own.inode.Load() == s.Inode || stateOf(s) >= registry.SocketConnected && overlap(own.ep, ep)
		})
	})
}

// withProcesses says whose the sockets are, as far as portd may look.
func withProcesses(ctx context.Context, socks []found) ([]registry.Holder, error) {
	holders, inodes := make([]registry.Holder, len(socks)), make([]uint64, len(socks))
	for i, s := range socks {
		holders[i] = registry.Holder{Endpoint: endpointOf(s), State: stateOf(s), Multipath: s.Multipath, UID: s.UID}
		inodes[i] = s.Inode
	}
	return addProcesses(ctx, holders, inodes)
}

// addProcesses says of each holder which processes have it open, by the inode of its socket; 0: nobody can have it.
func addProcesses(ctx context.Context, holders []registry.Holder, inodes []uint64) ([]registry.Holder, error) {
	wanted := slices.DeleteFunc(slices.Clone(inodes), func(inode uint64) bool { return inode == 0 })
	var owners map[uint64][]sockdiag.Process
	complete := true
	if len(wanted) > 0 {
		var err error
		if owners, complete, err = sockdiag.Owners(ctx, wanted...); err != nil {
			return nil, err
		}
	}
	for i := range holders {
		h := &holders[i]
		for _, p := range owners[inodes[i]] {
			h.Processes = append(h.Processes, registry.Process(p))
		}
		switch {
		case len(h.Processes) > 0 || inodes[i] == 0:
		case complete:
			h.Hidden = "no process in portd's sight has it open: it is in another pid namespace, or on its way from one process to another"
		default:
			h.Hidden = hiddenWithout(lackingForProcesses())
		}
	}
	return holders, nil
}

// onlyLeftovers is ErrTaken if another socket that listens, or is bound and no more, is in the way of s.
func onlyLeftovers(ctx context.Context, s *socket) error {
	// One port and two states: an answer of more than one message could miss a socket that was there all the time.
	others, err := sockdiag.List(ctx, sockdiag.Filter{
		Protocols: []sockdiag.Protocol{sockdiag.Protocol(s.ep.Proto)},
		First:     s.ep.First,
		States:    []sockdiag.State{sockdiag.Listening, sockdiag.BoundOnly},
	})
	if err != nil {
		return fmt.Errorf("see who else has it: %w", err)
	}
	for _, o := range others {
		if o.Inode != s.inode.Load() && overlap(endpointOf(found{o, s.ep.Netns}), s.ep) {
			return registry.ErrTaken
		}
	}
	return nil
}

func endpointOf(s found) registry.Endpoint {
	e := registry.Endpoint{
		Netns: s.netns, Proto: registry.Protocol(s.Protocol), Addr: s.Local.Addr(), Device: s.Device.Name,
		First: s.Local.Port(), Last: s.Local.Port(),
	}
	e.V6Only = s.V6Only && e.Addr == registry.AnyAddr
	if e.Device == e.Addr.Zone() {
		e.Device = ""
	}
	return e
}

// stateOf is 0 for a socket that holds no port of its own: a connection that its listener has not accepted yet.
func stateOf(s found) registry.SocketState {
	switch s.State {
	case sockdiag.Listening:
		return registry.SocketListening
	case sockdiag.BoundOnly, sockdiag.Unconnected:
		return registry.SocketBound
	}
	switch {
	case s.Inode != 0:
		return registry.SocketConnected
	case s.State == sockdiag.SynRecv, s.State == sockdiag.Established, s.State == sockdiag.CloseWait:
		return 0
	}
	return registry.SocketLeftover
}

// inTheWay says whether s may be why the kernel refuses ep. A dual-stack socket that has come to an IPv6 address, by connecting or
// as its listener's connection, is in the way of all IPv4 addresses together all the same. Of leftovers the kernel does not tell
// what they were; they are taken for such.
func inTheWay(s found, ep registry.Endpoint) bool {
	at := endpointOf(s)
	if overlap(at, ep) {
		return true
	}
	if s.V6Only || !at.Addr.Is6() || stateOf(s) < registry.SocketConnected || ep.Addr != netip.IPv4Unspecified() {
		return false
	}
	at.Device, at.Addr = cmp.Or(at.Device, at.Addr.Zone()), ep.Addr
	return overlap(at, ep)
}

// overlap is Endpoint.Overlaps with the zone of a link-local address as the device that it is to the kernel.
func overlap(x, y registry.Endpoint) bool { return onDevice(x).Overlaps(onDevice(y)) }

func onDevice(e registry.Endpoint) registry.Endpoint {
	e.Device = cmp.Or(e.Device, e.Addr.Zone())
	return e
}
