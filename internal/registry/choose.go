package registry

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
)

var ipv4Any = netip.IPv4Unspecified()

// nodePorts is the range that Kubernetes gives out by default (--service-node-port-range); a port of portd's own choice
// is not taken from it.
var nodePorts = PortRange{30000, 32767}

// choose claims and binds ports of portd's choice for a spec, and adds them to res. It tries from a random port on, so
// that two who choose at the same time seldom meet, until one is free in the table and the kernel agrees.
func (r *Registry) choose(ctx context.Context, c Caller, e *entry, res *Reservation, s EndpointSpec) error {
	count := max(s.Any.Count, 1)
	within, free := s.Any.Within, false
	if within == (PortRange{}) {
		within, free = PortRange{1024, 65535}, true
	}
	var tally struct{ reserved, inUse, left int }
	starts := int(within.Last) - int(within.First) + 1 - count + 1
	at := func(start int) PortRange {
		first := within.First + uint16(start)
		return PortRange{first, first + uint16(count-1)}
	}
	first := rand.IntN(starts)
	// Much may be set apart; to scan on from there would favour the port that comes next.
	for i := 0; free && i < 64 && !r.choosable(r.endpoints(s, at(first))); i++ {
		first = rand.IntN(starts)
	}
	for i := 0; i < starts; i++ {
		if err := ctx.Err(); err != nil {
			return err
		}
		ports := at((first + i) % starts)
		eps := r.endpoints(s, ports)
		if free && !r.choosable(eps) {
			tally.left++
			continue
		}
		if taken, ok := r.claimFree(e, eps); !ok {
			// On past the port that is taken, but not past the end of the range, after which the lowest ports come.
			skip := min(int(taken-ports.First), starts-1-(first+i)%starts)
			tally.reserved += 1 + skip
			i += skip
			continue
		}
		err := r.bindChosen(ctx, c, e, res, eps)
		if err == nil {
			return nil
		}
		if !errors.Is(err, ErrTaken) {
			return err
		}
		tally.inUse++
	}
	what := "port"
	if count > 1 {
		what = fmt.Sprintf("run of %d ports", count)
	}
	text := fmt.Sprintf("no free %s for %s in %d-%d: of %d candidates %d are reserved here, %d in use by other programs",
		what, protoList(s.Protos), within.First, within.Last, starts, tally.reserved, tally.inUse)
	if free {
		text += fmt.Sprintf(", %d assigned to services or set apart", tally.left)
	}
	return failed(ErrExhausted, "%s; give a range of your own or release something", text)
}

// choosable says whether ports may be portd's choice: nobody else has a claim to them by number.
func (r *Registry) choosable(eps []Endpoint) bool {
	for _, set := range []PortRange{nodePorts, r.cfg.Binder.Ephemeral()} {
		if eps[0].First <= set.Last && set.First <= eps[0].Last {
			return false
		}
	}
	services := r.Services()
	for _, ep := range eps {
		proto, known := ianaProtocol(ep.Proto)
		for p := int(ep.First); known && p <= int(ep.Last); p++ {
			if !services.Unassigned(uint16(p), proto) {
				return false
			}
		}
	}
	return true
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
		if res.Spec.Mode == Held {
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
		holders, err := r.cfg.Binder.Holders(ctx, eps...)
		if err == nil && len(holders) > 0 {
			err = ErrTaken
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

func protoList(ps []Protocol) string {
	s := make([]string, len(ps))
	for i, p := range ps {
		s[i] = p.String()
	}
	return strings.Join(s, ",")
}
