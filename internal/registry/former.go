package registry

import (
	"cmp"
	"slices"
	"time"
)

// keepFormers is how many names are remembered after what they named has ended.
const keepFormers = 10_000

// A former is a Former's place in memory; Registry.mu guards it.
type former struct {
	*Former
	over  time.Duration // of boot time: when its ports may go to another owner
	index int           // among those whose ports may not yet; -1 elsewhere
}

// past is what has ended and still means something; Registry.mu guards it.
type past struct {
	formers    map[string]*former
	formerOf   map[ownName]*former // the last one of each name
	sticky     tally               // what those had
	quarantine quarantine
	lastGiven  map[turn]uint16 // by each pool
}

func newPast() past {
	return past{
		formers:    map[string]*former{},
		formerOf:   map[ownName]*former{},
		sticky:     tally{},
		quarantine: newQuarantine(),
		lastGiven:  map[turn]uint16{},
	}
}

// An ownName is a name that is one owner's to have again.
type ownName struct {
	owner Principal
	name  string
}

func (f *former) ownName() ownName { return ownName{f.Reservation.Owner, f.Reservation.Name} }

// chosen is what portd chose for one endpoint spec of a reservation: the same ports on every endpoint.
type chosen struct {
	spec      EndpointSpec
	ports     PortRange
	endpoints []Endpoint
}

// chosen is what portd chose for res, in the order of its endpoint specs. What the specs name by themselves was assigned first.
func (res *Reservation) chosen() (all []chosen) {
	next := 0
	for _, s := range res.Spec.Endpoints {
		if s.Any == nil {
			next += len(s.endpoints())
		}
	}
	for _, s := range res.Spec.Endpoints {
		if s.Any == nil {
			continue
		}
		ch := chosen{spec: s}
		for range s.endpoints() {
			if next == len(res.Assigned) {
				return all // still being made
			}
			ep := res.Assigned[next].Endpoint
			ch.ports = PortRange{ep.First, ep.Last}
			ch.endpoints = append(ch.endpoints, ep)
			next++
		}
		all = append(all, ch)
	}
	return all
}

// had are the ports that a reservation to be is to have again, since the last one of that name and owner had them; a range
// for each endpoint spec, the zero range where there is none. Both ask for ports of portd's choice in the same shape: as
// many, over the same protocols, in the same network namespace.
func (r *Registry) had(res *Reservation) []PortRange {
	out := make([]PortRange, len(res.Spec.Endpoints))
	if res.Name == "" {
		return out
	}
	r.mu.RLock()
	f := r.formerOf[ownName{res.Owner, res.Name}]
	r.mu.RUnlock()
	if f == nil {
		return out
	}
	before := f.Reservation.chosen()
	for i, s := range res.Spec.Endpoints {
		if s.Any == nil {
			continue
		}
		if len(before) == 0 || !sameShape(before[0].spec, s) {
			return make([]PortRange, len(out))
		}
		out[i], before = before[0].ports, before[1:]
	}
	if len(before) > 0 {
		return make([]PortRange, len(out))
	}
	return out
}

func sameShape(a, b EndpointSpec) bool {
	return a.Netns == b.Netns && max(a.Any.Count, 1) == max(b.Any.Count, 1) &&
		slices.Equal(slices.Sorted(slices.Values(a.Protos)), slices.Sorted(slices.Values(b.Protos)))
}

// retire adds to the commit that ends a reservation what is to be remembered of it, and forgets what that replaces.
func (r *Registry) retire(cm *commit, res *Reservation) {
	all := res.chosen()
	if len(all) == 0 {
		return
	}
	quarantine := r.quarantineOf(all)
	if quarantine == 0 && res.Name == "" {
		return
	}
	now := time.Now().UTC()
	f := &former{Former: &Former{Reservation: res, Ended: now, Until: now.Add(quarantine)}, index: -1}
	cm.put = append(cm.put, f.Former)
	r.endQuarantines()
	r.mu.RLock()
	replaced := r.replacedBy(f)
	r.mu.RUnlock()
	for _, old := range replaced {
		cm.del = append(cm.del, old.Key())
	}
	cm.apply = append(cm.apply, func() {
		for _, old := range replaced {
			r.removeFormer(old)
		}
		f.over = r.cfg.BootTime() + quarantine
		r.insertFormer(f)
	})
}

