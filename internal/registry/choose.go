package registry

import (
	"cmp"
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"net/netip"
	"slices"
)

var ipv4Any = netip.IPv4Unspecified()

// fewRefusals is after how many refusals by the kernel a choice asks which ports have sockets. To ask costs as much as
// some hundred attempts, and most choices meet no socket at all.
const fewRefusals = 4

// tableChunk is how many ports a choice asks the table about without letting others in.
const tableChunk = 1024

// A choice is the search for ports of portd's choice. It draws from open as its pool wants, by default at random, each run of
// ports as likely as any other, so that two who choose at the same time seldom meet; what was tried in vain moves to another set.
type choice struct {
	spec    EndpointSpec
	count   int
	pool    *pool // nil: none
	all     portSet
	from    PortRange // the first and the last of all
	leftOut leftOut   // of them, by the pool
	after   uint16    // the last one that the pool gave, where it goes round

	open portSet // nobody has them, as far as is known
	// doubtful ports have a reservation or a socket, but perhaps on another address. They come last, for to ask the table
	// or the kernel about each takes time.
	doubtful portSet
	last     bool // they have come

	// remembered ports were a name's before, and are tried after the others that are open, so that the name can have them again.
	remembered portSet

	reserved, inUse portSet // ruled out by the table, or by the kernel
	quarantined     portSet // kept from the caller
	refusals        int
}

// choose claims and binds ports of portd's choice for a spec, and adds them to res. The error is an *ExhaustedError where
// there are none.
func (r *Registry) choose(ctx context.Context, c Caller, e *entry, res *Reservation, s EndpointSpec) error {
	ch, err := r.newChoice(c, s, res.Spec.Options)
	if err != nil {
		return err
	}
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		ports, ok := ch.draw()
		switch {
		case ok:
		case !ch.remembered.empty():
			ch.open.addAll(&ch.remembered)
			ch.remembered = portSet{}
			continue
		case ch.last:
			return r.exhausted(ctx, c, ch)
		default:
			if err := r.lookClosely(ctx, ch, res.Spec.Mode); err != nil {
				return err
			}
			continue
		}
		eps := r.endpoints(s, ports)
		if taken, ok := r.claimFree(e, eps); !ok {
			ch.ruleOut(taken, &ch.reserved)
			continue
		}
		err := r.bindChosen(ctx, c, e, res, eps, 0)
		if err == nil {
			r.given(ch, ports)
		}
		if !errors.Is(err, ErrTaken) {
			return err
		}
		ch.refused(ports, err)
		if ch.refusals == fewRefusals && !ch.last {
			if err := r.avoidSockets(ctx, ch); err != nil {
				return err
			}
		}
	}
}

// newChoice begins a search with the ports that have no reservation.
func (r *Registry) newChoice(c Caller, s EndpointSpec, opt BindOptions) (_ *choice, err error) {
	ch := &choice{spec: s, count: max(s.Any.Count, 1)}
	if ch.pool, ch.all, err = r.choosable(c, s, opt); err != nil {
		return nil, err
	}
	r.endQuarantines()
	ch.open = ch.all
	ch.from = PortRange{uint16(ch.all.from(0, true)), ch.all.last()}
	if ch.pool != nil {
		for _, p := range s.Protos {
			ch.leftOut.add(r, s.Netns, p, ch.pool.Ports[p].Avoid)
		}
		for k := range ch.leftOut {
			ch.open.removeAll(&ch.leftOut[k])
		}
	}
	r.mu.RLock()
	defer r.mu.RUnlock()
	for _, p := range s.Protos {
		at := space{s.Netns, p}
		if in := r.claims[at]; in != nil {
			ch.doubtful.addAll(&in.any)
			ch.reserved.addAll(&in.whole)
		}
		if in := r.sticky[at]; in != nil && ch.strategy() == StrategyRandom {
			ch.remembered.addAll(&in.any)
		}
		kept := r.quarantine.fromOthers(at, c.Principal())
		ch.quarantined.addAll(&kept)
	}
	ch.reserved.keepAll(&ch.open)
	ch.doubtful.keepAll(&ch.open)
	ch.open.removeAll(&ch.doubtful)
	ch.doubtful.removeAll(&ch.reserved)
	ch.quarantined.removeAll(&ch.reserved)
	ch.open.removeAll(&ch.quarantined)
	ch.doubtful.removeAll(&ch.quarantined)
	ch.remembered.keepAll(&ch.open)
	ch.open.removeAll(&ch.remembered)
	if ch.pool != nil {
		ch.after = r.lastGiven[turn{ch.pool.Name, s.Protos[0]}]
	}
	return ch, nil
}

