package registry

import (
	"fmt"
	"slices"
	"strings"
)

// A reservation is named by its id, its name, or an endpoint of it with the protocol.

// A reference is the text that names a reservation, and the endpoint that it stands for where it has the form of one.
type reference struct {
	text string
	want Endpoint
	err  error // why it is not one
}

// refer reads a text for find. mu is not held: to find out which network namespace an endpoint is in takes system calls.
func (r *Registry) refer(c Caller, text string) reference {
	ref := reference{text: text}
	if ref.endpoint() {
		ref.want, ref.err = r.resolve(c, text)
	}
	return ref
}

// endpoint says whether ref has the form of an endpoint, which no id and no name has.
func (ref reference) endpoint() bool { return strings.ContainsAny(ref.text, "/ ") }

// find names the one reservation that ref means; mu is held. A reservation that is not committed yet is found too when
// it is busy, so that acquire waits for it.
func (r *Registry) find(ref reference) (*entry, error) {
	switch {
	case ref.err != nil:
		return nil, ref.err
	case ref.endpoint():
		return r.findEndpoint(ref.want)
	case r.entries[ref.text] != nil:
		return r.entries[ref.text], nil
	case ref.text == "":
		return nil, invalid("reservation", "is empty; an id, a name, or an endpoint like tcp/8080 is wanted")
	case r.names[ref.text] != nil:
		return r.names[ref.text], nil
	}
	return nil, failed(ErrNotFound, "no reservation has the id or name %q", ref.text)
}

// findEndpoint names the reservation that has the endpoint just so, else the only one that has all its ports on an
// address that overlaps: tcp/8080 finds what is held on tcp/127.0.0.1:8080.
func (r *Registry) findEndpoint(want Endpoint) (*entry, error) {
	var near []*entry
	for _, e := range r.claims.overlapping(want) {
		if e.res == nil { // busy being reserved; it will be looked at again
			near = append(near, e)
			continue
		}
		for _, a := range e.res.Assigned {
			if a.Endpoint == want {
				return e, nil
			}
			if a.Endpoint.Overlaps(want) && a.Endpoint.First <= want.First && want.Last <= a.Endpoint.Last && !slices.Contains(near, e) {
				near = append(near, e)
			}
		}
	}
	switch len(near) {
	case 0:
		return nil, failed(ErrNotFound, "%v is not reserved", want)
	case 1:
		return near[0], nil
	}
	var which []string
	for _, e := range near {
		if e.res != nil {
			which = append(which, fmt.Sprintf("%s (%s)", e.res.ID, e.res.Endpoints()))
		}
	}
	return nil, invalid("reservation", "%v could be any of %s; say which", want, strings.Join(which, ", "))
}

// resolve turns the text of an endpoint into one, service names included. mu is not held.
func (r *Registry) resolve(c Caller, ref string) (Endpoint, error) {
	spec, err := ParseSpec(ref)
	if err != nil {
		return Endpoint{}, err
	}
	if err := r.nameNetns(c, &spec.Netns); err != nil {
		return Endpoint{}, err
	}
	if len(spec.Protos) != 1 || spec.Any != nil {
		return Endpoint{}, invalid("reservation", "%q is not one endpoint; write it like tcp/8080", ref)
	}
	ports, err := r.exact(spec)
	return spec.endpoints()[0].ports(ports), err
}

// whole refuses an endpoint that is only a part of what it found: releasing the rest too would be a surprise.
func (r *Registry) whole(c Caller, ref string, res *Reservation) error {
	if ref == res.ID || ref == res.Name {
		return nil
	}
	want, err := r.resolve(c, ref)
	if err != nil {
		return err
	}
	if only := res.Assigned[0].Endpoint; len(res.Assigned) == 1 && only.First == want.First && only.Last == want.Last {
		return nil
	}
	return invalid("reservation", "%v is only a part of %s; name the whole by its id, %s", want, res.Endpoints(), res.ID)
}
