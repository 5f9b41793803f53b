package registry

import "slices"

// A table knows which endpoints are claimed, and by whom. It is guarded by Registry.mu.
type table map[space]map[uint16][]claim

// A space is a set of port numbers in which claims can collide.
type space struct {
	netns string
	proto Protocol
}

type claim struct {
	ep Endpoint
	by *entry
}

// overlapping yields who has claims that overlap e, each once.
func (t table) overlapping(e Endpoint) (by []*entry) {
	ports := t[space{e.Netns, e.Proto}]
	if len(ports) == 0 {
		return nil
	}
	for p := int(e.First); p <= int(e.Last); p++ {
		for _, c := range ports[uint16(p)] {
			if c.ep.Overlaps(e) && !slices.Contains(by, c.by) {
				by = append(by, c.by)
			}
		}
	}
	return by
}

func (t table) add(e Endpoint, by *entry) {
	s := space{e.Netns, e.Proto}
	if t[s] == nil {
		t[s] = map[uint16][]claim{}
	}
	for p := int(e.First); p <= int(e.Last); p++ {
		t[s][uint16(p)] = append(t[s][uint16(p)], claim{e, by})
	}
}

func (t table) remove(e Endpoint, by *entry) {
	ports := t[space{e.Netns, e.Proto}]
	for p := int(e.First); p <= int(e.Last); p++ {
		rest := slices.DeleteFunc(ports[uint16(p)], func(c claim) bool { return c.by == by && c.ep == e })
		if len(rest) == 0 {
			delete(ports, uint16(p))
		} else {
			ports[uint16(p)] = rest
		}
	}
}
