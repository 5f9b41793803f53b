package registry

import (
	"cmp"
	"container/heap"
	"slices"
	"time"
)

// A quarantine is the ports that were chosen and let go, and are kept from other owners for a while: whoever still talks to
// the one who had them is not to meet a stranger. Registry.mu guards it.
type quarantine struct {
	at    table[*former]
	of    map[space]map[Principal]*portSet // whose they were
	ports map[Principal]int                // how many, counted once for each former and endpoint
	due   formersDue
}

// maxQuarantined is how many ports are kept for one owner: who takes ports and lets them go, again and again, would otherwise keep
// all there are from everybody else, and have portd remember them without end.
const maxQuarantined = 2 * maxChosen

func newQuarantine() quarantine {
	return quarantine{at: table[*former]{}, of: map[space]map[Principal]*portSet{}, ports: map[Principal]int{}}
}

// formersDue are formers by the time when their quarantine is over, as container/heap wants them.
type formersDue []*former

func (d formersDue) Len() int           { return len(d) }
func (d formersDue) Less(i, j int) bool { return d[i].over < d[j].over }
func (d formersDue) Swap(i, j int) {
	d[i], d[j] = d[j], d[i]
	d[i].index, d[j].index = i, j
}

func (d *formersDue) Push(x any) {
	f := x.(*former)
	f.index = len(*d)
	*d = append(*d, f)
}

func (d *formersDue) Pop() any {
	last := len(*d) - 1
	f := (*d)[last]
	(*d)[last] = nil
	*d = (*d)[:last]
	f.index = -1
	return f
}

// quarantined are the endpoints of res that a pool gave, as many as are kept for one owner. A range that the caller asked for is no
// pool.
func (res *Reservation) quarantined() (eps []Endpoint) {
	ports := 0
	for _, ch := range res.chosen() {
		if ch.spec.Any.poolName() == "" {
			continue
		}
		for _, ep := range ch.endpoints {
			if ports += ep.Ports(); ports > maxQuarantined {
				return eps
			}
			eps = append(eps, ep)
		}
	}
	return eps
}

// quarantineOf is how long what pools gave is kept from others; where they differ, the longest time.
func (r *Registry) quarantineOf(all []chosen) (d time.Duration) {
	pools := r.pools.Load()
	for _, ch := range all {
		if p := pools.byName[ch.spec.Any.poolName()]; p != nil {
			d = max(d, p.Quarantine)
		}
	}
	return d
}

func (q *quarantine) add(f *former) {
	eps := f.Reservation.quarantined()
	if len(eps) == 0 {
		return
	}
	heap.Push(&q.due, f)
	owner := f.Reservation.Owner
	for _, ep := range eps {
		q.at.add(ep, f)
		s := space{ep.Netns, ep.Proto}
		if q.of[s] == nil {
			q.of[s] = map[Principal]*portSet{}
		}
		if q.of[s][owner] == nil {
			q.of[s][owner] = new(portSet)
		}
		q.of[s][owner].addRange(PortRange{ep.First, ep.Last})
		q.ports[owner] += ep.Ports()
	}
	q.trim(owner)
}

// trim lets go of what would be let go first of an owner who has too much, and of some more, so that the next one need not look again.
func (q *quarantine) trim(owner Principal) {
	if q.ports[owner] <= maxQuarantined {
		return
	}
	var all []*former
	for _, f := range q.due {
		if f.Reservation.Owner == owner {
			all = append(all, f)
		}
	}
	slices.SortFunc(all, func(a, b *former) int { return cmp.Compare(a.over, b.over) })
	for _, f := range all[:len(all)-1] {
		if q.ports[owner] <= maxQuarantined/4*3 {
			break
		}
		q.remove(f)
		f.over = 0
	}
}

func (q *quarantine) remove(f *former) {
	if f.index < 0 {
		return
	}
	heap.Remove(&q.due, f.index)
	owner := f.Reservation.Owner
	for _, ep := range f.Reservation.quarantined() {
		q.at.remove(ep, f)
		s := space{ep.Netns, ep.Proto}
		set, left := q.of[s][owner], q.at[s]
		for p := int(ep.First); p <= int(ep.Last); p++ {
			same := func(c claim[*former]) bool { return c.by.Reservation.Owner == owner }
			if left == nil || !slices.ContainsFunc(left.at[uint16(p)], same) {
				set.remove(uint16(p))
			}
		}
		if set.empty() {
			delete(q.of[s], owner)
		}
		if len(q.of[s]) == 0 {
			delete(q.of, s)
		}
		if q.ports[owner] -= ep.Ports(); q.ports[owner] == 0 {
			delete(q.ports, owner)
		}
	}
}

// fromOthers is the ports of a space that are kept from an owner.
func (q *quarantine) fromOthers(s space, owner Principal) (set portSet) {
	for other, ports := range q.of[s] {
		if other != owner {
			set.addAll(ports)
		}
	}
	return set
}

// endQuarantines lets go of what is over. It is called by whoever asks next, for nobody waits for it.
func (r *Registry) endQuarantines() {
	now := r.cfg.BootTime()
	r.mu.RLock()
	due := len(r.quarantine.due) > 0 && r.quarantine.due[0].over <= now
	r.mu.RUnlock()
	if !due {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for len(r.quarantine.due) > 0 && r.quarantine.due[0].over <= now {
		r.quarantine.remove(r.quarantine.due[0])
	}
}

// firstLetGo is when the first of the ports that are kept from c in a choice is let go.
func (r *Registry) firstLetGo(c Caller, ch *choice) (first time.Time) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	for _, f := range r.quarantine.due {
		if f.Reservation.Owner == c.Principal() || !first.IsZero() && f.Until.After(first) {
			continue
		}
		for _, ep := range f.Reservation.quarantined() {
			if p := ch.quarantined.from(int(ep.First), true); p <= int(ep.Last) && ep.Netns == ch.spec.Netns && slices.Contains(ch.spec.Protos, ep.Proto) {
				first = f.Until
			}
		}
	}
	return first
}

// keptFrom refuses endpoints of which one is kept from c. Those who may do everything have it when they ask for it by number.
func (r *Registry) keptFrom(c Caller, eps []Endpoint, byNumber bool) error {
	if byNumber && r.cfg.Policy.Admin(c) {
		return nil
	}
	r.endQuarantines()
	r.mu.RLock()
	defer r.mu.RUnlock()
	if len(r.quarantine.due) == 0 {
		return nil
	}
	for _, ep := range eps {
		for _, f := range r.quarantine.at.overlapping(ep) {
			if f.Reservation.Owner != c.Principal() {
				return &TakenError{Want: ep, Kept: f.Former}
			}
		}
	}
	return nil
}
