package registry

import (
	"cmp"
	"context"
	"errors"
	"math/rand/v2"
	"net/netip"
)

var ipv4Any = netip.IPv4Unspecified()

// fewRefusals is after how many refusals by the kernel a choice asks which ports have sockets. To ask costs as much as
// some hundred attempts, and most choices meet no socket at all.
const fewRefusals = 4

// tableChunk is how many ports a choice asks the table about without letting others in.
const tableChunk = 1024

// A choice is the search for ports of portd's choice. It draws from open at random, each run of ports as likely as any
// other, so that two who choose at the same time seldom meet; what was tried in vain moves to another set.
type choice struct {
	spec  EndpointSpec
	count int
	from  PortRange
	own   bool // from is portd's own choice, from which it leaves out what is set apart

	open portSet // nobody has them, as far as is known
	// doubtful ports have a reservation or a socket, but perhaps on another address. They come last, for to ask the table
	// or the kernel about each takes time.
	doubtful portSet
	last     bool // they have come

	reserved, inUse portSet // ruled out by the table, or by the kernel
	refusals        int
}

// choose claims and binds ports of portd's choice for a spec, and adds them to res. The error is an *ExhaustedError where
// there are none.
func (r *Registry) choose(ctx context.Context, c Caller, e *entry, res *Reservation, s EndpointSpec) error {
	ch := r.newChoice(s)
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		ports, ok := ch.draw()
		switch {
		case ok:
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
		err := r.bindChosen(ctx, c, e, res, eps)
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
func (r *Registry) newChoice(s EndpointSpec) *choice {
	ch := &choice{spec: s, count: max(s.Any.Count, 1), from: s.Any.Within}
	if ch.from == (PortRange{}) {
		ch.from, ch.own = ownChoice, true
	}
	ch.open.addRange(ch.from)
	if ch.own {
		ch.open.removeRange(nodePorts)
		ch.open.removeRange(r.cfg.Binder.Ephemeral(s.Netns))
		apart := r.apartness()
		for _, p := range s.Protos {
			ch.open.removeAll(apart.assigned[p])
			ch.open.removeAll(apart.kept[p])
		}
	}
	r.mu.RLock()
	defer r.mu.RUnlock()
	for _, p := range s.Protos {
		if in := r.claims[space{s.Netns, p}]; in != nil {
			ch.doubtful.addAll(&in.any)
			ch.reserved.addAll(&in.whole)
		}
	}
	ch.reserved.keepAll(&ch.open)
	ch.doubtful.keepAll(&ch.open)
	ch.open.removeAll(&ch.doubtful)
	ch.doubtful.removeAll(&ch.reserved)
	return ch
}

// draw picks a run of open ports.
func (ch *choice) draw() (PortRange, bool) {
	starts := ch.open
	starts.runs(ch.count)
	n := starts.count()
	if n == 0 {
		return PortRange{}, false
	}
	first := starts.nth(rand.IntN(n))
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
	e := &ExhaustedError{Protos: ch.spec.Protos, Count: ch.count, From: ch.from, ephemeral: r.cfg.Binder.Ephemeral(ch.spec.Netns)}
	e.Reserved, e.InUse = ch.reserved.count(), ch.inUse.count()
	e.Free, e.Longest = ch.open.count(), ch.open.longest()
	if ch.own {
		var left portSet
		left.addRange(ch.from)
		for _, s := range []*portSet{&ch.reserved, &ch.inUse, &ch.open} {
			left.removeAll(s)
		}
		take := func(s *portSet) int {
			n := left.count()
			left.removeAll(s)
			return n - left.count()
		}
		var ephemeral, nodes, assigned portSet
		ephemeral.addRange(e.ephemeral)
		nodes.addRange(nodePorts)
		apart := r.apartness()
		for _, p := range ch.spec.Protos {
			assigned.addAll(apart.assigned[p])
		}
		e.Ephemeral, e.NodePorts, e.Assigned, e.Kept = take(&ephemeral), take(&nodes), take(&assigned), left.count()
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

// bindChosen binds claimed endpoints, all or none, and adds them to res or gives the claims back.
func (r *Registry) bindChosen(ctx context.Context, c Caller, e *entry, res *Reservation, eps []Endpoint) (err error) {
	n := len(res.Assigned)
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
	if res.Spec.Mode == Recorded {
		if err := r.record(ctx, eps); err != nil {
			return err
		}
		holders, err := r.cfg.Binder.Holders(ctx, eps...)
		if err == nil && len(holders) > 0 {
			err = &TakenError{Want: holders[0].Endpoint, Holders: holders}
		}
		return err
	}
	for i, ep := range eps {
		if err := r.bind(ctx, c, res, n+i, ep, true); err != nil {
			return err
		}
	}
	return nil
}
