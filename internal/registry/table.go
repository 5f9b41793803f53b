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

// remove takes back add. A space in which nothing is left is forgotten: network namespaces come and go.
func (t table[T]) remove(e Endpoint, by T) {
	s := space{e.Netns, e.Proto}
	in := t[s]
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
	if len(in.at) == 0 {
		delete(t, s)
	}
}

// A tally counts by how many each port of a space is meant, whatever the address.
type tally map[space]*counts

type counts struct {
	times map[uint16]int
	any   portSet // meant by somebody
}

func (t tally) add(e Endpoint) {
	s := space{e.Netns, e.Proto}
	in := t[s]
	if in == nil {
		in = &counts{times: map[uint16]int{}}
		t[s] = in
	}
	in.any.addRange(PortRange{e.First, e.Last})
	for p := int(e.First); p <= int(e.Last); p++ {
		in.times[uint16(p)]++
	}
}

// remove takes back one add.
func (t tally) remove(e Endpoint) {
	s := space{e.Netns, e.Proto}
	in := t[s]
	for p := int(e.First); p <= int(e.Last); p++ {
		port := uint16(p)
		if in.times[port]--; in.times[port] == 0 {
			delete(in.times, port)
			in.any.remove(port)
		}
	}
	if len(in.times) == 0 {
		delete(t, s)
	}
}
