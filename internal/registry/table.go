package registry

import "slices"

// A table knows which endpoints are claimed, and by whom. It is guarded by Registry.mu.
type table[T comparable] map[space]*claims[T]

// A space is a set of port numbers in which claims can collide.
type space struct {
	netns string
	proto Protocol
}

// claims are what is claimed in a space. The sets spare a choice of ports the question port by port: they may rule a
// port out, but it is the claims that decide where two addresses share one.
type claims[T comparable] struct {
	at    map[uint16][]claim[T]
	any   portSet // have a claim
	whole portSet // have one that overlaps all others: on every address and device
}

type claim[T comparable] struct {
	ep Endpoint
	by T
}

// whole says whether c overlaps whatever else there may be on its ports.
func (c claim[T]) whole() bool { return c.ep.Dual() && c.ep.device() == "" }

// overlapping yields who has claims that overlap e, each once.
func (t table[T]) overlapping(e Endpoint) (by []T) {
	in := t[space{e.Netns, e.Proto}]
	if in == nil {
		return nil
	}
	for p := int(e.First); p <= int(e.Last); p++ {
		for _, c := range in.at[uint16(p)] {
			if c.ep.Overlaps(e) && !slices.Contains(by, c.by) {
				by = append(by, c.by)
			}
		}
	}
	return by
}

func (t table[T]) add(e Endpoint, by T) {
	s, c := space{e.Netns, e.Proto}, claim[T]{e, by}
	in := t[s]
	if in == nil {
		in = &claims[T]{at: map[uint16][]claim[T]{}}
		t[s] = in
	}
	ports := PortRange{e.First, e.Last}
	in.any.addRange(ports)
	if c.whole() {
		in.whole.addRange(ports)
	}
	for p := int(e.First); p <= int(e.Last); p++ {
		in.at[uint16(p)] = append(in.at[uint16(p)], c)
	}
}

func (t table[T]) remove(e Endpoint, by T) {
	in := t[space{e.Netns, e.Proto}]
	if in == nil {
		return
	}
	for p := int(e.First); p <= int(e.Last); p++ {
		port := uint16(p)
		rest := slices.DeleteFunc(in.at[port], func(c claim[T]) bool { return c.by == by && c.ep == e })
		if !slices.ContainsFunc(rest, claim[T].whole) {
			in.whole.remove(port)
		}
		if len(rest) == 0 {
			delete(in.at, port)
			in.any.remove(port)
		} else {
			in.at[port] = rest
		}
	}
}
