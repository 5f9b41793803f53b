package ianadb

import (
	"cmp"
	"slices"
)

// sameRecord pairs by name, ports and protocol. What several records have in common (rdp twice) is decided by the
// description first, then by order.
func (d *differ) sameRecord() {
	byIdentity := make(map[identity]int, len(d.was))
	for i := range d.was {
		byIdentity[d.was[i].identity()] = i
	}
	for i := range d.is {
		if j, ok := byIdentity[d.is[i].identity()]; ok && !d.was[j].decided {
			d.pair(Changed, j, i)
		}
	}
	portless := make(map[identity][]int)
	for i := range d.was {
		if c := &d.was[i]; !c.decided && !c.HasPort() {
			id := c.identity()
			id.description = ""
			portless[id] = append(portless[id], i)
		}
	}
	for i := range d.is {
		if c := &d.is[i]; !c.decided && !c.HasPort() {
			id := c.identity()
			id.description = ""
			if left := portless[id]; len(left) > 0 {
				d.pair(Changed, left[0], i)
				portless[id] = left[1:]
			}
		}
	}
}

// samePorts tells what became of ports: one name in place of another, of nothing, or nothing in place of a name.
func (d *differ) samePorts() {
	type group struct{ named, nameless []int }
	byPorts := func(all []candidate) map[Range]group {
		groups := make(map[Range]group)
		for i := range all {
			c := &all[i]
			if c.decided || !c.HasPort() {
				continue
			}
			g := groups[Range{c.First, c.Last}]
			if c.Name != "" {
				g.named = append(g.named, i)
			} else {
				g.nameless = append(g.nameless, i)
			}
			groups[Range{c.First, c.Last}] = g
		}
		return groups
	}
	was, is := byPorts(d.was), byPorts(d.is)
	for ports, now := range is {
		before := was[ports]
		for p := AnyProtocol; p <= DCCP; p++ {
			old, oldOnly := only(d.was, before.named, p)
			new, newOnly := only(d.is, now.named, p)
			if oldOnly && newOnly {
				d.pair(Renamed, old, new)
			}
		}
		for _, i := range now.named {
			if c := &d.is[i]; !c.decided {
				if j, ok := standIn(d.was, before.nameless, c.Protocol); ok {
					d.add(Change{Kind: Added, Old: d.was[j].Entry, New: c.Entry}, i)
					c.decided, d.was[j].decided = true, true
				}
			}
		}
		for _, j := range before.named {
			if c := &d.was[j]; !c.decided {
				if i, ok := standIn(d.is, now.nameless, c.Protocol); ok {
					d.add(Change{Kind: Removed, Old: c.Entry, New: d.is[i].Entry}, j)
					c.decided, d.is[i].decided = true, true
				}
			}
		}
	}
}

// only returns the one candidate of a protocol, or false if there are none or several.
func only(all []candidate, of []int, p Protocol) (at int, ok bool) {
	for _, i := range of {
		if all[i].Protocol == p {
			if ok {
				return 0, false
			}
			at, ok = i, true
		}
	}
	return at, ok
}

// standIn returns the nameless candidate that speaks for a protocol: its own, else one for every protocol or for one of
// those that the name was for.
func standIn(all []candidate, of []int, p Protocol) (at int, ok bool) {
	for _, i := range of {
		switch {
		case all[i].Protocol == p:
			return i, true
		case all[i].Protocol.meets(p) && !ok:
			at, ok = i, true
		}
	}
	return at, ok
}

// sameStatus pairs nameless records of one status and protocol that overlap, from the lowest port on.
func (d *differ) sameStatus() {
	type kind struct {
		protocol Protocol
		status   Status
	}
	byKind := func(all []candidate) map[kind][]int {
		groups := make(map[kind][]int)
		for i := range all {
			if c := &all[i]; !c.decided && c.Name == "" {
				k := kind{c.Protocol, c.Status()}
				groups[k] = append(groups[k], i)
			}
		}
		for _, g := range groups {
			slices.SortStableFunc(g, func(a, b int) int { return cmp.Compare(all[a].First, all[b].First) })
		}
		return groups
	}
	was, is := byKind(d.was), byKind(d.is)
	for k, now := range is {
		before := was[k]
		for len(before) > 0 && len(now) > 0 {
			switch old, new := &d.was[before[0]], &d.is[now[0]]; {
			case old.Last < new.First:
				before = before[1:]
			case new.Last < old.First:
				now = now[1:]
			default:
				d.pair(Changed, before[0], now[0])
				before, now = before[1:], now[1:]
			}
		}
	}
}