// A turn is how far a pool has gone round in a protocol.
type turn struct {
	pool  string
	proto Protocol
}

// loadTurns goes on where the pools were, as what was chosen from them tells.
func (r *Registry) loadTurns(st *State) {
	all := slices.Clone(st.Reservations)
	for _, f := range st.Formers {
		all = append(all, f.Reservation)
	}
	slices.SortFunc(all, func(a, b *Reservation) int { return cmp.Compare(a.CreateRevision, b.CreateRevision) })
	for _, res := range all {
		for _, ch := range res.chosen() {
			for _, p := range ch.spec.Protos {
				r.lastGiven[turn{ch.spec.Any.poolName(), p}] = ch.ports.Last
			}
		}
	}
}

// given notes that ports were chosen.
func (r *Registry) given(ch *choice, ports PortRange) {
	if ch.pool == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, p := range ch.spec.Protos {
		r.lastGiven[turn{ch.pool.Name, p}] = ports.Last
	}
}

func (ch *choice) strategy() Strategy {
	if ch.pool == nil {
		return StrategyRandom
	}
	return ch.pool.Strategy
}

// draw picks a run of open ports.
func (ch *choice) draw() (PortRange, bool) {
	starts := ch.open
	starts.runs(ch.count)
	if starts.empty() {
		return PortRange{}, false
	}
	var first uint16
	switch ch.strategy() {
	case StrategyRandom:
		first = starts.nth(rand.IntN(starts.count()))
	case StrategyNext:
		if p := starts.from(int(ch.after)+1, true); p <= math.MaxUint16 {
			first = uint16(p)
			break
		}
		fallthrough
	case StrategyLowest:
		first = uint16(starts.from(0, true))
	}
	return PortRange{first, first + uint16(ch.count-1)}, true
}

func (ch *choice) ruleOut(port uint16, why *portSet) {
	ch.open.remove(port)
	ch.doubtful.remove(port)
	why.add(port)
}

// refused rules out which of the ports the kernel refused, by its error.
func (ch *choice) refused(ports PortRange, err error) {
	ch.refusals++
	port := ports.First
	var taken *TakenError
	if errors.As(err, &taken) {
		port = cmp.Or(taken.Want.First, port)
		for _, h := range taken.Holders {
			ch.ruleOut(h.Endpoint.First, &ch.inUse)
		}
	}
	ch.ruleOut(port, &ch.inUse)
}