// replacedBy are formers that mean nothing any more once f is there. mu is held.
func (r *Registry) replacedBy(f *former) (all []*former) {
	namesake := r.formerOf[f.ownName()]
	if namesake != nil && (namesake.index < 0 || namesake.sameEndpoints(f)) {
		all = append(all, namesake)
	}
	eps := f.Reservation.quarantined()
	if len(eps) == 0 {
		return all
	}
	for _, old := range r.quarantine.at.overlapping(eps[0]) {
		if old.Reservation.Owner == f.Reservation.Owner && r.formerOf[old.ownName()] != old && old.sameEndpoints(f) {
			all = append(all, old)
		}
	}
	return all
}

func (f *former) sameEndpoints(o *former) bool {
	return slices.Equal(f.Reservation.quarantined(), o.Reservation.quarantined())
}

// insertFormer remembers f, the last one of its name. mu is held, or nobody else is there.
func (r *Registry) insertFormer(f *former) {
	r.formers[f.Reservation.ID] = f
	if f.Reservation.Name != "" {
		if old := r.formerOf[f.ownName()]; old != nil {
			r.disown(old)
		}
		r.formerOf[f.ownName()] = f
		for _, ch := range f.Reservation.chosen() {
			for _, ep := range ch.endpoints {
				r.sticky.add(ep)
			}
		}
	}
	if f.over > r.cfg.BootTime() {
		r.quarantine.add(f)
	}
}

// disown takes its name from f. mu is held.
func (r *Registry) disown(f *former) {
	if f.Reservation.Name == "" || r.formerOf[f.ownName()] != f {
		return
	}
	delete(r.formerOf, f.ownName())
	for _, ch := range f.Reservation.chosen() {
		for _, ep := range ch.endpoints {
			r.sticky.remove(ep)
		}
	}
}

// removeFormer forgets f. mu is held.
func (r *Registry) removeFormer(f *former) {
	delete(r.formers, f.Reservation.ID)
	r.disown(f)
	r.quarantine.remove(f)
}

// forgetFormers adds to a commit the deletion of what means nothing any more: neither the last one of its name, or one of so
// many, nor in quarantine. mu is held.
func (r *Registry) forgetFormers(cm *commit) {
	now := r.cfg.BootTime()
	var named, over []*former
	for _, f := range r.formers {
		switch {
		case f.over > now:
		case f.Reservation.Name != "" && r.formerOf[f.ownName()] == f:
			named = append(named, f)
		default:
			over = append(over, f)
		}
	}
	if more := len(named) - keepFormers; more > 0 {
		over = append(over, oldestOfMany(named)[:more]...)
	}
	for _, f := range over {
		cm.del = append(cm.del, f.Key())
		cm.apply = append(cm.apply, func() { r.removeFormer(f) })
	}
}

// oldestOfMany sorts names for being forgotten: the oldest first of whoever has the most of them, so that nobody's names drive out those
// of another who has fewer.
func oldestOfMany(named []*former) []*former {
	slices.SortFunc(named, func(a, b *former) int {
		return -cmp.Or(a.Ended.Compare(b.Ended), cmp.Compare(a.Reservation.CreateRevision, b.Reservation.CreateRevision))
	})
	newer := make(map[*former]int, len(named)) // how many of the same owner's are
	has := map[Principal]int{}
	for _, f := range named {
		newer[f] = has[f.Reservation.Owner]
		has[f.Reservation.Owner]++
	}
	slices.SortStableFunc(named, func(a, b *former) int { return cmp.Compare(newer[b], newer[a]) })
	return named
}

// loadFormers takes over what a store remembers. What was left of a quarantine counts on; no clock that was put back makes
// it longer than it was.
func (r *Registry) loadFormers(all []*Former) {
	slices.SortFunc(all, func(a, b *Former) int {
		return cmp.Or(a.Ended.Compare(b.Ended), cmp.Compare(a.Reservation.CreateRevision, b.Reservation.CreateRevision))
	})
	now := time.Now()
	for _, rec := range all {
		left := min(rec.Until.Sub(now), rec.Until.Sub(rec.Ended))
		r.insertFormer(&former{Former: rec, over: r.cfg.BootTime() + left, index: -1})
	}
}
