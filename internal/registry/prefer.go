package registry

import (
	"context"
	"errors"
	"fmt"
)

// A wish is ports that are to be tried before portd chooses.
type wish struct {
	ports PortRange
	why   Preference
}

// preferred is the ports that a request wishes for in place of portd's choice; the zero range where it wishes for none.
func (r *Registry) preferred(s EndpointSpec) (PortRange, error) {
	port := s.Any.PreferPort
	if s.Any.PreferService != "" {
		if port != 0 {
			return PortRange{}, invalid("spec.endpoints.any", "prefers a port and a service; one of the two is wanted")
		}
		var err error
		if port, err = r.servicePort(s.Any.PreferService, s.Protos); err != nil {
			return PortRange{}, err
		}
	}
	if port == 0 {
		return PortRange{}, nil
	}
	more := max(s.Any.Count, 1) - 1
	if int(port)+more > 65535 {
		return PortRange{}, invalid("spec.endpoints.any.prefer_port", "%d contiguous ports do not begin at %d", more+1, port)
	}
	return PortRange{port, port + uint16(more)}, nil
}

// takeAny claims and binds ports of portd's choice for every spec that leaves it the choice, and adds them to res: those
// that the request prefers, else those that the name had before, else such as portd likes. It returns what could not be had.
func (r *Registry) takeAny(ctx context.Context, c Caller, e *entry, res *Reservation, preferred []PortRange) (passed []PassedOver, err error) {
	had := r.had(res)
specs:
	for i, s := range res.Spec.Endpoints {
		if s.Any == nil {
			continue
		}
		for _, w := range []wish{{preferred[i], PreferredByRequest}, {had[i], PreferredByName}} {
			if w.ports == (PortRange{}) || w.why == PreferredByName && w.ports == preferred[i] {
				continue
			}
			switch why, err := r.takeWish(ctx, c, e, res, s, w); {
			case err != nil:
				return nil, err
			case why == "":
				continue specs
			default:
				passed = append(passed, PassedOver{Ports: w.ports, Preference: w.why, Reason: why})
			}
		}
		if err := r.choose(ctx, c, e, res, s); err != nil {
			return nil, err
		}
	}
	return passed, nil
}

// takeWish claims and binds the ports of a wish, and adds them to res; or it says why they are not to be had.
func (r *Registry) takeWish(ctx context.Context, c Caller, e *entry, res *Reservation, s EndpointSpec, w wish) (why string, err error) {
	why, err = r.unfit(c, s, w, res.Spec.Options)
	if why != "" || err != nil {
		return why, err
	}
	eps := r.endpoints(s, w.ports)
	// Whoever has claims of its own does not wait for those of others.
	if len(res.Assigned) > 0 {
		if port, ok := r.claimFree(e, eps); !ok {
			return r.whoHas(ctx, c, e, eps, port), nil
		}
	} else if err := r.claim(ctx, e, eps); err != nil {
		return passOver(err)
	}
	return passOver(r.bindChosen(ctx, c, e, res, eps, w.why))
}

// passOver tells what can be got over by having other ports from what cannot.
func passOver(err error) (why string, _ error) {
	if errors.Is(err, ErrTaken) {
		return err.Error(), nil
	}
	return "", err
}

// unfit says why ports are not to be had, whoever has them. What the request itself prefers may lie anywhere; what a name had
// must be such that it could be chosen now.
func (r *Registry) unfit(c Caller, s EndpointSpec, w wish, opt BindOptions) (string, error) {
	policy := r.policyIn(c, s.Netns)
	for _, ep := range s.endpoints() {
		if err := policy.Reserve(c, ep.ports(w.ports), opt); err != nil {
			return err.Error(), nil
		}
	}
	if w.why == PreferredByRequest {
		return "", nil
	}
	p, set, err := r.choosable(c, s, opt)
	if err != nil {
		return "", err
	}
	if set.from(int(w.ports.First), false) > int(w.ports.Last) {
		return "", nil
	}
	if p == nil || s.Any.Within != (PortRange{}) {
		return fmt.Sprintf("%s are asked for", portsText(s.Any.Within.First, s.Any.Within.Last)), nil
	}
	return fmt.Sprintf("the pool %q has no such port", p.Name), nil
}

// whoHas says who has a port that could not be claimed.
func (r *Registry) whoHas(ctx context.Context, c Caller, e *entry, eps []Endpoint, port uint16) string {
	r.mu.RLock()
	defer r.mu.RUnlock()
	for _, ep := range eps {
		at := ep.At(port)
		for _, o := range r.claims.overlapping(at) {
			switch {
			case o == e:
				return fmt.Sprintf("%v is another endpoint of the same reservation", at)
			case o.res == nil:
				return fmt.Sprintf("%v is just being reserved or released", at)
			}
			return (&TakenError{Want: at, By: []*Reservation{o.res}}).Error()
		}
	}
	return fmt.Sprintf("%v has just been let go", eps[0].At(port))
}