// avoidSockets has the ports that have any socket come last.
func (r *Registry) avoidSockets(ctx context.Context, ch *choice) error {
	for _, p := range ch.spec.Protos {
		_, err := r.cfg.Binder.PortsInUse(ctx, ch.spec.Netns, p, ch.from, func(port uint16) {
			if ch.open.has(port) {
				ch.open.remove(port)
				ch.doubtful.add(port)
			}
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// lookClosely opens what was doubtful, after the table, which knows addresses, was asked about each port.
func (r *Registry) lookClosely(ctx context.Context, ch *choice, m Mode) error {
	ch.last = true
	var chunk []uint16
	for port := range ch.doubtful.all {
		if chunk = append(chunk, port); len(chunk) == tableChunk {
			r.ruleOutReserved(ch, chunk)
			chunk = chunk[:0]
		}
	}
	r.ruleOutReserved(ch, chunk)
	ch.open.addAll(&ch.doubtful)
	ch.doubtful = portSet{}
	// A single port is best tried. What a run would meet, or a program that will bind by itself, is seen at once.
	if m == Held && ch.count == 1 {
		return nil
	}
	holders, err := r.cfg.Binder.Holders(ctx, r.endpoints(ch.spec, ch.from)...)
	for _, h := range holders {
		if ch.open.has(h.Endpoint.First) {
			ch.ruleOut(h.Endpoint.First, &ch.inUse)
		}
	}
	return err
}

func (r *Registry) ruleOutReserved(ch *choice, ports []uint16) {
	eps := r.endpoints(ch.spec, ch.from)
	r.mu.RLock()
	defer r.mu.RUnlock()
	for _, port := range ports {
		for _, ep := range eps {
			if len(r.claims.overlapping(ep.At(port))) > 0 {
				ch.ruleOut(port, &ch.reserved)
				break
			}
		}
	}
}

// exhausted counts what stood in the way.
func (r *Registry) exhausted(ctx context.Context, c Caller, ch *choice) error {
	e := &ExhaustedError{Protos: ch.spec.Protos, Count: ch.count, From: ch.all.ranges(), ephemeral: r.cfg.Binder.Ephemeral(ch.spec.Netns)}
	left := ch.all
	take := func(s *portSet) int {
		n := left.count()
		left.removeAll(s)
		return n - left.count()
	}
	e.Reserved, e.InUse = take(&ch.reserved), take(&ch.inUse)
	e.Free, e.Longest = take(&ch.open), ch.open.longest()
	if e.Quarantined = take(&ch.quarantined); e.Quarantined > 0 {
		e.Until = r.firstLetGo(c, ch)
	}
	if ch.pool != nil {
		e.Pool = ch.pool.Name
		e.Ephemeral, e.NodePorts = take(&ch.leftOut[leftEphemeral]), take(&ch.leftOut[leftNodePorts])
		e.Assigned, e.Kept = take(&ch.leftOut[leftAssigned]), take(&ch.leftOut[leftKept])
	}
	for port := range ch.inUse.all {
		at := PortRange{port, port}
		holders, err := r.Holders(ctx, c, r.endpoints(ch.spec, at)...)
		if err != nil {
			r.cfg.Log.Warn("cannot see who has a port", "port", port, "err", err)
		} else if len(holders) > 0 {
			e.Example = &holders[0]
		}
		break // one is enough, and each look takes time
	}
	return e
}

// claimFree claims endpoints if nobody has them, else it says which is the last port that somebody has. It never waits.
func (r *Registry) claimFree(e *entry, eps []Endpoint) (taken uint16, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for p := int(eps[0].Last); p >= int(eps[0].First); p-- {
		for _, ep := range eps {
			if len(r.claims.overlapping(ep.At(uint16(p)))) > 0 {
				return uint16(p), false
			}
		}
	}
	for _, ep := range eps {
		r.claims.add(ep, e)
	}
	return 0, true
}

// bindChosen binds claimed endpoints, all or none, and adds them to res or gives the claims back. why is 0 where nobody
// asked for just these.
func (r *Registry) bindChosen(ctx context.Context, c Caller, e *entry, res *Reservation, eps []Endpoint, why Preference) (err error) {
	n := len(res.Assigned)
	r.keepRecorded(res.Spec.Mode, eps)
	defer func() {
		if err == nil {
			for _, ep := range eps {
				res.Assigned = append(res.Assigned, Assigned{Endpoint: ep})
			}
			return
		}
		if res.Spec.Mode == Recorded {
			r.letGo(eps...)
		} else {
			for i := range eps {
				err = errors.Join(err, r.cfg.Binder.Release(SocketKey{res.ID, n + i}))
			}
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		for _, ep := range eps {
			r.claims.remove(ep, e)
		}
	}()
	if err := r.keptFrom(c, eps, why == PreferredByRequest); err != nil {
		return err
	}
	if res.Spec.Mode == Recorded {
		if err := r.cfg.LocalPorts.Settle(ctx); err != nil {
			return err
		}
		holders, err := r.Holders(ctx, c, eps...)
		if err == nil && len(holders) > 0 {
			err = &TakenError{Want: holders[0].Endpoint, Holders: holders}
		}
		return err
	}
	for i := range eps {
		if err := r.bind(ctx, c, res, n+i, &eps[i], why == 0); err != nil {
			return err
		}
	}
	return nil
}
